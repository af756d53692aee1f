"""The numbers of sides over the images that they share, and the difference of two."""

from __future__ import annotations

import math
import statistics as python_statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from research.compare import features
from research.compare.jobs import ComparedJob, Key
from research.compare.outcome import Request
from research.compare.pairing import Shared, share
from research.compare.sides import Side
from research.results import intervals
from research.statistics import Estimate, apart, mean, welch

PER_IMAGE, SET, NEITHER = "per image", "set", "neither"
_NOTHING = Estimate(0.0, 0.0, 0.0, 0.0, 1.0, 0, 1.0)
TOO_SMALL = "too few images to leave some out"


@dataclass(frozen=True)
class PairScores:
    """A metric of two sides.

    Attributes:
        value_a, value_b: of each.
        estimate: of their difference, if there is one.
        note: why there is none.
        least: units from which on the estimate can be trusted.
    """

    value_a: float | None
    value_b: float | None
    estimate: Estimate | None
    note: str = ""
    least: int = 0


class Scores:
    """Numbers of sides.

    Attributes:
        notes: what a reader has to know of how they came about.
    """

    def __init__(self, request: Request, sides: Sequence[Side]) -> None:
        self.request, self.notes = request, list[str]()
        self.sets = features.SetScores(request.seed)
        self._kinds: dict[tuple[ComparedJob, str], str] = {}

    def pair(self, a: Side, b: Side, metric: str, shared: Shared) -> PairScores:
        """The difference of `b` less `a`, over what they share.

        Raises:
            NoFeatures: features that it needs are not there.
        """
        kind = self._kind([a, b], metric)
        if kind == NEITHER:
            why = "one number a job, without numbers of single images or features to resample: it says nothing of its spread"
            found = self._of_records(a, b, metric, shared)
            values = [self.recorded(side, metric, shared) for side in (a, b)]
            return PairScores(values[0], values[1], found, "" if found else why)
        if not len(shared):
            return self._unpaired(a, b, metric, kind)
        if kind == SET:
            x, y = (self.sets.replicates(side, metric, shared) for side in (a, b))
            estimate = y.less(x, level=self.request.level)
            return PairScores(x.full, y.full, estimate, "" if estimate else TOO_SMALL, max(x.least, y.least))
        first, second = (_by_image(side, metric, shared) for side in (a, b))
        images = [image for image in first if math.isfinite(first[image]) and math.isfinite(second[image])]
        if lost := len(first) - len(images):
            self.notes.append(f"{metric}: {lost} images have no finite number on both sides and are left out.")
        if not images:
            return PairScores(None, None, None, "no finite number")
        values = [python_statistics.fmean(of[image] for image in images) for of in (first, second)]
        units, strata = shared.drawn(images)
        estimate = mean([second[i] - first[i] for i in images], units, self.request.level, strata=strata)
        return PairScores(values[0], values[1], estimate, "" if estimate else f"fewer than two {shared.over}")

    def of_side(self, side: Side, metric: str, common: Shared) -> float | None:
        """A side's number over what all sides share; None if it has none."""
        if not len(common):
            return self.recorded(side, metric, common)
        kind = self._kind([side], metric)
        try:
            if kind == SET:
                return self.sets.replicates(side, metric, common).full
        except features.NoFeatures:
            kind = NEITHER
        if kind == NEITHER:
            return self.recorded(side, metric, common)
        found = [v for v in _by_image(side, metric, common).values() if math.isfinite(v)]
        return python_statistics.fmean(found) if found else None

    def recorded(self, side: Side, metric: str, shared: Shared) -> float | None:
        """The mean of a number over a side's jobs, as their records have it."""
        jobs = {job for cell in (list(shared.cells) or side.cells) if cell in side.cells for job in side.jobs_of(cell)}
        values = [row.metrics[metric] for job in jobs if (row := job.holder(metric)) is not None]
        finite = [value for value in values if math.isfinite(value)]
        return python_statistics.fmean(finite) if finite else None

    def _unpaired(self, a: Side, b: Side, metric: str, kind: str) -> PairScores:
        own_images = [share([side], self.request.over) for side in (a, b)]
        if kind == SET:
            x, y = (self.sets.replicates(side, metric, own) for side, own in zip((a, b), own_images, strict=True))
            one, other = (f.estimate(self.request.level) for f in (x, y))
            estimate = apart(one, other, self.request.level) if one is not None and other is not None else None
            return PairScores(x.full, y.full, estimate, "" if estimate else TOO_SMALL, max(x.least, y.least))
        scores: list[list[float]] = []
        units: list[Sequence[str] | None] = []
        strata: list[Sequence[str] | None] = []
        for side, own in zip((a, b), own_images, strict=True):
            finite = {image: v for image, v in _by_image(side, metric, own).items() if math.isfinite(v)}
            scores.append(list(finite.values()))
            of, within = own.drawn(list(finite))
            units.append(of)
            strata.append(within)
        means = [python_statistics.fmean(s) if s else None for s in scores]
        estimate = welch(scores[0], scores[1], self.request.level, (units[0], units[1]), (strata[0], strata[1]))
        return PairScores(means[0], means[1], estimate, "" if estimate else f"fewer than two {own.over} on a side")

    def _of_records(self, a: Side, b: Side, metric: str, shared: Shared) -> Estimate | None:
        """The mean over cells of what two records say of their difference, `intervals.difference`, as the page has it."""
        found: list[Estimate] = []
        for cell in list(shared.cells) or [cell for cell in a.cells if cell in b.cells]:
            jobs = [side.jobs_of(cell) for side in (a, b)]
            if any(len(of) != 1 for of in jobs):
                return None  # of several jobs together no record speaks
            x, y = (of[0].holder(metric) for of in jobs)
            one = None if x is None or y is None else intervals.difference(y, x, metric)
            if one is None:
                return None
            found.append(one)
        if not found:
            return None
        total = _NOTHING
        for one in found:
            total = apart(replace(total, value=-total.value), one, self.request.level)
        share = 1.0 / len(found)
        whole = replace(total, value=share * total.value, se=share * total.se)
        return replace(
            apart(_NOTHING, whole, self.request.level), n=min(one.n for one in found), method=found[0].method
        )

    def _kind(self, sides: Sequence[Side], metric: str) -> str:
        kinds = {self._kind_of(job, metric) for side in sides for job in side.jobs}
        return kinds.pop() if len(kinds) == 1 else NEITHER

    def _kind_of(self, job: ComparedJob, metric: str) -> str:
        if (job, metric) not in self._kinds:
            self._kinds[job, metric] = self._find_kind(job, metric)
        return self._kinds[job, metric]

    def _find_kind(self, job: ComparedJob, metric: str) -> str:
        row = job.holder(metric)
        infos = row.result.metrics_info if row is not None else {}
        if metric in infos and features.kind(infos[metric]) is not None:
            return SET
        values, mean = job.scores.get(metric), row.metrics[metric] if row is not None else math.nan
        if not values:
            return NEITHER
        finite = [v for v in values.values() if math.isfinite(v)]
        agrees = bool(finite) and math.isclose(python_statistics.fmean(finite), mean, rel_tol=1e-3, abs_tol=1e-4)
        return PER_IMAGE if agrees or len(finite) < len(values) else NEITHER  # a number that is no mean of them


def _by_image(side: Side, metric: str, shared: Shared) -> dict[Key, float]:
    """The score of each image, its mean over the cells that have it; NaN where one is not finite."""
    found: dict[Key, list[float]] = {}
    for cell, keys in shared.cells.items():
        for key in keys:
            job, _ = side.cells[cell][key]
            found.setdefault(key, []).append(job.scores[metric][key])
    return {key: float(np.mean(values)) for key, values in found.items()}
