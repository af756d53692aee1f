"""How sure a number is, and whether two jobs can be told apart by it.

Intervals are at 95 %. Of a metric that is a mean over images it is the t interval of the mean; two jobs are compared by the
mean of their differences over the prompts and seeds they share (paired), whose interval is narrower, as what makes a prompt hard
is the same for both. Of a metric over a whole set (FID) it is what the metric itself says, and without that there is none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from research.results.read import Row

LEVEL = 0.95
_NAMED = ("interval", "ci", "ci95", "confidence_interval", "bootstrap")
_ENDS = (("low", "high"), ("lo", "hi"), ("lower", "upper"), ("ci_low", "ci_high"), ("ci95_low", "ci95_high"))


@dataclass(frozen=True)
class Interval:
    """Both ends at 95 %, in the metric's unit."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The mean difference of two jobs over `n` images with the same prompt and seed, and its interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def told_apart(self) -> bool:
        return not self.low <= 0 <= self.high


def interval(row: Row, key: str) -> Interval | None:
    """The interval of a metric of a job, or None if nothing in the record says how sure it is."""
    if ("interval", key) not in row.derived:
        row.derived["interval", key] = _interval(row, key)
    found: Interval | None = row.derived["interval", key]
    return found


def _interval(row: Row, key: str) -> Interval | None:
    value = row.metrics.get(key)
    if value is None or not math.isfinite(value):
        return None
    if (said := _said(row, key)) is not None:
        return said
    scores = list(_summands(row, key).values())
    if len(scores) > 1:
        return Interval(*_around(value, statistics.stdev(scores) / math.sqrt(len(scores)), len(scores)))
    error = row.metrics.get(f"{key}_se")
    if error is None or not math.isfinite(error):
        return None
    return Interval(*_around(value, error, max(2, row.n_images)))


def difference(a: Row, b: Row, key: str) -> Difference | None:
    """`a` less `b`, paired; None if fewer than two images share prompt and seed."""
    first, second = _summands(a, key), _summands(b, key)
    gaps = [score - second[image] for image, score in first.items() if image in second]
    if len(gaps) < 2:
        return None
    mean = statistics.fmean(gaps)
    return Difference(mean, *_around(mean, statistics.stdev(gaps) / math.sqrt(len(gaps)), len(gaps)), len(gaps))


def told_apart(a: Row, b: Row, key: str) -> bool | None:
    """Whether two jobs differ by more than chance: paired where they can be, else by intervals that do not overlap.

    None if it cannot be said, as one of them has no interval.
    """
    paired = difference(a, b, key)
    if paired is not None:
        return paired.told_apart
    one, other = interval(a, key), interval(b, key)
    if one is None or other is None:
        return None
    return one.high < other.low or other.high < one.low


def _summands(row: Row, key: str) -> Mapping[tuple[str, Any], float]:
    """Scores of the images whose mean the metric is; none where it is no such mean."""
    scores, value = row.scores.get(key, {}), row.metrics.get(key)
    if (
        not scores
        or value is None
        or not math.isclose(statistics.fmean(scores.values()), value, rel_tol=1e-3, abs_tol=1e-6)
    ):
        return {}
    return scores


def _around(mean: float, error: float, n: int) -> tuple[float, float]:
    half = _quantile(n - 1) * error
    return mean - half, mean + half


@lru_cache(maxsize=1024)
def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _said(row: Row, key: str) -> Interval | None:
    """The interval that the metric gives itself, in its info or as numbers of their own beside it."""
    info = row.result.metrics_info.get(key)
    found: list[Any] = [info.get(name) for name in _NAMED] if isinstance(info, Mapping) else []
    pairs = [_pair(f) for f in found]
    pairs += [_pair([row.metrics.get(f"{key}_{low}"), row.metrics.get(f"{key}_{high}")]) for low, high in _ENDS]
    return next((p for p in pairs if p is not None), None)


def _pair(found: Any) -> Interval | None:
    if isinstance(found, Mapping):
        return next((p for low, high in _ENDS if (p := _pair([found.get(low), found.get(high)])) is not None), None)
    if isinstance(found, Sequence) and not isinstance(found, str) and len(found) == 2:
        low, high = found
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in (low, high)):
            return Interval(float(low), float(high)) if low <= high else None
    return None
