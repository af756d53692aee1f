"""Linear multistep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.checks import check_whole_number
from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update, along

_NODES = (0.5 - math.sqrt(3.0) / 6.0, 0.5 + math.sqrt(3.0) / 6.0)  # Gauss-Legendre: exact up to the third degree


def integral_weights(nodes: list[float], start: float, end: float) -> list[float]:
    """Integrals from ``start`` to ``end`` of the Lagrange polynomials on at most four ``nodes``, divided by ``end - start``; they
    sum to 1."""
    places = [(node - start) / (end - start) for node in nodes]
    weights = []
    for j, own in enumerate(places):
        others = [place for k, place in enumerate(places) if k != j]
        weights.append(sum(math.prod((at - other) / (own - other) for other in others) for at in _NODES) / 2.0)
    return weights


@dataclass(frozen=True)
class LMS(LinearSolver):
    """The linear multistep method in sigma: the slopes of the last ``order`` levels are interpolated and integrated exactly
    (Adams-Bashforth on any grid; k-diffusion's ``sample_lms``).

    Args:
        order: 1 to 4; the first steps have less, as there is less to look back at.
        clip: of data predictions, see `LinearSolver`.

    Raises:
        ConfigError: another order.
    """

    order: int = 4
    clip: float | None = None
    levels_like = "LMSDiscreteScheduler"
    divides = True

    def __post_init__(self) -> None:
        check_whole_number("scheduler.options.order", self.order, least=1, most=4)

    @property
    def claimed_order(self) -> int | None:
        return self.order

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        order = min(self.order, i + 1)
        weights = integral_weights([levels.sigma(i - k) for k in range(order)], start.sigma, end.sigma)
        return along(start, end, dict(enumerate(weights)))

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> LMS | None:
        order = int(step_options.get("order", 4))
        return None if set(step_options) - {"order"} or not 1 <= order <= 4 else cls(order)
