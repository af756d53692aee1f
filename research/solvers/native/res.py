"""RES: exponential integrators that meet the order conditions, multistep and singlestep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from research.checks import check_whole_number
from research.errors import ConfigError
from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, StagePlan, Update, to_data
from research.solvers.native.exponential import adams_weights, check_part, phi


@dataclass(frozen=True)
class ResMultistep(LinearSolver):
    """Exponential Adams-Bashforth in half-log-SNR (Refined exponential solver, arXiv:2308.02157, section 3, multistep): the
    polynomial through the last data predictions is integrated exactly. In two steps, with ``c_2 = (lambda_1 - lambda) / h``,

        x' = (noise' / noise) x + signal' h ((phi_1 - phi_2 / c_2) D + (phi_2 / c_2) D_1),   phi at -h.

    (ComfyUI's ``sample_res_multistep`` is order 2.)

    Args:
        order: 1 to 3; the first steps have less, and the last, to a clean end, is of first order.

    Raises:
        ConfigError: another order.
    """

    order: int = 2
    levels_like = "DPMSolverMultistepScheduler"
    divides = True

    @property
    def claimed_order(self) -> int | None:
        return self.order

    def __post_init__(self) -> None:
        check_whole_number("scheduler.options.order", self.order, least=1, most=3)

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        h = end.half_log_snr - start.half_log_snr
        if not 0.0 < h < math.inf:
            return to_data(start, end, {0: 1.0})
        places = [(levels.half_log_snr(i - k) - start.half_log_snr) / h for k in range(min(self.order, i + 1))]
        known = [place for place in places if place > -math.inf]  # noise alone says nothing of the change
        return to_data(start, end, dict(enumerate(adams_weights(known, h))))


@dataclass(frozen=True)
class ResSinglestep(LinearSolver):
    """Exponential Runge-Kutta methods in half-log-SNR (Refined exponential solver, arXiv:2308.02157, section 3, singlestep;
    Hochbruck and Ostermann, SIAM J. Numer. Anal. 43, 2005, eq. 5.4 and 5.8): as many evaluations a step as the order.

    Order 2: ``b_2 = phi_2 / c_2``. Order 3, with ``gamma = (3 c_3^2 - 2 c_3) / (c_2 (2 - 3 c_2))``:
    ``a_32 = gamma c_2 phi_2(-c_2 h) + (c_3^2 / c_2) phi_2(-c_3 h)``, ``b_2 = gamma phi_2 / (gamma c_2 + c_3)`` and
    ``b_3 = phi_2 / (gamma c_2 + c_3)``. The last step, to a clean end, has one evaluation, and so has one from noise alone.

    Args:
        order: 2 or 3.
        c2, c3: parts of the step at which the second and third evaluation are made.

    Raises:
        ConfigError: an option is none of these, or no method has these parts.
    """

    order: int = 2
    c2: float = 0.5
    c3: float = 1.0
    levels_like = "DPMSolverSinglestepScheduler"

    @property
    def claimed_order(self) -> int | None:
        return self.order

    def __post_init__(self) -> None:
        check_whole_number("scheduler.options.order", self.order, least=2, most=3)
        check_part("c2", self.c2)
        check_part("c3", self.c3)
        if self.order == 3 and (abs(self.c2 - 2 / 3) < 1e-6 or abs(self._gamma() * self.c2 + self.c3) < 1e-6):
            raise ConfigError(
                f"scheduler.options.c2: found {self.c2:g} with c3={self.c3:g}; accepted are parts that have a third-order method "
                "(c2=1/2 and c3=1, or 1/3 and 2/3)."
            )

    def _gamma(self) -> float:
        return (3.0 * self.c3**2 - 2.0 * self.c3) / (self.c2 * (2.0 - 3.0 * self.c2))

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        stages = []
        for i in range(levels.steps):
            start, end = levels[i], levels[i + 1]
            h = end.half_log_snr - start.half_log_snr
            if not 0.0 < h < math.inf:
                stages.append(StagePlan(start, to_data(start, end, {0: 1.0}), i))
                continue
            second = levels.trained.at_half_log_snr(start.half_log_snr + self.c2 * h) if self.c2 < 1 else end
            stages.append(StagePlan(start, to_data(start, second, {0: 1.0}), i))
            whole = h * phi(1, -h)
            if self.order == 2:
                b2 = h * phi(2, -h) / self.c2 / whole
                stages.append(StagePlan(second, to_data(start, end, {0: b2, 1: 1.0 - b2}, back=1), i))
                continue
            third = levels.trained.at_half_log_snr(start.half_log_snr + self.c3 * h) if self.c3 < 1 else end
            gamma, c2, c3 = self._gamma(), self.c2, self.c3
            a32 = gamma * c2 * phi(2, -c2 * h) + c3**2 / c2 * phi(2, -c3 * h)
            a32 *= h / (c3 * h * phi(1, -c3 * h))
            stages.append(StagePlan(second, to_data(start, third, {0: a32, 1: 1.0 - a32}, back=1), i))
            b3 = h * phi(2, -h) / (gamma * c2 + c3) / whole
            weights = {0: b3, 1: gamma * b3, 2: 1.0 - b3 - gamma * b3}
            stages.append(StagePlan(third, to_data(start, end, weights, back=2), i))
        return stages
