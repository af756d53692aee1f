"""Heun's method, with the churn of EDM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from research.solvers.levels import Levels
from research.solvers.linear import StagePlan, along
from research.solvers.native.euler import Churn


@dataclass(frozen=True)
class Heun(Churn):
    """Heun's method of order 2 in sigma (EDM, arXiv:2206.00364, algorithms 1 and 2): two evaluations a step, the last has one.

    ``x' = x + (sigma' - sigma) (d + d') / 2`` in latents over their scale, with the slope ``d'`` at the end of Euler's step.

    Args:
        s_churn, s_tmin, s_tmax, s_noise, clip: see `Churn`.
    """

    levels_like = "HeunDiscreteScheduler"

    @property
    def claimed_order(self) -> int | None:
        return None if self.s_churn else 2

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        asked = self.churned(levels)
        stages = []
        for i in range(levels.steps):
            start, end = asked[i], levels[i + 1]
            if not end.noise:
                stages.append(StagePlan(start, along(start, end, {0: 1.0}), i))
                continue
            stages.append(StagePlan(start, along(start, end, {0: 1.0}), i))
            update = along(start, end, {1: 0.5, 0: 0.5}, back=1)
            stages.append(StagePlan(end, self.raised(update, levels, asked, i + 1), i))
        return stages
