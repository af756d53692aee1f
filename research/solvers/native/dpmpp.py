"""DPM-Solver++, multistep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from research.checks import check_whole_number
from research.errors import ConfigError
from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update, to_data
from research.solvers.native.upstream_options import only_defaults


@dataclass(frozen=True)
class DPMpp(LinearSolver):
    """DPM-Solver++ (arXiv:2211.01095), multistep: algorithm 2 (2M) and its third order, and section 3.4's SDE kinds.

    With lambda the half log-SNR, ``h = lambda' - lambda`` and ``r = h_0 / h`` for the step before,

        x' = (noise' / noise) x + signal' (1 - e^-h) (D + (D - D_1) / (2 r))                            (2M)

    and the third order adds the second difference (DPM-Solver, arXiv:2206.00927, appendix B.2). The SDE kinds take ``1 -
    e^-2h``, keep ``e^-h`` less of the latents and add noise of standard deviation ``noise' sqrt(1 - e^-2h)``.

    With CFG++, of whose two data predictions D is the guided one and U the unconditional one, up to order 2 of the ODE,

        x' = signal' D + (noise' / noise) (x - signal U) + signal' (1 - e^-h) (U - U_1) / (2 r)

    (arXiv:2406.08070, official code for SDXL, where all but the leading term is unconditional; ComfyUI's
    ``sample_dpmpp_2m_cfg_pp`` has ``D - U_1``, which does not vanish with the step).

    Args:
        order: 1 to 3; lowered for the first steps and, where the end is clean, for the last.
        sde: solve the SDE.
        kind: how the second order uses the difference: "midpoint" as above, or "heun", the exponential integrator's own weight.
        lower_order_final: with fewer than 15 steps the last two are of lower order whatever the end.
        euler_at_final: the last step is of first order.
        clip: of data predictions, see `LinearSolver`.

    Raises:
        ConfigError: an option is none of these.
    """

    order: int = 2
    sde: bool = False
    kind: Literal["midpoint", "heun"] = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    clip: float | None = None
    levels_like = "DPMSolverMultistepScheduler"
    divides = True

    def __post_init__(self) -> None:
        check_options(self.order, self.kind)

    @property
    def claimed_order(self) -> int | None:
        return None if self.sde else min(self.order, 2)  # of the third order half the second difference is taken

    def order_at(self, levels: Levels, i: int) -> int:
        """The order of step ``i``: what there is to look back at, and less where the end asks for it."""
        order = min(self.order, i + 1)
        left = levels.steps - i
        few = self.lower_order_final and max(levels.n_steps, levels.steps) < 15
        if left == 1 and (few or self.euler_at_final or not levels[-1].noise or levels[-1].sigma == levels[-2].sigma):
            return 1
        return min(order, 2) if left == 2 and few else order

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        h = end.half_log_snr - start.half_log_snr
        weights = multistep_weights(
            [levels.half_log_snr(i - k) for k in range(self.order_at(levels, i))],
            h,
            2.0 if self.sde else 1.0,
            self.kind,
        )
        noise = end.noise * math.sqrt(-math.expm1(-2.0 * h)) if self.sde else 0.0
        step = to_data(start, end, weights, noise=noise)
        return step if self.sde or self.order > 2 else replace(step, lead=end.signal)

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> DPMpp | None:
        sde = solves_sde(config, step_options)
        if sde is None:
            return None
        return cls(
            order=int(config.get("solver_order", 2)),
            sde=sde,
            kind=config.get("solver_type", "midpoint"),
            lower_order_final=bool(config.get("lower_order_final", True)),
            euler_at_final=bool(config.get("euler_at_final", False)),
        )


def check_options(order: int, kind: str) -> None:
    """Raise a ConfigError for an order or a kind of the second order that DPM-Solver++ does not have."""
    check_whole_number("scheduler.options.order", order, least=1, most=3)
    if kind not in ("midpoint", "heun"):
        raise ConfigError(f"scheduler.options.kind: found {kind!r}; accepted are 'midpoint' and 'heun'.")


def solves_sde(config: Mapping[str, Any], step_options: Mapping[str, Any]) -> bool | None:
    """Whether diffusers' class of this config solves the SDE; None where it does what is not done here."""
    sde = {"dpmsolver++": False, "sde-dpmsolver++": True}.get(str(config.get("algorithm_type")))
    return None if step_options or not only_defaults(config, thresholding=False, variance_type=None) else sde


def multistep_weights(lambdas: list[float], h: float, factor: float, kind: str) -> dict[int, float]:
    """Weights, which sum to 1, of the data predictions at ``lambdas``, the newest first, for a step of ``h``.

    Args:
        factor: 1 for the ODE, 2 for the SDE: the step's own length in the exponent.
        kind: of the second order, see `DPMpp`.
    """
    if len(lambdas) == 1 or h == math.inf:
        return {0: 1.0}
    total = -math.expm1(-factor * h)
    # weights of the first and second derivative times h and h^2, over the step's total
    first = 1.0 - total / (factor * h)
    second = 1.0 / 2.0 - (factor * h - total) / (factor * h) ** 2
    r0 = (lambdas[0] - lambdas[1]) / h
    if r0 == math.inf:  # the level before had no signal, and its data prediction says nothing of the change
        return {0: 1.0}
    if len(lambdas) == 2:
        change = (0.5 if kind == "midpoint" else first / total) / r0
        return {0: 1.0 + change, 1: -change}
    r1 = (lambdas[1] - lambdas[2]) / h
    if r1 == math.inf:
        change = first / total / r0
        return {0: 1.0 + change, 1: -change}
    first, second = first / total, second / total
    # D1 = d0 + r0 / (r0 + r1) (d0 - d1), D2 = (d0 - d1) / (r0 + r1), with d0 = (D - D_1) / r0 and d1 = (D_1 - D_2) / r1
    near = first * (1.0 + r0 / (r0 + r1)) + second / (r0 + r1)
    far = first * r0 / (r0 + r1) + second / (r0 + r1)
    return {0: 1.0 + near / r0, 1: -near / r0 - far / r1, 2: far / r1}
