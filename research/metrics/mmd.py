"""Maximum mean discrepancy between two sets of vectors (Gretton et al. 2012, lemma 6), in blocks and float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Kernel = Callable[[Tensor, Tensor], Tensor]
_BLOCK = 1024


def polynomial(dimension: int) -> Kernel:
    """``(x . y / D + 1)^3``, the kernel of KID (arXiv:1801.01401)."""
    return lambda x, y: (x @ y.T / dimension + 1) ** 3


def gaussian(bandwidth: float) -> Kernel:
    """``exp(-|x - y|^2 / (2 bandwidth^2))``."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
        return torch.exp(-squared.clamp(min=0) / (2 * bandwidth**2))

    return kernel


@dataclass(frozen=True)
class Discrepancy:
    """Estimates of MMD^2.

    Attributes:
        unbiased: the U-statistic; its mean over samples is the truth, so that it may come out below 0.
        biased: the V-statistic, never below 0.
        se: standard error of the unbiased one over the first set, from the delete-one jackknife; NaN for fewer than 3 vectors.
    """

    unbiased: float
    biased: float
    se: float


def within(y: Tensor, kernel: Kernel) -> tuple[float, float]:
    """Sums of the kernel over all pairs of vectors [M, D], and over those of different ones, for `discrepancy`."""
    y = y.double()
    total = float(_row_sums(y, y, kernel).sum())
    return total, total - float(_diagonal(y, kernel).sum())


def discrepancy(x: Tensor, y: Tensor, kernel: Kernel, within_y: tuple[float, float] | None = None) -> Discrepancy:
    """MMD^2 between vectors [N, D] and [M, D], with N and M at least 2; memory grows with N + M and not with their product.

    Args:
        x, y: the vectors.
        kernel: of this module.
        within_y: `within` of the second set, where it is known already.

    Raises:
        ValueError: fewer vectors.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"an unbiased estimate needs 2 vectors of each, found {n} and {m}")
    x, y = x.double(), y.double()
    xx, diagonal_x = _row_sums(x, x, kernel), _diagonal(x, kernel)
    whole_y, apart_y = within(y, kernel) if within_y is None else within_y
    xy = _row_sums(x, y, kernel)
    inside_x = xx - diagonal_x  # each with the others
    of_y = apart_y / (m * (m - 1))
    unbiased = float(inside_x.sum()) / (n * (n - 1)) + of_y - 2 * float(xy.sum()) / (n * m)
    biased = float(xx.sum()) / n**2 + whole_y / m**2 - 2 * float(xy.sum()) / (n * m)
    se = math.nan
    if n > 2:
        without = (inside_x.sum() - 2 * inside_x) / ((n - 1) * (n - 2)) + of_y - 2 * (xy.sum() - xy) / ((n - 1) * m)
        se = math.sqrt((n - 1) / n * float((without - without.mean()).square().sum()))
    return Discrepancy(unbiased, max(biased, 0.0), se)


def _row_sums(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """Sums over y of the kernel, [N]."""
    rows = []
    for block in x.split(_BLOCK):
        rows.append(torch.stack([kernel(block, other).sum(1) for other in y.split(_BLOCK)]).sum(0))
    return torch.cat(rows)


def _diagonal(x: Tensor, kernel: Kernel) -> Tensor:
    return torch.cat([kernel(block, block).diagonal() for block in x.split(_BLOCK)])
