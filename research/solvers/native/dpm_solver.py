"""DPM-Solver, singlestep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from research.checks import check_whole_number
from research.solvers.levels import Level, Levels
from research.solvers.linear import LinearSolver, StagePlan, Update, along
from research.solvers.native.exponential import check_part


@dataclass(frozen=True)
class DPMSolver(LinearSolver):
    """DPM-Solver-1, -2 and -3 (arXiv:2206.00927, eq. 3.7, algorithms 1 and 2): exponential Runge-Kutta on the predicted noise in
    half-log-SNR, with as many evaluations a step as the order. With ``h = lambda' - lambda`` and the noise e at the level,

        x' = (signal' / signal) x - noise' (e^h - 1) e                                                      (order 1, DDIM)

    and e at ``lambda + r1 h`` in its place (order 2, r1 = 1/2), or corrected by
    ``(e_2 - e) / r2 * ((e^h - 1) / h - 1)`` (order 3). A step to a clean end or from noise alone is of first order.

    Args:
        order: 1 to 3.
        r1, r2: parts of the step at which the second and third evaluation are made; None is 1/2, and 1/3 and 2/3 at order 3.

    Raises:
        ConfigError: an option is none of these.
    """

    order: int = 2
    r1: float | None = None
    r2: float | None = None
    levels_like = "DPMSolverSinglestepScheduler"

    @property
    def claimed_order(self) -> int | None:
        return self.order

    def __post_init__(self) -> None:
        check_whole_number("scheduler.options.order", self.order, least=1, most=3)
        for key, value in (("r1", self.r1), ("r2", self.r2)):
            if value is not None:
                check_part(key, value)

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        stages = []
        for i in range(levels.steps):
            start, end = levels[i], levels[i + 1]
            here = start.half_log_snr
            h = end.half_log_snr - here
            if self.order == 1 or not 0.0 < h < math.inf:
                stages.append(StagePlan(start, along(start, end, {0: 1.0}), i))
                continue
            r1 = self.r1 or (1 / 2 if self.order == 2 else 1 / 3)
            second = levels.trained.at_half_log_snr(here + r1 * h) if r1 < 1 else end
            stages.append(StagePlan(start, along(start, second, {0: 1.0}), i))
            if self.order == 2:
                change = 0.5 / r1
                update = _by_noise([second, start], end, {0: change, 1: 1.0 - change}, h)
                stages.append(StagePlan(second, update, i))
                continue
            r2 = self.r2 or 2 / 3
            third = levels.trained.at_half_log_snr(here + r2 * h) if r2 < 1 else end
            change = r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1.0) / math.expm1(r2 * h)
            update = _by_noise([second, start], third, {0: change, 1: 1.0 - change}, r2 * h)
            stages.append(StagePlan(second, update, i))
            change = (math.expm1(h) / h - 1.0) / r2 / math.expm1(h)
            update = _by_noise([third, second, start], end, {0: change, 1: 0.0, 2: 1.0 - change}, h)
            stages.append(StagePlan(third, update, i))
        return stages


def _by_noise(asked: list[Level], end: Level, weights: Mapping[int, float], h: float) -> Update:
    """The step of ``h`` from the last of the levels asked at, the newest first, by an average of the noise predicted there."""
    back = len(asked) - 1
    latents = {back: end.signal / asked[back].signal}
    data = {}
    for key, weight in weights.items():
        factor = -end.noise * math.expm1(h) * weight
        latents[key] = latents.get(key, 0.0) + factor / asked[key].noise
        data[key] = -factor * asked[key].signal / asked[key].noise
    return Update(latents, data)
