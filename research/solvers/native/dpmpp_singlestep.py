"""DPM-Solver++, singlestep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update, to_data
from research.solvers.native.dpmpp import check_options, solves_sde


@dataclass(frozen=True)
class DPMppSinglestep(LinearSolver):
    """DPM-Solver++ (arXiv:2211.01095), algorithm 1 (2S) and DPM-Solver's third order, laid over a grid with an evaluation a
    level.

    Levels are taken in groups of ``order``: within a group the latents of its first level are led to the next levels with rising
    order, and the last of a group has the whole. So a step costs one evaluation, and it forgets at the end of a group.

    Args:
        order: 1 to 3.
        sde: solve the SDE.
        kind: "midpoint" or "heun", see `DPMpp`.
        lower_order_final: groups at the end are smaller, so that the last step is of first order.
        final_first_order: the last step is of first order whatever its group (where the end is clean).
        clip: of data predictions, see `LinearSolver`.

    Raises:
        ConfigError: an option is none of these.
    """

    order: int = 2
    sde: bool = False
    kind: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    final_first_order: bool = True
    clip: float | None = None
    levels_like = "DPMSolverSinglestepScheduler"
    divides = True

    def __post_init__(self) -> None:
        check_options(self.order, self.kind)

    def orders(self, levels: Levels) -> list[int]:
        """The order of each step."""
        steps, order = levels.steps, self.order
        found = [1 + i % order for i in range(steps)]
        if self.lower_order_final and order > 1 and steps % order == 0:
            found[-order:] = [1, 1] if order == 2 else [1, 2, 1]
        if self.final_first_order:
            found[-1] = 1
        # where a group begins without signal its data prediction says nothing of the change
        return [1 if levels[i - order + 1].half_log_snr == -math.inf else order for i, order in enumerate(found)]

    def update(self, levels: Levels, i: int) -> Update:
        order = self.orders(levels)[i]
        back = order - 1
        start, end = levels[i - back], levels[i + 1]
        h = end.half_log_snr - start.half_log_snr
        factor = 2.0 if self.sde else 1.0
        noise = end.noise * math.sqrt(-math.expm1(-2.0 * h)) if self.sde else 0.0
        ratios = [(levels.half_log_snr(i - k) - start.half_log_snr) / h for k in range(back)]  # newest first
        weights = _weights(ratios, h, factor, self.kind)
        return to_data(start, end, weights, noise=noise, back=back)

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> DPMppSinglestep | None:
        sde = solves_sde(config, step_options)
        if sde is None:
            return None
        return cls(
            order=int(config.get("solver_order", 2)),
            sde=sde,
            kind=config.get("solver_type", "midpoint"),
            lower_order_final=bool(config.get("lower_order_final", False)),
            final_first_order=config.get("final_sigmas_type", "zero") == "zero",
        )


def _weights(ratios: list[float], h: float, factor: float, kind: str) -> dict[int, float]:
    """Weights of the data predictions of a group, the newest first: of the levels at these parts of the step, and of its
    start."""
    if not ratios:
        return {0: 1.0}
    total = -math.expm1(-factor * h)
    first = 1.0 - total / (factor * h) if h < math.inf else 1.0
    if len(ratios) == 1:
        change = (0.5 if kind == "midpoint" else first / total) / ratios[0]
        return {0: change, 1: 1.0 - change}
    r0, r1 = ratios
    if kind == "midpoint":
        change = first / total / r0
        return {0: change, 1: 0.0, 2: 1.0 - change}
    first, second = first / total, (0.5 - (factor * h - total) / (factor * h) ** 2) / total
    # D1 = (r0 d1 - r1 d0) / (r0 - r1), D2 = 2 (d0 - d1) / (r0 - r1), with d1 = (D_1 - D_2) / r1 and d0 = (D_0 - D_2) / r0
    newest = (-first * r1 + 2.0 * second) / (r0 - r1) / r0
    middle = (first * r0 - 2.0 * second) / (r0 - r1) / r1
    return {0: newest, 1: middle, 2: 1.0 - newest - middle}
