"""What a dashboard over jobs has to show: the axes they vary, the metrics they have, the curves they recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from research.errors import UserError
from research.tracking.fields import is_number
from research.tracking.records import Record

AXES_AT_MOST = 8
GUIDANCE, CLIP, FID, NFE, SECONDS, LOG_SNR = (
    "guidance/scale", "clip_score", "fid", "nfe", "seconds/image", "curve/log_snr"
)  # fmt: skip
# settings that name a run or its machine, or follow from others; none of them is an axis
_NO_AXIS = (
    "scheduler/class_name",
    "job_id",
    "created",
    "git_commit",
    "n_prompts",
    "weights_sha256",
    "device",
    "dtype",
    "batch_size",
)
_NO_AXES = ("versions/", "metrics_info/", "metrics/", "runtime/")
# the first axes shown; the others follow by name
_FIRST = ("sweep_name", "model/path", "task", "scheduler", "guidance", GUIDANCE, "steps", "task/strength")
_LOWER_IS_BETTER = ("fid", "kid", "cmmd", "fd", "lpips", "error", "seconds", "nfe")


@dataclass(frozen=True)
class Contents:
    """What a dashboard has to show."""

    groups: list[str]  # the sweeps
    axes: list[str]  # keys of the config that are not the same in all jobs
    metrics: list[str]  # keys of the summary
    curves: list[str]  # keys of the history
    images: bool
    table: bool
    jobs: int
    failed: int
    best: list[tuple[str, str, float]]  # metric, run, value


def contents(records: Sequence[Record]) -> Contents:
    """What jobs vary and measure.

    Raises:
        UserError: there are none, or none is done.
    """
    done = [record for record in records if record.done]
    if not done:
        raise UserError(f"dashboard: found {len(records)} jobs and none that is done; accepted is at least one.")
    metrics = [key for key in _keys(r.summary for r in done) if _is_metric(key, done)]
    return Contents(
        groups=sorted({record.group for record in records}),
        axes=_axes(done),
        metrics=metrics,
        curves=[key for key in _keys(point for r in done for point in r.curve[:1]) if _is_curve(key)],
        images=any(record.images for record in done),
        table=any(record.samples for record in done),
        jobs=len(records),
        failed=len(records) - len(done),
        best=[best for key in metrics if (best := _best(key, done))],
    )


def _axes(records: Sequence[Record]) -> list[str]:
    """Keys with more than one value, those that people ask for first."""
    varied = []
    for key in _keys(record.config for record in records):
        if key in _NO_AXIS or key.startswith(_NO_AXES):
            continue
        values = {repr(record.config.get(key)) for record in records}
        if len(values) > 1 and all(not isinstance(record.config.get(key), (list, dict)) for record in records):
            varied.append(key)
    varied.sort(key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key))
    return varied[:AXES_AT_MOST]


def _is_metric(key: str, records: Sequence[Record]) -> bool:
    if key.startswith(("nfe_by_branch/", "mirror/")) or key in ("n_images", "images_per_second", "peak_memory_bytes"):
        return False
    if key.startswith("seconds/") and key != SECONDS:
        return False
    # standard errors and the ends of intervals are no axes of their own
    return not key.endswith(("_se", "_lo", "_hi", "_low", "_high", "_std")) and any(
        is_number(r.summary.get(key)) for r in records
    )


def _is_curve(key: str) -> bool:
    return key not in (LOG_SNR, "curve/index", "curve/step")


def _best(key: str, records: Sequence[Record]) -> tuple[str, str, float] | None:
    scored = [(float(r.summary[key]), r.name) for r in records if is_number(r.summary.get(key))]
    if len(scored) < 2 or key in (NFE, SECONDS):
        return None
    value, name = min(scored) if lower_is_better(key) else max(scored)
    return key, name, value


def lower_is_better(key: str) -> bool:
    """Whether less is better."""
    return any(word in key.lower().replace("/", "_").split("_") for word in _LOWER_IS_BETTER)


def _keys(mappings: Any) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))
