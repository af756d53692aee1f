"""What the metrics are told of a job: its config and seeds, and how its trajectories are sampled again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError, UserError
from research.jobs import job_images, process_cache
from research.jobs.build import COMPOSED, Origin, build, check_scheduler_name, guidance_of
from research.metrics.job import ScoredJob
from research.metrics.score import measure

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from research.jobs.store import JobFolder
    from research.metrics.base import MetricResult
    from research.sampling import LoopSampler
    from research.sampling.interfaces import Task


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

    def start(steps: int, scheduler: str | None = None) -> float:
        return _start(config, steps, scheduler, origin)

    job = ScoredJob(config, seeds, sample, start)
    last = name == list(config["metrics"])[-1]
    texts = prompts or [""] * len(images)
    return measure(metric, images, texts, device=device, job=job, folder=folder.path, last=last)


def _latents(
    config: Mapping[str, Any], seeds: Sequence[int], steps: int, scheduler: str | None, origin: Origin
) -> Tensor:
    sampler, task = sampler_and_task(config, origin, scheduler)
    size = config["batch_size"] if isinstance(config["batch_size"], int) else 32
    return sampler.sample(task, seeds=seeds, steps=steps, batch_size=min(size, len(seeds))).latents


def sampler_and_task(
    config: Mapping[str, Any], origin: Origin = COMPOSED, scheduler: str | None = None
) -> tuple[LoopSampler, Task]:
    """What samples a job's images once more, all of its settings included; ``scheduler`` is another than its own."""
    sampler_class = process_cache.libraries()
    sampler = sampler_class(
        _model(config, origin),
        scheduler=_scheduler(config, scheduler, origin),
        guidance=guidance_of(config, origin),
        hooks=[build(node, f"hooks.{name}", origin) for name, node in config["hooks"].items()],
        parity=config["runtime"]["parity"],
    )
    task: Task = build(config["task"], "task", origin, **job_images.task_arguments(config))
    return sampler, task


def _start(config: Mapping[str, Any], steps: int, scheduler: str | None, origin: Origin = COMPOSED) -> float:
    """The noise level of the first stage."""
    model = _model(config, origin)
    task = build(config["task"], "task", origin, **job_images.task_arguments(config))
    new_solver = model.solvers(_scheduler(config, scheduler, origin), None, parity=config["runtime"]["parity"])
    timeline = task.timeline(task.solver(new_solver()), steps, model.device)
    return float(next(iter(timeline)).sigma)


def _model(config: Mapping[str, Any], origin: Origin) -> Any:
    """The job's model. Whether pickled weights are read, which can run code, is not for a record to say."""
    settings = config["model"]
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
