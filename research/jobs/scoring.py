"""What the metrics are told of a job: its config and seeds, and how its trajectories are sampled again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError, UserError
from research.jobs import job_images, process_cache
from research.jobs.build import COMPOSED, Origin, build, check_model_name, check_scheduler_name, guidance_of, sigmas_of
from research.metrics.job import Grid, ScoredJob
from research.metrics.score import measure
from research.sigmas import Between, File, Given, Schedule

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from research.jobs.store import JobFolder
    from research.metrics.base import MetricResult
    from research.sampling import LoopSampler
    from research.sampling.interfaces import Hook, Task


def ask(
    config: Mapping[str, Any],
    name: str,
    metric: Any,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    seeds: Sequence[int],
    device: Any,
    folder: JobFolder,
    origin: Origin = COMPOSED,
) -> MetricResult:
    """What a metric says of a job's images; its model is loaded again only for a metric that samples again.

    Args:
        config: the composed job.
        name: of the metric in the config.
        metric: built from it.
        images, seeds: one each an image.
        prompts: one an image, or none at all.
        device: where networks run.
        folder: the job's, for features that are kept.
        origin: where the config comes from, for what is built of it to sample again.
    """

    def sample(steps: int, scheduler: str | None = None) -> Tensor:
        return _latents(config, seeds, steps, scheduler, origin)

    def grid(steps: int, scheduler: str | None = None) -> Grid:
        return _grid(config, steps, scheduler, origin)

    def finer(steps: int, scheduler: str | None, wanted: int, least: int, most: int) -> int | None:
        return _finer(config, steps, scheduler, wanted, (least, most), origin)

    def path(steps: int, scheduler: str | None, at: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        from research.jobs.path_ends import CleanAt

        clean = CleanAt(at)
        latents = _latents(config, seeds, steps, scheduler, origin, [clean])
        return latents, clean.made()

    job = ScoredJob(config, seeds, sample, grid, finer, path)
    last = name == list(config["metrics"])[-1]
    texts = prompts or [""] * len(images)
    return measure(metric, images, texts, device=device, job=job, folder=folder.path, last=last)


def _latents(
    config: Mapping[str, Any],
    seeds: Sequence[int],
    steps: int,
    scheduler: str | None,
    origin: Origin,
    hooks: Sequence[Hook] = (),
) -> Tensor:
    sampler, task = sampler_and_task(config, origin, scheduler, hooks, steps)
    size = config["batch_size"] if isinstance(config["batch_size"], int) else 32
    return sampler.sample(task, seeds=seeds, steps=steps, batch_size=min(size, len(seeds)), progress=False).latents


def sampler_and_task(
    config: Mapping[str, Any],
    origin: Origin = COMPOSED,
    scheduler: str | None = None,
    more: Sequence[Hook] = (),
    steps: int | None = None,
) -> tuple[LoopSampler, Task]:
    """What samples a job's images once more, all of its settings included; ``scheduler`` and ``steps`` are others than its own,
    ``more`` are further hooks."""
    sampler_class = process_cache.libraries()
    sampler = sampler_class(
        _model(config, origin),
        scheduler=_scheduler(config, scheduler, origin),
        guidance=guidance_of(config, origin),
        hooks=[build(node, f"hooks.{name}", origin) for name, node in config["hooks"].items()] + list(more),
        parity=config["runtime"]["parity"],
        sigmas=_sigmas(config, steps, origin),
    )
    task: Task = build(config["task"], "task", origin, **job_images.task_arguments(config))
    return sampler, task


def _sigmas(config: Mapping[str, Any], steps: int | None, origin: Origin) -> Schedule | None:
    """The job's grid for a number of steps: levels that are given for one count alone, with others between them."""
    found = sigmas_of(config, origin)
    if steps is not None and isinstance(found, Given | File) and found.steps != steps:
        return Between(found)
    return found


def _grid(config: Mapping[str, Any], steps: int, scheduler: str | None, origin: Origin = COMPOSED) -> Grid:
    """The noise levels that are visited."""
    from research.tasks import ImageToImage

    model = _model(config, origin)
    task = build(config["task"], "task", origin, **job_images.task_arguments(config))
    parity, sigmas = config["runtime"]["parity"], _sigmas(config, steps, origin)
    factory = model.solvers(_scheduler(config, scheduler, origin), None, parity=parity, sigmas=sigmas)
    if isinstance(task, ImageToImage):
        task.count_as(model)
    stages = list(task.timeline(task.solver(factory()), steps, model.device))
    levels: dict[int, float] = {}
    for stage in stages:
        levels.setdefault(stage.step, float(stage.sigma))
    return Grid(levels, float(stages[-1].sigma_next))


_SAME, _CLOSE = 1e-3, 2e-2  # relative differences of noise levels
_TRIED = 16


def _finer(
    config: Mapping[str, Any],
    steps: int,
    scheduler: str | None,
    wanted: int,
    ends: tuple[int, int],
    origin: Origin = COMPOSED,
) -> int | None:
    """The count nearest to a wanted one whose grid begins where the job's own does, or else within 2 % of it."""
    parity = config["runtime"]["parity"]
    model = _model(config, origin)
    own, other = (model.solvers(_scheduler(config, name, origin), None, parity=parity) for name in (None, scheduler))
    begin = _grid(config, steps, None, origin)
    counts = sorted(range(ends[0], ends[1] + 1), key=lambda count: (abs(count - wanted), count))
    if counts and abs(_grid(config, counts[0], scheduler, origin).first / begin.first - 1) <= _SAME:
        return counts[0]
    if min(begin.levels) == 0:  # a part of a schedule begins where its strength says
        first = own.first_timestep(steps)
        counts = sorted(counts, key=lambda count: _away(other, count, first))
    best: tuple[float, int] | None = None
    for count in counts[:_TRIED]:
        try:
            found = _grid(config, count, scheduler, origin).first
        except ConfigError:
            continue
        away = 0.0 if found == begin.first else abs(found / begin.first - 1)
        if away <= _SAME:
            return count
        if away <= _CLOSE and (best is None or away < best[0]):
            best = away, count
    return None if best is None else best[1]


def _away(factory: Any, count: int, first: float) -> float:
    """How far from a timestep a schedule begins, in whole ones."""
    try:
        return round(abs(factory.first_timestep(count) - first))
    except Exception:  # a count that the class cannot make
        return math.inf


def _model(config: Mapping[str, Any], origin: Origin) -> Any:
    """The job's model. Whether pickled weights are read, which can run code, is not for a record to say."""
    settings = config["model"]
    check_model_name(settings, origin)
    if origin.is_free or not settings.get("allow_pickle"):
        return process_cache.model(settings)[0]
    try:
        return process_cache.model({**settings, "allow_pickle": False})[0]
    except UserError as error:
        raise ConfigError(
            f"{origin.record}: model.allow_pickle: is not accepted from a record; --trust-plugs allows it. Without it: {error}"
        ) from error


def _scheduler(config: Mapping[str, Any], named: str | None, origin: Origin) -> Any:
    from research.solvers import SchedulerSpec

    check_scheduler_name(named, "metrics", origin)
    own = config["scheduler"]
    check_scheduler_name(own["class_name"], "scheduler.class_name", origin)
    return named or SchedulerSpec(own["name"], own["class_name"], own["options"])
