"""What the metrics are told of a job: its config and seeds, and how its trajectories are sampled again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from research.jobs import job_images, process_cache
from research.jobs.build import build, guidance_of
from research.metrics.job import ScoredJob
from research.metrics.score import measure

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from research.jobs.store import JobFolder
    from research.metrics.base import MetricResult


def ask(
    config: Mapping[str, Any],
    name: str,
    metric: Any,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    seeds: Sequence[int],
    device: Any,
    folder: JobFolder,
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
    """

    def sample(steps: int, scheduler: str | None = None) -> Tensor:
        return _latents(config, seeds, steps, scheduler)

    def start(steps: int, scheduler: str | None = None) -> float:
        return _start(config, steps, scheduler)

    job = ScoredJob(config, seeds, sample, start)
    last = name == list(config["metrics"])[-1]
    texts = prompts or [""] * len(images)
    return measure(metric, images, texts, device=device, job=job, folder=folder.path, last=last)


def _latents(config: Mapping[str, Any], seeds: Sequence[int], steps: int, scheduler: str | None) -> Tensor:
    LoopSampler = process_cache.libraries()
    model, _ = process_cache.model(config["model"])
    sampler = LoopSampler(
        model,
        scheduler=_scheduler(config, scheduler),
        guidance=guidance_of(config),
        hooks=[build(node, f"hooks.{name}") for name, node in config["hooks"].items()],
        parity=config["runtime"]["parity"],
    )
    task = build(config["task"], "task", **job_images.task_arguments(config))
    size = config["batch_size"] if isinstance(config["batch_size"], int) else 32
    return sampler.sample(task, seeds=seeds, steps=steps, batch_size=min(size, len(seeds))).latents


def _start(config: Mapping[str, Any], steps: int, scheduler: str | None) -> float:
    """The noise level of the first stage."""
    model, _ = process_cache.model(config["model"])
    task = build(config["task"], "task", **job_images.task_arguments(config))
    new_solver = model.solvers(_scheduler(config, scheduler), None, parity=config["runtime"]["parity"])
    timeline = task.timeline(task.solver(new_solver()), steps, model.device)
    return float(next(iter(timeline)).sigma)


def _scheduler(config: Mapping[str, Any], named: str | None) -> Any:
    from research.solvers import SchedulerSpec

    own = config["scheduler"]
    return named or SchedulerSpec(own["name"], own["class_name"], own["options"])
