"""Distances of a set of features to a reference, again and again with some of them left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from research.statistics import LEVEL, SEEDS, Estimate, jackknife, strata_of

if TYPE_CHECKING:
    from research.metrics.mmd import Kernel

Array = NDArray[np.float64]
Rows = NDArray[np.intp]


LEAST = 8  # units of any set


class Distance(Protocol):
    """Of N vectors to a reference."""

    def without(self, rows: Rows) -> float:
        """The distance with these rows left out; NaN where fewer than two are left."""
        ...


class Frechet:
    """`research.metrics.frechet.frechet_distance` of vectors [N, D] to a Gaussian, from products that are made once.

    Leaving rows out costs the eigenvalues of one matrix of ``min(N, D)`` rows.
    """

    def __init__(self, vectors: Array, mean: Array, covariance: Array) -> None:
        values, basis = np.linalg.eigh(covariance)
        root = (basis * np.sqrt(values.clip(min=0))) @ basis.T
        centre = vectors.mean(0)
        self.shift, self.trace = centre - mean, float(np.trace(covariance))
        self.vectors = vectors - centre  # about their mean, or differences of large sums would count
        self.squares = (self.vectors**2).sum(1)
        self.seen = self.vectors @ root
        self.few = len(vectors) <= vectors.shape[1]
        self.products = self.seen @ self.seen.T if self.few else self.seen.T @ self.seen

    def without(self, rows: Rows) -> float:
        count = len(self.vectors) - len(rows)
        if count < 2:
            return math.nan
        mean = -self.vectors[rows].sum(0) / count  # all of them sum to zero
        spread = (self.squares.sum() - self.squares[rows].sum() - count * mean @ mean) / (count - 1)
        if self.few:
            left = np.delete(np.arange(len(self.vectors)), rows)
            inner = self.products[np.ix_(left, left)]
            inner = inner - inner.mean(0) - inner.mean(1)[:, None] + inner.mean()
        else:
            out, seen_mean = self.seen[rows], -self.seen[rows].sum(0) / count
            inner = self.products - out.T @ out - count * np.outer(seen_mean, seen_mean)
        crossed = np.sqrt(np.linalg.eigvalsh(inner / (count - 1)).clip(min=0)).sum()
        shift = self.shift + mean
        return float(shift @ shift + spread + self.trace - 2 * crossed)


@dataclass(frozen=True)
class Real:
    """A reference in a kernel's eyes: its vectors [M, D], and `research.metrics.mmd.within` of them."""

    vectors: Array
    whole: float
    apart: float


class Discrepancy:
    """`research.metrics.mmd.discrepancy` of vectors [N, D] to a reference, from sums of the kernel that are made once.

    Args:
        biased: the V-statistic.
        times: what the metric multiplies it with.
    """

    def __init__(self, vectors: Array, real: Real, kernel: Kernel, *, biased: bool = False, times: float = 1.0) -> None:
        import torch

        x, y = torch.from_numpy(vectors), torch.from_numpy(real.vectors)
        own, crossed, self.diagonal = np.empty(len(x)), np.empty(len(x)), np.empty(len(x))
        for start in range(0, len(x), 1024):
            part = slice(start, min(start + 1024, len(x)))
            block = kernel(x[part], x).numpy()
            here = np.arange(part.start, part.stop)
            self.diagonal[part] = block[here - start, here]
            own[part] = block.sum(1) - self.diagonal[part]
            crossed[part] = sum(kernel(x[part], other).sum(1).numpy() for other in y.split(4096)) / len(y)
        self.own, self.crossed, self.x, self.kernel = own, crossed, x, kernel
        m = len(y)
        self.of_real = real.whole / m**2 if biased else real.apart / (m * (m - 1))
        self.biased, self.times = biased, times

    def without(self, rows: Rows) -> float:
        count = len(self.own) - len(rows)
        if count < 2:
            return math.nan
        inside = self.own.sum() - 2 * self.own[rows].sum()
        if len(rows) > 1:
            out = self.x[rows]
            inside += float(self.kernel(out, out).sum()) - self.diagonal[rows].sum()
        crossed = (self.crossed.sum() - self.crossed[rows].sum()) / count
        if self.biased:
            inside += self.diagonal.sum() - self.diagonal[rows].sum()
            return self.times * max(0.0, float(inside / count**2 + self.of_real - 2 * crossed))
        return self.times * float(inside / (count * (count - 1)) + self.of_real - 2 * crossed)


@dataclass(frozen=True)
class Replicates:
    """A statistic of all units, and with each group of them left out.

    Attributes:
        full: of all.
        without: [R G].
        left_out: [R G], units in each group.
        least: units from which on an interval can be trusted.
        times: R, how often the groups were drawn.
        freedom: of all units, where that is not told by the groups.
    """

    full: float
    without: Array
    left_out: tuple[int, ...]
    least: int = 0
    times: int = 1
    freedom: int | None = None

    def estimate(self, level: float = LEVEL) -> Estimate | None:
        """The statistic, corrected for bias, with its interval; see `research.statistics.jackknife`."""
        return jackknife(self.full, self.without, self.left_out, level, times=self.times, freedom=self.freedom)

    def less(self, other: Replicates, share: float = 1.0, level: float = LEVEL) -> Estimate | None:
        """It less `share` times that of another sample, of the same units in the same groups."""
        full, without = self.full - share * other.full, self.without - share * other.without
        return replace(self, full=full, without=without).estimate(level)


def least_units(units: int, count: int, dimension: int, *, frechet: bool) -> int:
    """Units from which on a distance of sets can be judged, of so many with so many images in all.

    With fewer than D / 2 images a Frechet distance keeps bias that leaving images out does not take away.
    """
    return max(LEAST, math.ceil((dimension / 2 if frechet else 0.0) * units / count))


def _most(size: int) -> int:
    """How many values are made.

    Args:
        size: rows of the matrix whose eigenvalues one value costs; 0 where it costs none.
    """
    return 400 if size <= 256 else 160 if size <= 512 else 40


def group_units(n: int, size: int, seed: int) -> Rows:
    """A group for each of n units: groups of one, or as many random ones of about the same size as the cost of each allows.

    Args:
        size: rows of the matrix whose eigenvalues one value costs; 0 where it costs none.
    """
    most = _most(size)
    if size == 0 or n <= most:
        return np.arange(n)
    return np.random.default_rng(seed).permutation(np.arange(n) % most)


def groups_within(strata: Rows, size: int, seed: int) -> Rows:
    """Random groups [R, n] of n units, R times: as many as the smallest stratum has units, each with an equal share of every
    stratum, so that what is left has the strata in the shares of the whole.

    Args:
        strata: [n], the stratum of each unit; two units in each at least.
        size: as of `group_units`.
    """
    count, most = min(int(np.bincount(strata).min()), _most(size)), _most(size)
    times = max(1, min(-(-len(strata) // count), most // count))
    rng, found = np.random.default_rng(seed), np.empty((times, len(strata)), dtype=np.intp)
    for made in found:
        for stratum in range(int(strata.max()) + 1):
            inside = np.flatnonzero(strata == stratum)
            # what is left over of a stratum goes to groups at random, or the first would have it of all
            made[inside] = (rng.permutation(len(inside)) + rng.integers(count)) % count
    return found


def replicate(
    distances: Sequence[Distance], rows: Sequence[Rows], groups: Rows, freedom: int | None = None
) -> Replicates:
    """The mean of distances, over cells, of all units and with each group of units left out of all of them.

    Args:
        distances: one a cell.
        rows: for each cell, the unit of each of its rows.
        groups: the group of each unit; [R, units] of groups that are drawn R times.
        freedom: see `Replicates`.
    """
    draws = np.atleast_2d(groups)
    count = int(draws.max()) + 1
    nothing: Rows = np.empty(0, dtype=np.intp)
    wholes = [distance.without(nothing) for distance in distances]
    values = np.empty((len(distances), len(draws), count))
    for place, (distance, units) in enumerate(zip(distances, rows, strict=True)):
        for draw, of_units in enumerate(draws):
            order = np.argsort(of_units[units], kind="stable")
            edges = np.searchsorted(of_units[units][order], np.arange(count + 1))
            for group in range(count):
                out = order[edges[group] : edges[group + 1]]
                values[place, draw, group] = distance.without(out) if len(out) else wholes[place]
    sizes = np.concatenate([np.bincount(of_units, minlength=count) for of_units in draws])
    return Replicates(
        float(np.mean(wholes)),
        values.mean(0).ravel(),
        tuple(int(size) for size in sizes),
        times=len(draws),
        freedom=freedom,
    )


def replicate_over(
    over: str, prompts: Sequence[str], distances: Sequence[Distance], rows: Sequence[Rows], *, size: int, seed: int = 0
) -> Replicates:
    """`replicate` with the groups that a unit asks for.

    Args:
        over: of `research.statistics.unit_of`.
        prompts: of each unit (of images and of seeds, an image is one).
        distances, rows: as of `replicate`.
        size, seed: as of `group_units`.
    """
    if over != SEEDS:
        return replicate(distances, rows, group_units(len(prompts), size, seed))
    strata = strata_of(prompts)
    freedom = len(prompts) - int(strata.max()) - 1
    return replicate(distances, rows, groups_within(strata, size, seed), freedom)
