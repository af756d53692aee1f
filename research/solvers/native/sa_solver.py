"""SA-Solver."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from research.checks import check_whole_number
from research.errors import ConfigError
from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, StagePlan, to_data
from research.solvers.native.exponential import adams_weights, check_range
from research.solvers.native.unipc import from_corrected
from research.solvers.native.upstream_options import only_defaults


@dataclass(frozen=True)
class SASolver(LinearSolver):
    """The stochastic Adams method (arXiv:2309.05019, section 4 and algorithm 1, data prediction): with lambda the half log-SNR
    and a level of stochasticity ``tau``, which is constant over a step,

        x' = (noise' / noise) e^(-tau^2 h) x + signal' (1 + tau^2) integral_0^h e^(-(1 + tau^2)(h - u)) P(lambda + u) du + noise'
        sqrt(1 - e^(-2 tau^2 h)) z

    with the polynomial ``P`` through the last data predictions. The predictor (eq. 14) leads to the next level; the prediction
    there joins the polynomial and corrects the latents (eq. 17) before the next step, with the same noise and at no further
    evaluation. At order 2 weights are changed by O(h^3) as the official code does for few steps.

    Diffusers' class is this method to 1e-10 where its levels are float64. As it comes it computes weights in fp32, as differences
    of exponentials that cancel: at orders 2 by 1e-5 of the latents' spread at 50 steps, at orders 3 and 4 by 1e-4 at 20 steps and
    1e-2 at 50.

    Args:
        predictor_order: 1 to 4 (the official code has up to 3); lowered for the first steps and the last.
        corrector_order: 1 to 4, the prediction at the end counts; 0 does not correct.
        tau: between the two timesteps; 0 elsewhere, and 0 is the ODE.
        tau_from, tau_to: timesteps of 1,000, the higher first.
        lower_order_final: the last steps are of lower order.
        clip: of data predictions, see `LinearSolver`.

    Raises:
        ConfigError: an option is none of these.
    """

    predictor_order: int = 2
    corrector_order: int = 2
    tau: float = 1.0
    tau_from: float = 800.0
    tau_to: float = 200.0
    lower_order_final: bool = True
    clip: float | None = None
    levels_like = "SASolverScheduler"
    divides = True

    def __post_init__(self) -> None:
        check_whole_number("scheduler.options.predictor_order", self.predictor_order, least=1, most=4)
        check_whole_number("scheduler.options.corrector_order", self.corrector_order, least=0, most=4)
        check_range("tau", self.tau)
        if not self.tau_to <= self.tau_from:
            raise ConfigError(
                f"scheduler.options.tau_from: found {self.tau_from:g}, below tau_to={self.tau_to:g}; accepted is the higher "
                "timestep first."
            )

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        stages = []
        for i in range(levels.steps):
            start, end = levels[i], levels[i + 1]
            h = end.half_log_snr - start.half_log_snr
            tau = self._tau_at(levels, i)
            noise = end.noise * math.sqrt(-math.expm1(-2.0 * tau**2 * h)) if tau and end.noise else 0.0
            step = to_data(start, end, self._weights(levels, i, corrects=False), noise=noise)
            if self.corrector_order and i:
                step = from_corrected(step, self._correction(levels, i))
            # drawn also where tau is 0, so that the noise of a step is that of the official code
            stages.append(StagePlan(start, replace(step, noise=max(noise, sys.float_info.min) if self.tau else 0.0), i))
        return stages

    def _tau_at(self, levels: Levels, i: int) -> float:
        time = levels[i].time * 1000.0 / levels.trained.n_timesteps
        return self.tau if self.tau_to <= time <= self.tau_from else 0.0

    def _correction(self, levels: Levels, i: int) -> dict[int, float]:
        """What is added to the latents at level ``i``: factors of data predictions."""
        start, end, tau = levels[i - 1], levels[i], self._tau_at(levels, i - 1)
        h = end.half_log_snr - start.half_log_snr
        noise = end.noise * math.sqrt(-math.expm1(-2.0 * tau**2 * h)) if tau else 0.0
        found: dict[int, float] = {}
        for sign, corrects in ((1.0, True), (-1.0, False)):
            data = to_data(start, end, self._weights(levels, i - 1, corrects=corrects), noise=noise).data
            for back, factor in data.items():
                found[back + 1] = found.get(back + 1, 0.0) + sign * factor
        return found

    def _weights(self, levels: Levels, i: int, *, corrects: bool) -> dict[int, float]:
        """Weights of data predictions by how many evaluations behind level ``i``; -1 is that at the step's end."""
        left = levels.steps - i
        if corrects:
            order = min(self.corrector_order, i + 2, left + 1 if self.lower_order_final else 99)
        else:
            order = min(self.predictor_order, i + 1, left if self.lower_order_final else 99)
        here = levels.half_log_snr(i)
        h = levels.half_log_snr(i + 1) - here
        if not 0.0 < h < math.inf:
            return {0: 1.0}
        backs = range(-1, order - 1) if corrects else range(order)
        known = [back for back in backs if levels.half_log_snr(i - back) > -math.inf]
        z = (1.0 + self._tau_at(levels, i) ** 2) * h
        places = [(levels.half_log_snr(i - back) - here) / h for back in known]
        if len(places) == 2:  # the official code's change: z / 2 for the weight of the difference
            change = z / 2.0 / -math.expm1(-z) / (places[0] - places[1])
            newer, older = known
            return {newer: change + (0.0 if corrects else 1.0), older: -change + (1.0 if corrects else 0.0)}
        return dict(zip(known, adams_weights(places, z), strict=True))

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> SASolver | None:
        fits = only_defaults(
            config, thresholding=False, algorithm_type="data_prediction", tau_func=None, variance_type=None
        )
        if not fits or step_options:
            return None
        return cls(
            predictor_order=int(config.get("predictor_order", 2)),
            corrector_order=int(config.get("corrector_order", 2)),
            lower_order_final=bool(config.get("lower_order_final", True)),
        )
