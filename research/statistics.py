"""Intervals, tests and sample sizes for differences of means and of statistics of sets. Needs numpy and scipy, never torch.

Which interval is used where, and why:

* A mean of paired differences: the BCa bootstrap (Efron 1987), which corrects bias and skewness; below `LEAST_FOR_BOOTSTRAP`
  differences, where a bootstrap is too narrow, and above `MOST_FOR_BOOTSTRAP`, where it changes nothing, the t interval.
* A distance of a set (FID, KID, CMMD): the delete-one (or delete-group) jackknife of the difference, corrected for bias. Images
  drawn with replacement repeat themselves, so a bootstrapped FID lies above the FID by about its own bias once more, and a
  percentile interval of it misses the truth. Leaving images out repeats none, and takes the bias of order 1/n away.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEAST_FOR_BOOTSTRAP, MOST_FOR_BOOTSTRAP = 20, 5_000
RESAMPLES = 9_999
_VALUES_AT_ONCE = 4_000_000
BCA, STUDENT, JACKKNIFE, WELCH, EXACT = "bootstrap BCa", "t", "jackknife", "Welch t", "exact"
MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class Estimate:
    """A difference and how sure it is.

    Attributes:
        value: the difference, corrected for bias where `method` is a jackknife.
        low, high: ends of the interval.
        se: standard error.
        p: two-sided, of no difference.
        n: independent units (images, prompts, runs or batches); the smaller number, of unpaired sides.
        freedom: degrees of freedom of the t distribution that `p` is from.
        method: one of this module's names.
    """

    value: float
    low: float
    high: float
    se: float
    p: float
    n: int
    freedom: float
    method: str

    @property
    def deviation(self) -> float:
        """What one unit contributes: the standard error at one."""
        return self.se * math.sqrt(self.n)

    def flipped(self) -> Estimate:
        """Of the sides the other way round."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)


def mean_difference(differences: Sequence[float] | Array, level: float = 0.95, seed: int = 0) -> Estimate | None:
    """The mean of paired differences [n], one an independent unit; None for fewer than two.

    Args:
        differences: finite.
        level: of the interval.
        seed: of the bootstrap.
    """
    d = np.asarray(differences, dtype=np.float64)
    n = len(d)
    if n < 2:
        return None
    mean, se = float(d.mean()), float(d.std(ddof=1) / math.sqrt(n))
    if se <= 1e-12 * max(1.0, abs(mean)):  # all the same: what is left is rounding
        return Estimate(mean, mean, mean, 0.0, 1.0 if mean == 0 else 0.0, n, n - 1, EXACT)
    estimate = _student(mean, se, n, n - 1, level, STUDENT)
    if not LEAST_FOR_BOOTSTRAP <= n <= MOST_FOR_BOOTSTRAP:
        return estimate
    ends = _bca(d, level, seed)
    return estimate if ends is None else replace(estimate, low=ends[0], high=ends[1], method=BCA)


def _bca(d: Array, level: float, seed: int) -> tuple[float, float] | None:
    """Ends of scipy's BCa interval of the mean; None where the data are too few-valued for one.

    Differences are put in a canonical order and sign first, so that the sides the other way round give the same interval.
    """
    d = np.sort(d)
    flip = float(np.median(d)) < 0 or (float(np.median(d)) == 0 and float(d.mean()) < 0)
    if flip:
        d = np.sort(-d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (d,),
            np.mean,
            vectorized=True,
            axis=-1,
            n_resamples=RESAMPLES if len(d) <= 2_000 else 1_999,
            batch=max(1, _VALUES_AT_ONCE // len(d)),
            confidence_level=level,
            method="BCa",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return (-high, -low) if flip else (low, high)


def jackknife(
    full: float, without: Sequence[float] | Array, left_out: Sequence[int], level: float = 0.95
) -> Estimate | None:
    """A statistic of a set, corrected for bias, from its values with one group of units left out at a time; None for < 3 groups.

    The delete-m_j jackknife (Busing, Meijer and van der Leeden 1999, eq. 6 and 7), which for groups of one is Quenouille's and
    Tukey's. Groups are random, so that each stands for the whole.

    Args:
        full: the statistic of all units.
        without: [G], with group g left out.
        left_out: [G], how many units each group has.
    """
    values, sizes = np.asarray(without, dtype=np.float64), np.asarray(left_out, dtype=np.float64)
    groups, n = len(values), float(sizes.sum())
    if groups < 3 or not (np.isfinite(values).all() and math.isfinite(full)):
        return None
    times = n / sizes
    corrected = groups * full - float(((1 - sizes / n) * values).sum())
    pseudo = times * full - (times - 1) * values
    variance = float(((pseudo - corrected) ** 2 / (times - 1)).mean())
    se = math.sqrt(variance)
    if se <= 1e-12 * max(1.0, abs(corrected)):
        value = 0.0 if abs(corrected) < 1e-9 else corrected  # what is left is rounding
        return Estimate(value, value, value, 0.0, float(value == 0), int(n), groups - 1, EXACT)
    return _student(corrected, se, int(n), groups - 1, level, JACKKNIFE)


def apart(a: Estimate, b: Estimate, level: float = 0.95) -> Estimate:
    """`b` less `a`, of sides that share nothing."""
    return _welch(b.value - a.value, a.se, a.freedom, b.se, b.freedom, min(a.n, b.n), level, b.method)


def welch(a: Sequence[float] | Array, b: Sequence[float] | Array, level: float = 0.95) -> Estimate | None:
    """The mean of `b` less that of `a`, unpaired and of unequal variances; None for fewer than two on a side."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if min(len(x), len(y)) < 2:
        return None
    errors = [float(v.std(ddof=1) / math.sqrt(len(v))) for v in (x, y)]
    value = float(y.mean() - x.mean())
    return _welch(value, errors[0], len(x) - 1, errors[1], len(y) - 1, min(len(x), len(y)), level, WELCH)


def _welch(
    value: float, se_a: float, df_a: float, se_b: float, df_b: float, n: int, level: float, method: str
) -> Estimate:
    se = math.hypot(se_a, se_b)
    if se == 0:
        return Estimate(value, value, value, 0.0, 1.0 if value == 0 else 0.0, n, df_a + df_b, EXACT)
    freedom = se**4 / (se_a**4 / df_a + se_b**4 / df_b)
    return _student(value, se, n, freedom, level, method)


def _student(value: float, se: float, n: int, freedom: float, level: float, method: str) -> Estimate:
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * se
    p = float(2 * stats.t.sf(abs(value) / se, freedom))
    return Estimate(value, value - half, value + half, se, p, n, freedom, method)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """P values adjusted for there being several (Holm 1979), each at most 1; those that are None stay and do not count."""
    order = sorted((value, place) for place, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    least = 0.0
    for rank, (value, place) in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * value))
        adjusted[place] = least
    return adjusted


def needed(effect: float, deviation: float, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Units at which a two-sided t test at `alpha` finds a true difference of `effect` with this power; None beyond ten million.

    ``n = ((z + z') s / d)^2`` (Lehr), with quantiles of t in place of those of the normal distribution.

    Args:
        effect: the difference.
        deviation: of the difference of one unit.
    """
    if effect == 0 or not math.isfinite(effect):
        return None
    if deviation == 0:
        return 2
    ratio = deviation / abs(effect)
    n = (float(stats.norm.isf(alpha / 2)) + float(stats.norm.ppf(power))) ** 2 * ratio**2
    for _ in range(20):  # the quantiles depend on n; this settles at once for all but a few units
        if n > MOST_IMAGES:
            return None
        freedom = max(1.0, n - 1)
        n = (n + (float(stats.t.isf(alpha / 2, freedom)) + float(stats.t.ppf(power, freedom))) ** 2 * ratio**2) / 2
    return max(2, math.ceil(n))


def resolvable(deviation: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that `n` units tell apart with this power."""
    freedom = max(1, n - 1)
    return (float(stats.t.isf(alpha / 2, freedom)) + float(stats.t.ppf(power, freedom))) * deviation / math.sqrt(n)
