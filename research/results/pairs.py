"""Verdicts on the jobs of a sweep by one metric: which two differ, and which of them is as good as the best.

All pairs of the jobs are one family of tests, adjusted for there being so many (Holm), so that a pair has one verdict wherever it
is named. Differences are paired over the prompts and seeds that two jobs share.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from research.results.intervals import contrast, difference, summands
from research.results.read import Row
from research.results.scales import Margin
from research.results.set_scores import kind, seconds
from research.statistics import (
    PROMPTS,
    SEEDS,
    Estimate,
    holm,
    needed,
    p_not_below,
    p_not_below_margin,
    p_of_means,
    unit_of,
    within_strata,
)

Array = NDArray[np.float64]
ALPHA = 0.05
# fewer may not show a failure on one picture in ten: by them, nothing is called as good as another
LEAST_UNITS = 30
MOST_SECONDS = 60.0
FAILURE = 1.0  # standard deviation of the scores that a picture loses on which a setting fails
# jobs of which all pairs are tested; of more, a pair named is adjusted for all of them (Bonferroni)
_MOST_AT_ONCE, _MOST_ONE_BY_ONE = 800, 64


class Pairs:
    """Pairs of jobs by a metric.

    Args:
        rows: the jobs, whose numbers were computed with the same things.
        key: the metric.
        better: +1 if higher is better, -1 if lower is.
        values: the metric of each job.
    """

    def __init__(self, rows: Sequence[Row], key: str, better: int, values: Sequence[float]) -> None:
        self.rows, self.key, self.better, self.values = list(rows), key, better, list(values)
        self._places = {row: place for place, row in enumerate(self.rows)}
        self._differences: dict[tuple[Row, Row], Estimate | None] = {}
        self._freedom: int | None = None  # of `_units`, where it is not one less than they are

    @property
    def count(self) -> int:
        """How many pairs are tested together."""
        return len(self.rows) * (len(self.rows) - 1) // 2

    def difference(self, a: Row, b: Row) -> Estimate | None:
        """`a` less `b`; see `research.results.intervals.difference`."""
        if (a, b) not in self._differences:
            self._differences[a, b] = None if self.too_costly else difference(a, b, self.key)
        return self._differences[a, b]

    @cached_property
    def too_costly(self) -> bool:
        """Whether a distance of sets would take minutes, with images left out in turn: then nothing is said of its pairs."""
        return sum(seconds(row, self.key) for row in self.rows if kind(row.info(self.key)) is not None) > MOST_SECONDS

    def told_apart(self, a: Row, b: Row) -> bool | None:
        """Whether two jobs differ by more than chance, all pairs considered; None if nothing is known of their spread."""
        i, j = self._places[a], self._places[b]
        if self.count == 1:
            return None if (only := self.difference(a, b)) is None else only.told_apart
        if self._adjusted is not None:
            p = float(self._adjusted[min(i, j), max(i, j)])
            return None if math.isnan(p) else p <= ALPHA
        found = self.difference(a, b)
        return None if found is None else found.p_many * self.count <= ALPHA

    def best(self, among: Iterable[Row] | None = None) -> Row:
        """The best measured."""
        return max(among if among is not None else self.rows, key=lambda row: self.better * self._value(row))

    def level(self, rows: Sequence[Row]) -> list[Row]:
        """Of some jobs the best measured, and all that are not told apart from it."""
        if not rows:
            return []
        best = self.best(rows)
        return [row for row in rows if row is best or self.told_apart(best, row) is False]

    @cached_property
    def _adjusted(self) -> Array | None:
        """P values of all pairs after Holm, above the diagonal; NaN where there is no test. None for too many jobs."""
        n = len(self.rows)
        if n > (_MOST_AT_ONCE if self._units is not None else _MOST_ONE_BY_ONE):
            return None
        raw = np.full((n, n), math.nan)
        for i in range(n - 1):
            if self._units is not None:
                raw[i, i + 1 :] = p_of_means(self._units[i] - self._units[i + 1 :], self._freedom)
                continue
            for j in range(i + 1, n):
                found = self.difference(self.rows[i], self.rows[j])
                raw[i, j] = math.nan if found is None else found.p_many
        above = np.triu_indices(n, 1)
        adjusted = holm([None if math.isnan(p) else p for p in raw[above].tolist()])
        raw[above] = [math.nan if p is None else p for p in adjusted]
        return raw

    @cached_property
    def _units(self) -> Array | None:
        """What each job has a unit [jobs, units], where all have scores of the same images: their differences at once."""
        scores = [summands(row, self.key) for row in self.rows]
        if not scores or len(scores[0]) < 2 or any(s.keys() != scores[0].keys() for s in scores):
            return None
        images = list(scores[0])
        table = np.array([[s[image] for image in images] for s in scores])
        prompts = [str(image[0]) for image in images]
        over = unit_of(prompts, self.rows[0].unit)
        if over == SEEDS:
            table, self._freedom = within_strata(table, prompts)
        if over != PROMPTS:
            return table
        names: dict[Hashable, int] = {}
        which = np.array([names.setdefault(prompt, len(names)) for prompt in prompts])
        return np.stack([table[:, which == unit].mean(1) for unit in range(len(names))], axis=1)

    # -- as good as the best

    def p_worse(self, rows: Sequence[Row], margin: Margin) -> list[float]:
        """For each of some jobs, P of the hypothesis that another of them is better by the margin or more.

        The largest over the others (an intersection-union test, Berger 1982). A setting may fail on a few pictures that are not
        among those there are, which no test of the others shows: so a margin is granted from `LEAST_UNITS` units on, and with one
        more unit in the sample on which the setting loses `FAILURE` standard deviation of the scores. Without a margin, a
        setting may be shown to be better than all others by any number of units.
        """
        top = self._value(self.best(rows))
        return [1.0 if self._loss(row, top, margin) > 0 else self._p_worse(row, rows, margin) for row in rows]

    def _p_worse(self, row: Row, rows: Sequence[Row], margin: Margin) -> float:
        others = [other for other in rows if other is not row and not same_pictures(row, other)]
        if not others:
            return 0.0
        if self._units is None:
            return max(self._p_of(row, other, margin) for other in others)
        places = [self._places[other] for other in others]
        losses = self.better * (self._units[places] - self._units[self._places[row]])
        better = p_not_below(losses, self._freedom)
        if losses.shape[1] < LEAST_UNITS:
            return float(better.max())
        sizes = np.array([[self.in_units(margin, self.values[place])] for place in places])
        if margin.relative:
            signs = np.sign([[self.values[place]] for place in places])
            losses = losses - margin.size * signs * self._units[places]
        else:
            losses = losses - sizes
        as_good = p_not_below(
            np.hstack([losses, self._failure - sizes]), None if self._freedom is None else self._freedom + 1
        )
        return float(np.minimum(better, as_good).max())

    @cached_property
    def _failure(self) -> float:
        """What a picture loses on which a setting fails."""
        return FAILURE * float(np.sqrt(self._units.var(1, ddof=1).mean())) if self._units is not None else 0.0

    def _p_of(self, row: Row, other: Row, margin: Margin) -> float:
        if (found := self.difference(other, row)) is None:
            return 1.0
        p = p_not_below_margin(found if self.better > 0 else found.flipped(), 0.0)
        if found.n < LEAST_UNITS:
            return p
        # the margin is taken off the better side, so that a share is one of the better number
        gap = contrast(row, other, self.key, self._times(other, margin))
        if gap is None:
            return p
        return min(
            p, p_not_below_margin(gap.flipped() if self.better > 0 else gap, 0.0 if margin.relative else margin.size)
        )

    def _times(self, other: Row, margin: Margin) -> float:
        """What the better number is multiplied with before another is held against it."""
        if not margin.relative:
            return 1.0
        return 1 - self.better * margin.size * math.copysign(1, self._value(other))

    def _loss(self, row: Row, top: float, margin: Margin) -> float:
        """By how much a job is measured worse than the best, less the margin."""
        return self.better * (top - self._value(row)) - self.in_units(margin, top)

    @staticmethod
    def in_units(margin: Margin, value: float) -> float:
        """A margin in the metric's unit, beside a number that is better."""
        return margin.size * abs(value) if margin.relative else margin.size

    def units_needed(self, row: Row, rows: Sequence[Row], margin: Margin) -> tuple[int | None, int]:
        """Units at which a job would be known to be as good as the others, were the measured differences the true ones, with a
        power of 0.8; None beyond ten million, or if it is measured worse by the margin. And the units there are.
        """
        wanted, there = LEAST_UNITS, 0
        for other in rows:
            if other is row:
                continue
            found = self.difference(other, row)
            if found is None:
                return None, there
            there = max(there, found.n)
            room = self.in_units(margin, self._value(other)) - self.better * found.value
            if room <= 0:
                return None, found.n
            count = self._needed(room, found.deviation, len(rows) - 1)
            if count is None:
                return None, found.n
            wanted = max(wanted, count)
        return max(wanted, there + 1), there

    def _needed(self, room: float, deviation: float, tests: int) -> int | None:
        """Units of a one-sided test, with the failure that is added to them."""
        count: int | None = LEAST_UNITS
        for _ in range(20):
            assert count is not None
            left = room - self._failure / count
            if left <= 0:
                count *= 2
                continue
            spread = math.hypot(deviation, self._failure / math.sqrt(count))
            count = needed(left, spread, alpha=2 * ALPHA / max(1, tests))
            if count is None:
                return None
        return count

    def _value(self, row: Row) -> float:
        return self.values[self._places[row]]


def as_good(p_worse: Sequence[Sequence[float]]) -> list[bool]:
    """Which of some jobs are known to be as good as the best, by each of some metrics: that an unfit one is among them has a
    probability of at most `ALPHA`, however many jobs there are. The largest P over the metrics, and Holm over the jobs, of which
    the best is as good as the best, so that there is one less to be wrong about (Shaffer 1986).

    Args:
        p_worse: a list a metric, of `Pairs.p_worse`.
    """
    of_jobs = [max(of_job) for of_job in zip(*p_worse, strict=True)]
    count, good = len(of_jobs), [False] * len(of_jobs)
    for rank, place in enumerate(sorted(range(count), key=lambda place: of_jobs[place])):
        if of_jobs[place] * max(1, min(count - 1, count - rank)) > ALPHA:
            break
        good[place] = True
    return good


def same_pictures(a: Row, b: Row) -> bool:
    """Whether two jobs made the same images, byte for byte."""
    mine, theirs = ([image.sha256 for image in row.images] for row in (a, b))
    return bool(mine) and None not in mine and mine == theirs
