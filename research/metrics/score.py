"""Scoring: how the runner asks a metric, and how its numbers are read back from a job's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError
from research.metrics.base import JobMetric, as_metric, listed_in
from research.metrics.feature_checkpoint import checkpointing
from research.metrics.saved_features import save_features

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from research.metrics.base import MetricResult
    from research.metrics.job import ScoredJob


def check_metric(plug: object, n_images: int, config: Mapping[str, Any] | None = None) -> None:
    """Refuse a job that a metric cannot score, before anything is loaded.

    Args:
        plug: a metric of one's own or the project's, see `research.metrics.base.as_metric`.
        n_images: how many images the job makes.
        config: the composed job, if there is one.

    Raises:
        ConfigError: one line with the key, what was found and what is accepted.
    """
    metric = as_metric(plug, type(plug).__name__)
    metric.check(n_images=n_images)
    if config is not None:
        metric.check_job(config)


def measure(
    plug: object,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    *,
    device: str | torch.device,
    job: ScoredJob | None = None,
    folder: Path | None = None,
    last: bool = True,
) -> MetricResult:
    """Score a job's images; features that the metric gives go into the job's folder, if there is one.

    Scoring that takes long leaves notes in that folder until it is done, and goes on from them if it was interrupted.

    Args:
        plug: a metric of one's own or the project's, see `research.metrics.base.as_metric`.
        images, prompts: one prompt an image.
        device: where networks run.
        job: for a `JobMetric`.
        folder: the job's.
        last: no more metrics of the job follow, so that the notes can go.

    Raises:
        ConfigError: the job cannot be scored, or the features cannot be written.
    """
    metric = as_metric(plug, type(plug).__name__)
    with checkpointing(folder, last=last):
        if isinstance(metric, JobMetric):
            result = metric.compute(images, prompts, device=device, job=job)
        else:
            result = metric.compute(images, prompts, device=device)
    return result if folder is None else save(folder, result)


def save(folder: Path, result: MetricResult) -> MetricResult:
    """A result whose features, if it has any, stand in a job's folder, and are named in its ``info``.

    Raises:
        ConfigError: they cannot be written.
    """
    if result.features is None:
        return result
    try:
        noted = save_features(folder, result.features)
    except OSError as error:
        raise ConfigError(f"output_dir: {folder} cannot be written: {error.strerror or error}.") from error
    return replace(result, info={**result.info, **noted}, features=None)


def per_image(record: Mapping[str, Any]) -> dict[str, list[float]]:
    """Numbers of a job that are one an image, by metric, in the order of its images: what paired comparisons need.

    Args:
        record: a ``result.json``: of metrics (``metrics_info.NAME.per_image``) and of tasks (``images[k].scores``).
    """
    images = record.get("images") or []
    found: dict[str, list[float]] = {}
    by_task = [entry.get("scores") or {} for entry in images]
    for name in by_task[0] if by_task else ():
        if all(isinstance(scores.get(name), int | float) for scores in by_task):
            found[name] = [float(scores[name]) for scores in by_task]
    for name, info in (record.get("metrics_info") or {}).items():
        for of, values in listed_in(name, info).items() if isinstance(info, Mapping) else ():
            if isinstance(values, list) and len(values) == len(images):
                found[of] = [float(value) for value in values]
    return found
