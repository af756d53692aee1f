"""The scale of CFG that a job's guidance comes nearest to, read from what `research.hooks.Record` kept of its stages.

"Guidance Matters" (arXiv:2602.22570) asks for it: scores that rise with the scale of CFG rise for any method that is a larger
scale in disguise, so that a method is to be set against CFG at the effective scale that it has, and not at the one it is given.
The formula is derived from the paper's abstract (effects parallel and orthogonal to that of CFG).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from research.jobs.record import DamagedRecord, NoRecord, read_trace
from research.labels import is_number

SCALE, BESIDE = "effective_scale", "beside_cfg"


@dataclass(frozen=True)
class EffectiveScale:
    """Over the images of a job and its recorded stages; see `research.hooks.Record` for the numbers of one stage.

    Means of the middle four fifths: where the two predictions nearly agree, as at the end of a run, the scale of a stage is the
    ratio of two small numbers, and can be anything.

    Attributes:
        scale: of the CFG that is nearest. A stage at which the unconditional prediction was not made, as outside an interval,
            counts as 1.
        beside: share of the guidance, from 0 to 1, that CFG has at no scale; over stages with both predictions.
    """

    scale: float
    beside: float


def effective_scale(folder: Path) -> EffectiveScale | None:
    """Of the job in a folder; None where its trace does not say it: no ``hooks=record``, or no stage with both predictions."""
    try:
        trace = read_trace(folder)
    except (NoRecord, DamagedRecord):
        return None
    scales: list[float] = []
    beside: list[float] = []
    for kept in (trace.recorded, *trace.batches):
        for entry in _entries(kept):
            numbers = entry.get("per_image")
            if not isinstance(numbers, Mapping):
                continue
            if SCALE in numbers and BESIDE in numbers:
                scales += _finite(numbers[SCALE])
                beside += _finite(numbers[BESIDE])
            else:
                scales += [1.0] * len(_finite(numbers.get("guided_rms")))
    return EffectiveScale(_middle(scales), _middle(beside)) if beside else None


def _middle(values: list[float]) -> float:
    """The mean without the lowest and the highest tenth."""
    cut = len(values) // 10
    return fmean(sorted(values)[cut : len(values) - cut])


def _entries(kept: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    found = kept.get("record")
    yield from (entry for entry in found if isinstance(entry, Mapping)) if isinstance(found, list) else ()


def _finite(values: Any) -> list[float]:
    return [float(v) for v in values if is_number(v) and math.isfinite(v)] if isinstance(values, list) else []
