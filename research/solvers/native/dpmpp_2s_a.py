"""DPM-Solver++(2S), two evaluations a step, with ancestral noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, StagePlan, to_data
from research.solvers.native.ancestral import ancestral, level_at
from research.solvers.native.exponential import check_range


@dataclass(frozen=True)
class DPMpp2SAncestral(LinearSolver):
    """DPM-Solver++(2S) (arXiv:2211.01095, algorithm 1, r = 1/2) to a level below the next, and fresh noise up to it
    (k-diffusion's ``sample_dpmpp_2s_ancestral``): two evaluations a step, the last has one.

    With lambda the half log-SNR and ``h = lambda_down - lambda``, ``u`` is led to ``lambda + h / 2`` by the data prediction, and
    ``x_down = (noise_down / noise) x + signal_down (1 - e^-h) D(u)``. From noise alone, where there is no half way, the step is
    of first order.

    With CFG++, of whose two data predictions D is the guided one and U the unconditional one, U alone leads to ``u``, and
    ``x_down = signal_down D(u) + (noise_down / noise) (x - signal U(u))`` (arXiv:2406.08070, official code). ComfyUI's
    ``sample_dpmpp_2s_ancestral_cfg_pp`` mixes the two.

    Args:
        eta: how much of the noise is fresh at each step; 0 is deterministic.
        s_noise: factor of the noise that is added.

    Raises:
        ConfigError: a number out of range.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    levels_like = "KDPM2AncestralDiscreteScheduler"

    @property
    def claimed_order(self) -> int | None:
        return None if self.eta else 2

    def __post_init__(self) -> None:
        check_range("eta", self.eta, most=1.0)
        check_range("s_noise", self.s_noise)

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        stages = []
        for i in range(levels.steps):
            start, end = levels[i], levels[i + 1]
            sigma, noise = ancestral(start, end, self.eta)
            down = level_at(levels.trained, sigma) if noise else end
            back = 0
            h = down.half_log_snr - start.half_log_snr
            if 0.0 < h < math.inf:
                middle = levels.trained.at_half_log_snr(start.half_log_snr + h / 2.0)
                stages.append(StagePlan(start, replace(to_data(start, middle, {0: 1.0}), lead=0.0), i))
                start, back = middle, 1
            last = replace(to_data(levels[i], down, {0: 1.0}, back=back), lead=down.signal)
            if noise:
                last = last.scaled(end.signal / down.signal, self.s_noise * noise)
            stages.append(StagePlan(start, last, i))
        return stages
