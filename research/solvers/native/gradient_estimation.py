"""Gradient estimation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update, along
from research.solvers.native.exponential import check_range


@dataclass(frozen=True)
class GradientEstimation(LinearSolver):
    """Sampling as approximate gradient descent on the distance to the data (arXiv:2306.04848, algorithm 2): the step in sigma
    goes along ``gamma d + (1 - gamma) d_1``, slopes of this level and of the one before. (ComfyUI's
    ``sample_gradient_estimation``.)

    Args:
        gamma: 1 is Euler's method, 1.5 on even levels Adams-Bashforth of order 2, 2 the paper's.

    Raises:
        ConfigError: it is not a number of 1 or more.
    """

    gamma: float = 2.0

    @property
    def claimed_order(self) -> int | None:
        return 1

    def __post_init__(self) -> None:
        check_range("gamma", self.gamma, least=1.0)

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        if not i or not end.noise or levels.sigma(i - 1) == math.inf:
            return along(start, end, {0: 1.0})
        return along(start, end, {0: self.gamma, 1: 1.0 - self.gamma})
