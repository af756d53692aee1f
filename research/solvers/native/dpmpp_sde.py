"""DPM-Solver++ for the SDE, singlestep, on a Brownian path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from research.solvers.levels import Level, Levels
from research.solvers.linear import LinearSolver, StagePlan, Update, along, to_data
from research.solvers.native.ancestral import ancestral


@dataclass(frozen=True)
class DPMppSDE(LinearSolver):
    """DPM-Solver++ (arXiv:2211.01095) for the SDE with a midpoint in log-SNR (k-diffusion's ``sample_dpmpp_sde`` at r = 1/2):
    two evaluations a step, the last has one. Noise is the increment of a Brownian path, so that other step counts follow the
    same path.

    Args:
        eta: how much of the noise is fresh.
        s_noise: factor of the noise that is added.
        clip: of data predictions, see `LinearSolver`.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    clip: float | None = None
    levels_like = "DPMSolverSDEScheduler"

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        stages = []
        for i in range(levels.steps):
            start, end = levels[i], levels[i + 1]
            if not end.noise:
                stages.append(StagePlan(start, along(start, end, {0: 1.0}), i))
                continue
            if start.half_log_snr == -math.inf:  # there is no half way from noise alone
                stages.append(StagePlan(start, self._to(start, end, 0), i))
                continue
            middle = levels.trained.at_half_log_snr((start.half_log_snr + end.half_log_snr) / 2)
            stages.append(StagePlan(start, self._to(start, middle, 0), i))
            stages.append(StagePlan(middle, self._to(start, end, 1), i))
        return stages

    def _to(self, start: Level, end: Level, back: int) -> Update:
        _, noise = ancestral(start, end, self.eta)
        step = to_data(start, end, {0: 1.0}, noise=noise, back=back)
        return replace(step, noise=self.s_noise * noise, interval=(start.sigma, end.sigma))

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> DPMppSDE | None:
        if set(step_options) - {"s_noise"} or config.get("noise_sampler_seed") is not None:
            return None
        return cls(s_noise=float(step_options.get("s_noise", 1.0)))
