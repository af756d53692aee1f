"""The project's intervals, paired differences, tests, corrections and sample sizes: report, comparison and studies call these and
compute none of their own. Needs numpy and scipy, never torch.

**The unit.** Images of one prompt are not independent: what makes a prompt hard is the same for all of them. Where there are
several prompts with several images, what was drawn at random is the prompt, and an interval over prompts says what other prompts
of the kind would give; else it is the image (`unit_of`). Asked for (``report.unit=seeds``), it is the seeds alone: the prompts
stay, and what their images differ by among themselves counts (stratified sampling; Cochran 1977, "Sampling techniques", ch. 5).

**A mean** (`mean`, `paired_difference`): Student's t over units, corrected for skewness by Hall's transformation, which needs no
resampling and gives the same interval each time. Coverage at a nominal 95 % by simulation (``python benchmarks/coverage.py``;
normal, heavy-tailed, skewed, bounded and two-peaked numbers, clustered or not, equal or unequal clusters): 93 to 97 % from 16
units on. Of 8 units it is 93 to 96 %, and down to 87 % where one unit in five lies far from the others. Plain t falls to 91 %
at 16 skewed units, BCa bootstrap intervals to 88 to 91 % at 16 units of any shape, and images of one prompt taken for
independent to below 70 %.

**A distance of a set** (FID, KID, CMMD): the delete-one (or delete-group) jackknife of the difference, corrected for bias. Images
drawn with replacement repeat themselves, so a bootstrapped FID lies above the FID by about its own bias once more, and a
percentile interval of it misses the truth. Leaving images out repeats none, and takes the bias of order 1/n away. What is left
out is a whole prompt, or one image of each where the prompts stay. Coverage of FID at 8 prompts with 16 images, of whose
features 10 to 70 % of the variance is the prompt's (``python benchmarks/coverage.py --sets``): 93 to 98 % over prompts and over
seeds, of a number and of a paired difference; taken for independent, the images gave 46 to 94 %.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from research.errors import UserError

Array = NDArray[np.float64]
LEVEL = 0.95
IMAGES, PROMPTS, SEEDS = "images", "prompts", "seeds"
SKEWED, STUDENT, JACKKNIFE, WELCH, EXACT = "t corrected for skewness", "t", "jackknife", "Welch t", "exact"
MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class Estimate:
    """A difference and how sure it is.

    Attributes:
        value: the difference, corrected for bias where `method` is a jackknife.
        low, high: ends of the interval.
        se: standard error.
        p: two-sided, of no difference; below 0.05 where the interval at 95 % leaves out 0.
        p_many: the same for a test among many, see `mean`.
        n: independent units (images, prompts, runs or batches); the smaller number, of unpaired sides.
        freedom: degrees of freedom of the t distribution that `p` is from.
        method: one of this module's names.
    """

    value: float
    low: float
    high: float
    se: float = math.nan
    p: float = math.nan
    n: int = 0
    freedom: float = math.nan
    method: str = ""
    p_many: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.p_many):
            object.__setattr__(self, "p_many", self.p)

    @property
    def told_apart(self) -> bool:
        """Of a difference: whether its interval leaves out 0."""
        return not self.low <= 0 <= self.high

    def shown(self, digits: int = 1, sign: str = "") -> str:
        """The value with the ends of its interval."""
        form = f"{sign}.{digits}f"
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"

    @property
    def deviation(self) -> float:
        """What one unit contributes: the standard error at one."""
        return self.se * math.sqrt(self.n)

    def flipped(self) -> Estimate:
        """Of the sides the other way round."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)


def unit_of(prompts: Sequence[str], asked: str = "") -> str:
    """What was drawn at random of images with these prompts, one each: `PROMPTS` where there are several prompts and several
    images of one, else `IMAGES`.

    Args:
        asked: `SEEDS` for what other seeds of these prompts would give, where several images of a prompt can say it. Of one image
            a prompt it stays `IMAGES`: other prompts too, and so too wide rather than too narrow.
    """
    counts = Counter(prompts)
    if len(counts) < 2 or max(counts.values()) < 2:
        return IMAGES
    return SEEDS if asked == SEEDS else PROMPTS


def read_unit(where: str, value: object) -> str:
    """``report.unit`` as it was written: `PROMPTS`, `SEEDS`, or an empty string where nothing is asked for.

    Raises:
        UserError: another word.
    """
    if value is None or value == "auto":
        return ""
    if value not in (PROMPTS, SEEDS):
        raise UserError(
            f"{where}: found {value!r}; accepted are {PROMPTS} (others of the kind), {SEEDS} (others, of these prompts), null."
        )
    return str(value)


def mean(
    values: Sequence[float] | Array,
    units: Sequence[Hashable] | None = None,
    level: float = LEVEL,
    bounds: tuple[float, float] | None = None,
    strata: Sequence[Hashable] | None = None,
) -> Estimate | None:
    """The mean of numbers with its interval over units; None for fewer than two units.

    A unit counts once, however many numbers it has. The interval is Hall's (1992, "On the removal of skewness by
    transformation", JRSS B 54): with T the studentised mean and a = skewness / (3 sqrt n), the monotone
    ``g(T) = T + a T^2 + a^2 T^3 / 3 + a / 2`` is compared with Student's t. Far out, where tests of many pairs look, skewness
    that few units happen to have makes P too small (of 20 equal settings of 12 units, two would be told apart in 13 % of sweeps):
    ``p_many`` is the larger of that and of Student's own.

    Args:
        values: [n], finite.
        units: [n], which unit each belongs to; each is one by itself by default.
        level: of the interval.
        bounds: that no value passes: the interval ends there at the latest. Equal values then have an interval too: with all of
            n units alike, a share of ``1 - ((1 - level) / 2)^(1 / n)`` of others may be anything within the bounds (the exact
            binomial bound of Clopper and Pearson 1934).
        strata: [n], in place of `units`: groups that stay (prompts), each with numbers drawn in it; see `within_strata`.
    """
    x = np.asarray(values, dtype=np.float64)
    if units is not None:
        x = _by_unit(x, units)
    n = len(x)
    freedom = n - 1
    if strata is not None and n:
        x, freedom = within_strata(x, strata)
    if n < 2 or freedom < 1:
        return None
    centre, se, a = (float(v) for v in _moments(x))
    if se == 0:
        low, high = centre, centre
        if bounds is not None:
            unseen = 1 - ((1 - level) / 2) ** (1 / n)
            low, high = (centre + unseen * (end - centre) if math.isfinite(end) else centre for end in bounds)
        return Estimate(centre, low, high, 0.0, 1.0 if centre == 0 else 0.0, n, freedom, EXACT)
    quantile = _t_quantile((1 + level) / 2, freedom)
    low, high = centre - _hall_inverse(quantile, a) * se, centre - _hall_inverse(-quantile, a) * se
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    p = 2 * _t_tail(abs(_hall(centre / se, a)), freedom)
    many = float(_largest(centre / se, a, freedom))
    return Estimate(centre, low, high, se, p, n, freedom, SKEWED, many)


def within_strata(x: Array, strata: Sequence[Hashable]) -> tuple[Array, int]:
    """Numbers [..., n] whose ordinary mean and standard error are those of a stratified sample, and their degrees of freedom.

    With N numbers, n_h of them in stratum h with mean m_h: ``m + (x - m_h) sqrt(n_h (N - 1) / ((n_h - 1) N))``, whose variance of
    the mean is ``sum_h (n_h / N)^2 s_h^2 / n_h`` (Cochran 1977, eq. 5.6); N less the strata are the degrees of freedom. Linear in
    x. Strata of one number are taken for one stratum together (collapsed strata, Cochran 1977, sec. 5A.12), which is wider.
    """
    which = strata_of(strata)
    count, total = int(which.max()) + 1, x.shape[-1]
    sizes = np.bincount(which, minlength=count)
    if total <= count:
        return x, total - count
    centres = np.stack([x[..., which == h].mean(-1) for h in range(count)], axis=-1)
    factor = np.sqrt(sizes * (total - 1) / ((sizes - 1) * total))
    return x.mean(-1)[..., None] + (x - centres[..., which]) * factor[which], total - count


def strata_of(strata: Sequence[Hashable]) -> NDArray[np.intp]:
    """The stratum of each unit, of two units at least if there are as many."""
    counts = Counter(strata)
    lonely = [name for name, n in counts.items() if n == 1]
    if len(lonely) == 1:  # with the smallest of the others
        lonely += (
            [min((name for name in counts if counts[name] > 1), key=counts.__getitem__)] if len(counts) > 1 else []
        )
    alone = set(lonely)
    places: dict[Hashable, int] = {}
    return np.array(
        [places.setdefault(None if name in alone else (name,), len(places)) for name in strata], dtype=np.intp
    )


def p_of_means(x: Array, freedom: int | None = None) -> Array:
    """``p_many`` of `mean` of each row of [m, n] units; 1 for fewer than two.

    Args:
        freedom: degrees of freedom, of `within_strata`; n - 1 by default.
    """
    n = x.shape[1]
    if n < 2:
        return np.ones(len(x))
    centre, se, a = _moments(x)
    exact = se == 0
    p = _largest(centre / np.where(exact, 1.0, se), a, n - 1 if freedom is None else freedom)
    return np.where(exact, (centre == 0).astype(np.float64), p)


def _largest(t: Any, a: Any, freedom: int) -> Any:
    """The larger two-sided P of Student's and of Hall's."""
    return 2 * special.stdtr(freedom, -np.minimum(abs(t), abs(_hall(t, a))))


def p_not_below(x: Array, freedom: int | None = None) -> Array:
    """One-sided P of the hypothesis that a mean is 0 or more, of each row of [m, n] units: small where it lies below.

    The larger of Student's and of Hall's, as ``p_many`` of `mean`. Rows whose units are all the same and below 0 have 0.

    Args:
        freedom: as of `p_of_means`.
    """
    n = x.shape[1]
    if n < 2:
        return np.ones(len(x))
    freedom = n - 1 if freedom is None else freedom
    centre, se, a = _moments(x)
    exact = se == 0
    t = centre / np.where(exact, 1.0, se)
    p = np.maximum(special.stdtr(freedom, t), special.stdtr(freedom, _hall(t, a)))
    return np.asarray(np.where(exact, (centre >= 0).astype(np.float64), p))


def _moments(x: Array) -> tuple[Array, Array, Array]:
    """Of the last axis, n long: the mean, its standard error (0 where all is equal but for rounding), and Hall's
    ``a = skewness / (3 sqrt n)``."""
    n = x.shape[-1]
    centre = x.mean(-1)
    away = x - centre[..., None]
    variance = (away**2).mean(-1)
    se = np.sqrt(variance / (n - 1))
    equal = se <= 1e-12 * np.maximum(1.0, abs(centre))
    skewness = (away**3).mean(-1) / np.where(equal, 1.0, variance) ** 1.5
    return centre, np.where(equal, 0.0, se), np.where(equal, 0.0, skewness / (3 * math.sqrt(n)))


def paired_difference(
    a: Mapping[Any, float], b: Mapping[Any, float], level: float = LEVEL, over: str | None = None
) -> Estimate | None:
    """The mean of ``a`` less ``b`` over the images that both have, with its interval; None for fewer than two units.

    Args:
        a, b: numbers by image; an image's key is a tuple that begins with its prompt.
        over: the unit, `IMAGES`, `PROMPTS` or `SEEDS`; as `unit_of` says by default.
    """
    keys = [key for key in a if key in b]
    prompts = [str(key[0]) for key in keys]
    units, strata = drawn(prompts, over or unit_of(prompts))
    return mean([a[key] - b[key] for key in keys], units, level, strata=strata)


def drawn(prompts: Sequence[str], over: str) -> tuple[Sequence[str] | None, Sequence[str] | None]:
    """``units`` and ``strata`` of `mean`, of images with these prompts.

    Args:
        over: as `unit_of` gives it.
    """
    return (prompts if over == PROMPTS else None), (prompts if over == SEEDS else None)


def _by_unit(x: Array, units: Sequence[Hashable]) -> Array:
    """The mean of each unit's numbers."""
    places: dict[Hashable, int] = {}
    which = np.array([places.setdefault(unit, len(places)) for unit in units], dtype=np.intp)
    return np.asarray(np.bincount(which, weights=x) / np.bincount(which)) if len(which) else x


def _hall(t: Any, a: Any) -> Any:
    return t + a * t**2 + a**2 * t**3 / 3 + a / 2


def _hall_inverse(y: float, a: float) -> float:
    """The T with ``_hall(T, a) = y``."""
    if abs(a) < 1e-8:
        return y
    return (float(np.cbrt(1 + 3 * a * (y - a / 2))) - 1) / a


@lru_cache(maxsize=4096)
def _t_quantile(p: float, freedom: float) -> float:
    return float(special.stdtrit(freedom, p))


def _t_tail(t: float, freedom: float) -> float:
    return float(special.stdtr(freedom, -t))


def p_not_below_margin(found: Estimate, margin: float) -> float:
    """One-sided P of the hypothesis that a difference is `margin` or more, by Student's t."""
    if found.se == 0:
        return float(found.value >= margin)
    return float(special.stdtr(found.freedom, (found.value - margin) / found.se))


def jackknife(
    full: float,
    without: Sequence[float] | Array,
    left_out: Sequence[int],
    level: float = LEVEL,
    *,
    times: int = 1,
    freedom: int | None = None,
) -> Estimate | None:
    """A statistic of a set, corrected for bias, from its values with one group of units left out at a time; None for < 3 groups.

    The delete-m_j jackknife (Busing, Meijer and van der Leeden 1999, eq. 6 and 7), which for groups of one is Quenouille's and
    Tukey's. Groups are random, so that each stands for the whole. Of a stratified sample a group has as many of each stratum.
    With few in a stratum there are few groups, which are drawn several times over: value and variance are the means, and with R
    times the degrees of freedom nu are ``1 / nu = 1 / freedom + (1 / (G - 1) - 1 / freedom) / R``, as their spread is.

    Args:
        full: the statistic of all units.
        without: [G], with group g left out; [R G] of R times.
        left_out: the same shape, how many units each group has.
        times: R.
        freedom: of all units, where there are several times.
    """
    values = np.asarray(without, dtype=np.float64).reshape(times, -1)
    sizes = np.asarray(left_out, dtype=np.float64).reshape(values.shape)
    groups, n = values.shape[1], float(sizes[0].sum()) if sizes.size else 0.0
    if groups < (3 if times == 1 else 2) or not (np.isfinite(values).all() and math.isfinite(full)):
        return None
    shares = n / sizes
    corrected = groups * full - ((1 - sizes / n) * values).sum(1)
    pseudo = shares * full - (shares - 1) * values
    variance = float(((pseudo - corrected[:, None]) ** 2 / (shares - 1)).mean())
    value, se, few = float(corrected.mean()), math.sqrt(variance), 1 / (groups - 1)
    if freedom is not None and times > 1:
        few = 1 / freedom + (few - 1 / freedom) / times
    if se <= 1e-12 * max(1.0, abs(value)):
        value = 0.0 if abs(value) < 1e-9 else value  # what is left is rounding
        return Estimate(value, value, value, 0.0, float(value == 0), int(n), 1 / few, EXACT)
    return _student(value, se, int(n), 1 / few, level, JACKKNIFE)


def apart(a: Estimate, b: Estimate, level: float = LEVEL) -> Estimate:
    """`b` less `a`, of sides that share nothing."""
    return _welch(b.value - a.value, a.se, a.freedom, b.se, b.freedom, min(a.n, b.n), level, b.method)


def welch(
    a: Sequence[float] | Array,
    b: Sequence[float] | Array,
    level: float = LEVEL,
    units: tuple[Sequence[Hashable] | None, Sequence[Hashable] | None] = (None, None),
    strata: tuple[Sequence[Hashable] | None, Sequence[Hashable] | None] = (None, None),
) -> Estimate | None:
    """The mean of `b` less that of `a`, unpaired and of unequal variances; None for fewer than two units on a side.

    Args:
        units, strata: of each side, as of `mean`.
    """
    means, errors, freedoms, counts = [], [], [], []
    for side, of, within in zip((a, b), units, strata, strict=True):
        x = np.asarray(side, dtype=np.float64)
        x = x if of is None else _by_unit(x, of)
        freedom = len(x) - 1
        if within is not None and len(x):
            x, freedom = within_strata(x, within)
        if freedom < 1:
            return None
        means.append(float(x.mean()))
        errors.append(float(x.std(ddof=1) / math.sqrt(len(x))))
        freedoms.append(freedom)
        counts.append(len(x))
    value = means[1] - means[0]
    return _welch(value, errors[0], freedoms[0], errors[1], freedoms[1], min(counts), level, WELCH)


def around(value: float, se: float, n: int, level: float = LEVEL) -> Estimate:
    """A number of which a record says its standard error and no more: Student's t interval with n - 1 degrees of freedom."""
    if se == 0:
        return Estimate(value, value, value, 0.0, float(value == 0), n, n - 1, EXACT)
    return _student(value, se, n, max(1, n - 1), level, STUDENT)


def _welch(
    value: float, se_a: float, df_a: float, se_b: float, df_b: float, n: int, level: float, method: str
) -> Estimate:
    se = math.hypot(se_a, se_b)
    if se == 0:
        return Estimate(value, value, value, 0.0, 1.0 if value == 0 else 0.0, n, df_a + df_b, EXACT)
    freedom = se**4 / (se_a**4 / df_a + se_b**4 / df_b)
    return _student(value, se, n, freedom, level, method)


def _student(value: float, se: float, n: int, freedom: float, level: float, method: str) -> Estimate:
    half = _t_quantile((1 + level) / 2, freedom) * se
    p = 2 * _t_tail(abs(value) / se, freedom)
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
    n = (float(special.ndtri(1 - alpha / 2)) + float(special.ndtri(power))) ** 2 * ratio**2
    for _ in range(20):  # the quantiles depend on n; this settles at once for all but a few units
        if n > MOST_IMAGES:
            return None
        freedom = max(1.0, n - 1)
        n = (n + (_t_quantile(1 - alpha / 2, freedom) + _t_quantile(power, freedom)) ** 2 * ratio**2) / 2
    return max(2, math.ceil(n))


def resolvable(deviation: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that `n` units tell apart with this power."""
    freedom = max(1, n - 1)
    return (_t_quantile(1 - alpha / 2, freedom) + _t_quantile(power, freedom)) * deviation / math.sqrt(n)
