"""The weak order of solvers that add noise, on Gaussian data, from their tables: no draws.

Mean and variance of what a solver samples are propagated exactly (`research.testing.moments`); their errors fall with the number
of steps as the weak order says for the test functions x and x^2. Nothing is shown for models that bend: there the order is
no higher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from experiments.orders.named import named
from research.solvers import LinearSolver
from research.solvers.native.dpm2 import DPM2Ancestral
from research.solvers.native.dpmpp import DPMpp
from research.solvers.native.dpmpp_2s_a import DPMpp2SAncestral
from research.solvers.native.dpmpp_3m_sde import DPMpp3MSDE
from research.solvers.native.dpmpp_sde import DPMppSDE
from research.solvers.native.er_sde import ERSDE
from research.solvers.native.euler_a import EulerAncestral
from research.solvers.native.sa_solver import SASolver
from research.solvers.native.seeds import SEEDS
from research.testing.gaussian import GaussianModel
from research.testing.moments import WeakError, weak_errors

CURVE = (60, 120, 240, 480)
_ROUNDING = 1e-12  # errors below are none: at tau = 1 the data prediction is a martingale, and all means are exact


def _er_sde_5(ratio: float) -> float:
    """tau^2 of ``phi = r (exp(r^0.3) + 10)``: ``r phi' / phi - 1``."""
    grown = math.exp(ratio**0.3)
    return 0.3 * ratio**0.3 * grown / (grown + 10.0)


@dataclass(frozen=True)
class Case:
    """A solver, what its source says of its convergence, and what is held of it here.

    Attributes:
        order: weak order that the test holds, of mean and variance.
        flow: the same on flow models, where it is another one.
        stochasticity: ``tau^2`` of the noise-to-signal ratio.
        kinds: models that it is so on.
        late: it shows its order with many steps.
    """

    solver: LinearSolver
    said: str
    order: int
    flow: int | None = None
    stochasticity: Callable[[float], float] = lambda ratio: 1.0
    kinds: Sequence[str] = ("epsilon", "flow")
    late: bool = False


def _quarter(ratio: float) -> float:
    return 0.25


def _half(ratio: float) -> float:
    return 0.5


_NONE = "nothing"
_SA = "strong: tau h + h^s (predictor of s steps)"
_SEEDS = "strong convergence"
_ER = "a one-step error of this order"


def _sa(predictor: int, corrector: int, tau: float) -> SASolver:
    return SASolver(predictor, corrector, tau=tau, tau_from=1000.0, tau_to=0.0, lower_order_final=False)


CASES: list[Case] = [
    Case(EulerAncestral(), _NONE, 1),
    Case(DPM2Ancestral(), _NONE, 1),
    Case(DPMpp2SAncestral(), _NONE, 1),
    Case(DPMppSDE(), _NONE, 2, flow=1),
    Case(DPMppSDE(eta=0.5), _NONE, 1, stochasticity=_quarter, kinds=("epsilon",)),
    Case(DPMpp(2, sde=True), _NONE, 2),
    Case(DPMpp3MSDE(order=1), _NONE, 1),
    Case(DPMpp3MSDE(order=2, eta=0.5), _NONE, 2, stochasticity=_half),
    Case(DPMpp3MSDE(), _NONE, 2, late=True),
    Case(DPMpp3MSDE(eta=0.5), _NONE, 2, stochasticity=_half, late=True),
    *(Case(ERSDE(order=order), _ER, min(order, 2), stochasticity=_er_sde_5) for order in (1, 2, 3)),
    Case(SEEDS(order=2), _SEEDS, 2),
    Case(SEEDS(order=2, eta=0.5), _SEEDS, 2, stochasticity=_half),
    Case(SEEDS(order=3), _SEEDS, 2, late=True),
    Case(SEEDS(order=3, eta=0.5), _SEEDS, 2, stochasticity=_half, late=True),
    Case(_sa(1, 0, 1.0), _SA, 1),
    *(Case(_sa(order, 0, 0.5), _SA, min(order, 2), stochasticity=_quarter, late=True) for order in (1, 2, 3)),
    Case(_sa(2, 2, 1.0), _SA, 2),
    Case(_sa(3, 3, 1.0), _SA, 2, late=True),
    Case(_sa(3, 4, 0.5), _SA, 2, stochasticity=_quarter, late=True),
]


def models() -> dict[str, GaussianModel]:
    """Gaussian data of several spreads, for a model of the noise and one of flow."""
    spread = torch.tensor([0.3, 0.8, 1.0, 2.0]).reshape(1, 2, 2)
    return {kind: GaussianModel(0.7, spread, (1, 2, 2), kind) for kind in ("epsilon", "flow")}  # type: ignore[arg-type]


def orders(steps: Sequence[int], errors: Sequence[WeakError]) -> tuple[float, float]:
    """The orders of mean and variance that the last two errors show; infinite where there is none left."""

    def order(before: float, after: float) -> float:
        return math.log(before / after) / math.log(steps[-1] / steps[-2]) if after > _ROUNDING else math.inf

    before, after = errors[-2], errors[-1]
    return order(before.mean, after.mean), order(before.variance, after.variance)


def measured() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table, and the numbers behind them."""
    rows: list[dict[str, Any]] = []
    numbers: list[dict[str, Any]] = []
    for case in CASES:
        row: dict[str, Any] = {"solver": named(case.solver), "its source says": case.said}
        for kind, model in models().items():
            if kind not in case.kinds:
                row[f"{kind}: mean"] = row[f"{kind}: variance"] = "-"
                continue
            found = weak_errors(case.solver, model, CURVE, stochasticity=case.stochasticity)
            mean, variance = orders(CURVE, found)
            row[f"{kind}: mean"], row[f"{kind}: variance"] = (
                "exact" if math.isinf(o) else f"{o:.2f}" for o in (mean, variance)
            )
            numbers += [
                {"solver": named(case.solver), "model": kind, "steps": n, "mean": e.mean, "variance": e.variance}
                for n, e in zip(CURVE, found, strict=True)
            ]
        rows.append(row)
    return rows, numbers
