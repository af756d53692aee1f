"""Heun++."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from research.solvers.levels import Levels
from research.solvers.linear import StagePlan, Update, along
from research.solvers.native.euler import Churn


@dataclass(frozen=True)
class HeunPP2(Churn):
    """Heun's method with a third evaluation, a step further on (ComfyUI's ``sample_heunpp2``, by Carzit): with the slopes
    ``d_1, d_2, d_3`` at this level and at the next two, each reached by Euler's method,

        x' = x + (sigma' - sigma) ((1 - w_2 - w_3) d_1 + w_2 d_2 + w_3 d_3)

    where ``w_2 = sigma' / (3 sigma_0)``, ``w_3 = sigma'' / (3 sigma_0)`` and ``sigma_0`` is the run's first level. Three
    evaluations a step, the last but one has two (``w_2 = sigma' / (2 sigma_0)``), the last has one. Weights are not those of a
    method of higher order: the order is 1.

    Args:
        s_churn, s_tmin, s_tmax, s_noise: see `Churn`.
    """

    levels_like = "HeunDiscreteScheduler"

    @property
    def claimed_order(self) -> int | None:
        return None if self.s_churn else 1

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        asked = self.churned(levels)
        stages = []
        first = levels.sigma(0)

        def to_next(update: Update, i: int) -> Update:
            return self.raised(update, levels, asked, i + 1)

        for i in range(levels.steps):
            start, end, left = asked[i], levels[i + 1], levels.steps - i
            if left == 1 or start.sigma == math.inf:
                stages.append(StagePlan(start, to_next(along(start, end, {0: 1.0}), i), i))
                continue
            stages.append(StagePlan(start, along(start, end, {0: 1.0}), i))
            base = first if first < math.inf else levels.sigma(1)
            if left == 2:
                w2 = end.sigma / (2.0 * base)
                stages.append(StagePlan(end, to_next(along(start, end, {1: 1.0 - w2, 0: w2}, back=1), i), i))
                continue
            after = levels[i + 2]
            w2, w3 = end.sigma / (3.0 * base), after.sigma / (3.0 * base)
            stages.append(StagePlan(end, along(end, after, {0: 1.0}), i))
            whole = along(start, end, {2: 1.0 - w2 - w3, 1: w2, 0: w3}, back=2)
            stages.append(StagePlan(after, to_next(whole, i), i))
        return stages
