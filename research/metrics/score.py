"""How the runner asks a metric, and how its numbers are read back from a job's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError
from research.metrics import kept
from research.metrics.feature_checkpoint import spilling

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from research.metrics.base import MetricResult
    from research.metrics.job import ScoredJob


def check_metric(metric: Any, n_images: int, config: Mapping[str, Any] | None = None) -> None:
    """Refuse a job that a metric cannot score, before anything is loaded.

    Args:
        metric: of one's own or the project's, see `research.metrics.base.Metric`.
        n_images: how many images the job makes.
        config: the composed job, if there is one.

    Raises:
        ConfigError: one line with the key, what was found and what is accepted.
    """
    if hasattr(metric, "check"):
        metric.check(n_images=n_images)
    if config is not None and hasattr(metric, "check_job"):
        metric.check_job(config)


def measure(
    metric: Any,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    *,
    device: str | torch.device,
    job: ScoredJob | None = None,
    folder: Path | None = None,
    last: bool = True,
) -> MetricResult:
    """Score a job's images; features that the metric keeps go into the job's folder, if one is given.

    Scoring that takes long leaves notes in that folder until it is done, and goes on from them if it was interrupted.

    Args:
        metric: of one's own or the project's, see `research.metrics.base.Metric`.
        images, prompts: one prompt an image.
        device: where networks run.
        job: for metrics that need more than the images.
        folder: the job's.
        last: no more metrics of the job follow, so that the notes can go.
    """
    more = {"job": job} if getattr(metric, "needs_job", False) else {}
    with spilling(folder, last=last):
        result: MetricResult = metric.compute(images, prompts, device=device, **more)
    if folder is None or getattr(result, "features", None) is None:
        return result
    try:
        return kept.keep(folder, result)
    except OSError as error:
        raise ConfigError(f"output_dir: {folder} cannot be written: {error.strerror or error}.") from error


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
        values = info.get("per_image") if isinstance(info, Mapping) else None
        if isinstance(values, list) and len(values) == len(images):
            found[name] = [float(value) for value in values]
    return found
