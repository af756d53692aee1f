"""DEIS."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from research.checks import check_whole_number
from research.errors import ConfigError
from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update, along
from research.solvers.native.upstream_options import only_defaults

_NODES, _WEIGHTS = (array.tolist() for array in np.polynomial.legendre.leggauss(24))


@dataclass(frozen=True)
class DEIS(LinearSolver):
    """Diffusion exponential integrator sampler (arXiv:2204.13902), Adams-Bashforth: slopes of the last levels are interpolated
    by a polynomial, which is integrated over sigma (eq. 15 and section 3.4).

    Args:
        order: 1 to 3 slopes; the first steps have less.
        kind: what the polynomial is in: "logrho" (log-sigma, diffusers' choice), "tab" (the timestep) or "rhoab" (sigma).
        lower_order_final: with fewer than 15 steps the last two are of lower order.
        clip: of data predictions, see `LinearSolver`.

    Raises:
        ConfigError: an option is none of these.
    """

    order: int = 2
    kind: Literal["logrho", "tab", "rhoab"] = "logrho"
    lower_order_final: bool = True
    clip: float | None = None
    levels_like = "DEISMultistepScheduler"
    divides = True

    def __post_init__(self) -> None:
        check_whole_number("scheduler.options.order", self.order, least=1, most=3)
        if self.kind not in ("logrho", "tab", "rhoab"):
            raise ConfigError(f"scheduler.options.kind: found {self.kind!r}; accepted are 'logrho', 'tab' and 'rhoab'.")

    @property
    def claimed_order(self) -> int | None:
        return self.order

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        order, left = min(self.order, i + 1), levels.steps - i
        few = self.lower_order_final and max(levels.n_steps, levels.steps) < 15
        if left <= 2 and few:
            order = min(order, left)
        if not end.noise and self.kind == "logrho":  # log-sigma has no end there
            order = 1
        if start.sigma == math.inf or (order > 1 and levels.sigma(i - order + 1) == math.inf):
            order = 1
        if order == 1:
            return along(start, end, {0: 1.0})
        places: dict[str, Callable[[float], float]] = {
            "logrho": math.log,
            "tab": lambda sigma: levels.trained.at_sigma(sigma).time,
            "rhoab": lambda sigma: sigma,
        }
        place = places[self.kind]
        nodes = [place(levels.sigma(i - k)) for k in range(order)]
        return along(start, end, dict(enumerate(_averages(nodes, place, start.sigma, end.sigma))))

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> DEIS | None:
        fits = only_defaults(config, thresholding=False, algorithm_type="deis", solver_type="logrho")
        if not fits or step_options or not 1 <= int(config.get("solver_order", 2)) <= 3:
            return None
        return cls(int(config.get("solver_order", 2)), lower_order_final=bool(config.get("lower_order_final", True)))


def _averages(nodes: list[float], place: Callable[[float], float], start: float, end: float) -> list[float]:
    """Averages from ``start`` to ``end`` of the Lagrange polynomials on ``nodes`` in ``place``; by Gauss-Legendre quadrature."""
    averages = [0.0] * len(nodes)
    for x, weight in zip(_NODES, _WEIGHTS, strict=True):
        at = place(start + (end - start) * (x + 1.0) / 2.0)
        for j, own in enumerate(nodes):
            value = 1.0
            for k, other in enumerate(nodes):
                if k != j:
                    value *= (at - other) / (own - other)
            averages[j] += value * weight / 2.0
    return averages
