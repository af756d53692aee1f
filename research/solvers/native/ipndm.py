"""Improved PNDM: multistep in sigma from the first step on, on even and on any levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from research.checks import check_whole_number
from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update, along
from research.solvers.native.pndm import ADAMS_BASHFORTH


@dataclass(frozen=True)
class IPNDM(LinearSolver):
    """Adams-Bashforth on slopes in sigma with the weights of an even grid (PNDM, arXiv:2202.09778, eq. 12, without its warm-up:
    DEIS, arXiv:2204.13902, appendix B, calls it iPNDM; as in DPM-Solver-v3's and diff-sampler's code). On levels that are not
    evenly spaced in sigma it is of order 2 at most.

    Args:
        order: 1 to 4 slopes; the first steps have less, and the last, to a clean end, has one.

    Raises:
        ConfigError: another order.
    """

    order: int = 4

    def __post_init__(self) -> None:
        check_whole_number("scheduler.options.order", self.order, least=1, most=4)

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        order = self.order_at(levels, i)
        return along(start, end, dict(enumerate(self.weights(levels, i, order))))

    def order_at(self, levels: Levels, i: int) -> int:
        """How many slopes step ``i`` has."""
        if not levels[i + 1].noise:
            return 1
        order = min(self.order, i + 1)
        while order > 1 and levels.sigma(i - order + 1) == math.inf:
            order -= 1
        return order

    def weights(self, levels: Levels, i: int, order: int) -> tuple[float, ...]:
        """Of the slopes, the newest first; they sum to 1, but see `IPNDMV`."""
        return ADAMS_BASHFORTH[order - 1]


@dataclass(frozen=True)
class IPNDMV(IPNDM):
    """`IPNDM` with weights for steps of any length (diff-sampler's ``ipndm_v``, Zhou et al., arXiv:2312.00094): those published,
    which from three slopes on are those of Adams-Bashforth where steps are alike, and near them elsewhere, so that the order is
    3 at most. (`research.solvers.native.lms.LMS` has the exact ones.)

    The four published weights sum to 1 only where the ratios of neighbouring steps are alike: the last has ``h1 / h2`` where the
    third difference has ``h2 / h3``. Elsewhere a step misses its level, on Stable Diffusion's own levels by 1.4 % at 5 steps and
    83 % at 25, which the linter says (`level-missed`); with ``order`` up to 3 they sum to 1 on any levels.

    Args:
        order: see `IPNDM`.
    """

    order: int = 4
    divides = True

    def weights(self, levels: Levels, i: int, order: int) -> tuple[float, ...]:
        if order == 1:
            return (1.0,)
        sigma = [levels.sigma(i + 1 - k) for k in range(order + 1)]
        h0, h1, *more = (sigma[k] - sigma[k + 1] for k in range(order))
        half = h0 / h1 / 2.0
        if order == 2:
            return 1.0 + half, -half
        h2 = more[0]
        second = (1.0 - h0 / (3.0 * (h0 + h1)) * (h0 * (h0 + h1)) / (h1 * (h1 + h2))) / 2.0
        near = h1 / h2
        if order == 3:
            return 1.0 + half + second, -half - (1.0 + near) * second, near * second
        h3 = more[1]
        third = (1.0 - h0 / (3.0 * (h0 + h1))) / 2.0 + (1.0 - h0 / (2.0 * (h0 + h1))) * h0 / (6.0 * (h0 + h1 + h2))
        third *= h0 * (h0 + h1) * (h0 + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        far = h1 * (h1 + h2) / (h2 * (h2 + h3))
        return (
            1.0 + half + second + third,
            -half - (1.0 + near) * second - (1.0 + near + far) * third,
            near * second + (near + far * (1.0 + h2 / h3)) * third,
            -third * far * near,
        )
