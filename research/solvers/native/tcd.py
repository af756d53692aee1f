"""Trajectory consistency distillation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update, after_noise, to_data
from research.solvers.native.upstream_options import only_defaults


@dataclass(frozen=True)
class TCD(LinearSolver):
    """Strategic stochastic sampling (Trajectory consistency distillation, arXiv:2402.19159, algorithm 4): DDIM's step to the
    timestep ``floor((1 - eta) t')`` below the next, and fresh noise up to ``t'``. The last step adds none.

    Args:
        eta: the paper's gamma, 0 to 1: how far below; 0 is deterministic.
        clip: of data predictions, see `LinearSolver`.
    """

    eta: float = 0.3
    clip: float | None = None
    levels_like = "TCDScheduler"

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        if i + 1 == levels.steps or not self.eta:
            return to_data(start, end, {0: 1.0})
        below = levels.trained.at_time(float(math.floor((1.0 - self.eta) * end.time)))
        return after_noise(to_data(start, below, {0: 1.0}), below, end)

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> TCD | None:
        if set(step_options) - {"eta"} or not only_defaults(config, thresholding=False):
            return None
        return cls(float(step_options.get("eta", 0.3)))
