"""DPM-Solver-2, deterministic and with ancestral noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, StagePlan, along
from research.solvers.native.ancestral import ancestral, level_at


@dataclass(frozen=True)
class DPM2(LinearSolver):
    """The midpoint method in sigma, its midpoint half way in log-sigma (EDM, arXiv:2206.00364, after DPM-Solver-2,
    arXiv:2206.00927, algorithm 1): two evaluations a step, the last has one.

    Args:
        eta: how much of the noise is fresh at each step; 0 is deterministic.
        s_noise: factor of the noise that is added.
        clip: of data predictions, see `LinearSolver`.
    """

    eta: float = 0.0
    s_noise: float = 1.0
    clip: float | None = None
    levels_like = "KDPM2DiscreteScheduler"

    @property
    def claimed_order(self) -> int | None:
        return None if self.eta else 2

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        stages = []
        for i in range(levels.steps):
            start, end = levels[i], levels[i + 1]
            sigma, noise = ancestral(start, end, self.eta)
            down = level_at(levels.trained, sigma)
            if not sigma:
                stages.append(StagePlan(start, along(start, end, {0: 1.0}), i))
                continue
            middle = levels.trained.at_sigma(math.sqrt(start.sigma * sigma))
            stages.append(StagePlan(start, along(start, middle, {0: 1.0}), i))
            last = along(start, down, {0: 1.0}, back=1)
            if noise:
                last = last.scaled(end.signal / down.signal, self.s_noise * noise)
            stages.append(StagePlan(middle, last, i))
        return stages

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> DPM2 | None:
        return None if step_options else cls()


@dataclass(frozen=True)
class DPM2Ancestral(DPM2):
    """`DPM2` to a level below the next, and fresh noise up to it (k-diffusion's ``sample_dpm_2_ancestral``).

    Args:
        eta, s_noise, clip: see `DPM2`.
    """

    eta: float = 1.0
    levels_like = "KDPM2AncestralDiscreteScheduler"
