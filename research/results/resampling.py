"""Distances of a set of features to a reference, again and again with some of them left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

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
        groups: [N], which rows may be left out together: sums within a group are kept.
        biased: the V-statistic.
        times: what the metric multiplies it with.
    """

    def __init__(
        self, vectors: Array, real: Real, kernel: Kernel, groups: Rows, *, biased: bool = False, times: float = 1.0
    ) -> None:
        import torch

        x, y = torch.from_numpy(vectors), torch.from_numpy(real.vectors)
        own, crossed, self.diagonal = np.empty(len(x)), np.empty(len(x)), np.empty(len(x))
        together = np.zeros(int(groups.max()) + 1)
        for start in range(0, len(x), 1024):
            part = slice(start, min(start + 1024, len(x)))
            block = kernel(x[part], x).numpy()
            here = np.arange(part.start, part.stop)
            self.diagonal[part] = block[here - start, here]
            own[part] = block.sum(1) - self.diagonal[part]
            alike = (groups[part, None] == groups[None]) & (here[:, None] != np.arange(len(x))[None])
            together += np.bincount(groups[part], weights=(block * alike).sum(1), minlength=len(together))
            crossed[part] = sum(kernel(x[part], other).sum(1).numpy() for other in y.split(4096)) / len(y)
        self.own, self.crossed, self.together, self.groups = own, crossed, together, groups
        m = len(y)
        self.of_real = real.whole / m**2 if biased else real.apart / (m * (m - 1))
        self.biased, self.times = biased, times

    def without(self, rows: Rows) -> float:
        """With no rows, or all of one group, left out."""
        count = len(self.own) - len(rows)
        if count < 2:
            return math.nan
        inside = self.own.sum() - 2 * self.own[rows].sum() + (self.together[self.groups[rows[0]]] if len(rows) else 0.0)
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
        without: [G].
        left_out: [G], units in each group.
        least: units from which on an interval can be trusted.
    """

    full: float
    without: Array
    left_out: tuple[int, ...]
    least: int = 0


def least_units(units: int, count: int, dimension: int, *, frechet: bool) -> int:
    """Units from which on a distance of sets can be judged, of so many with so many images in all.

    With fewer than D / 2 images a Frechet distance keeps bias that leaving images out does not take away.
    """
    return max(LEAST, math.ceil((dimension / 2 if frechet else 0.0) * units / count))


def group_units(n: int, size: int, seed: int) -> Rows:
    """A group for each of n units: groups of one, or as many random ones of about the same size as the cost of each allows.

    Args:
        size: rows of the matrix whose eigenvalues one value costs; 0 where it costs none.
    """
    most = 400 if size <= 256 else 160 if size <= 512 else 40
    if size == 0 or n <= most:
        return np.arange(n)
    return np.random.default_rng(seed).permutation(np.arange(n) % most)


def replicate(distances: Sequence[Distance], rows: Sequence[Rows], groups: Rows) -> Replicates:
    """The mean of distances, over cells, of all units and with each group of units left out of all of them.

    Args:
        distances: one a cell.
        rows: for each cell, the unit of each of its rows.
        groups: the group of each unit.
    """
    count = int(groups.max()) + 1
    nothing: Rows = np.empty(0, dtype=np.intp)
    values = np.empty((len(distances), count))
    wholes = []
    for place, (distance, units) in enumerate(zip(distances, rows, strict=True)):
        whole = distance.without(nothing)
        wholes.append(whole)
        order = np.argsort(groups[units], kind="stable")
        edges = np.searchsorted(groups[units][order], np.arange(count + 1))
        for group in range(count):
            out = order[edges[group] : edges[group + 1]]
            values[place, group] = distance.without(out) if len(out) else whole
    sizes = np.bincount(groups, minlength=count)
    return Replicates(float(np.mean(wholes)), values.mean(0), tuple(int(size) for size in sizes))
