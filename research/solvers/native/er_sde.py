"""ER-SDE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from research.checks import check_whole_number
from research.errors import ConfigError
from research.solvers.levels import Level, Levels
from research.solvers.linear import LinearSolver, Update, to_data
from research.solvers.native.exponential import Noise, check_noise, check_range, path_between

_NODES, _WEIGHTS = (array.tolist() for array in np.polynomial.legendre.leggauss(24))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700.0 else math.inf


# of r = noise / signal; the names are those of the paper's table of functions
_SCALERS: Mapping[str, Callable[[float], float]] = {
    "ode": lambda r: r,
    "sde": lambda r: r**2,
    "er_sde_1": lambda r: r * (_exp(-1.0 / r) + 10.0),
    "er_sde_2": lambda r: r**1.5,
    "er_sde_3": lambda r: r**2.5,
    "er_sde_4": lambda r: r**0.9 * math.log10(1.0 + 100.0 * r**1.5),
    "er_sde_5": lambda r: r * (_exp(r**0.3) + 10.0),
}


@dataclass(frozen=True)
class ERSDE(LinearSolver):
    """Extended reverse-time SDE solvers (arXiv:2309.06169, propositions 3 and 4, algorithms 1 to 3): with ``r = noise / signal``
    and a function ``phi`` that says how much noise there is, ``q = phi(r') / phi(r)`` and

        x' / signal' = q x / signal + (1 - q) D + sqrt(r'^2 - q^2 r^2) z + (r' - r + phi(r') I_0) D^(1) + ((r' - r)^2 / 2 +
        phi(r') I_1) D^(2),

    with differences of the data predictions behind and integrals ``I_k = integral of (s - r)^k / phi(s) ds`` from r' to r.

    Args:
        order: 1 to 3; the first steps have less, and the last, to a clean end, is of first order.
        scaler: phi by the names of the official code: "ode", "sde", or "er_sde_1" to "er_sde_5", the paper's choice.
        points: of the rectangles that published codes integrate by (the paper's 100, ComfyUI's 200), which ends its order; None
            is exact.
        s_noise: factor of the noise that is added.
        noise: "fresh", or "brownian", an increment of one path an image.

    Raises:
        ConfigError: an option is none of these.
    """

    order: int = 3
    scaler: Literal["ode", "sde", "er_sde_1", "er_sde_2", "er_sde_3", "er_sde_4", "er_sde_5"] = "er_sde_5"
    points: int | None = None
    s_noise: float = 1.0
    noise: Noise = "fresh"
    levels_like = "DPMSolverMultistepScheduler"
    divides = True

    def __post_init__(self) -> None:
        check_whole_number("scheduler.options.order", self.order, least=1, most=3)
        if self.scaler not in _SCALERS:
            raise ConfigError(f"scheduler.options.scaler: found {self.scaler!r}; accepted are {', '.join(_SCALERS)}.")
        if self.points is not None:
            check_whole_number("scheduler.options.points", self.points, least=1)
        check_range("s_noise", self.s_noise)
        check_noise(self.noise)

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        if not end.noise:
            return to_data(start, end, {0: 1.0})
        here, there = _ratio(start), _ratio(end)
        phi = _SCALERS[self.scaler]
        if here == math.inf:  # q is 0, and the noise what q * r leaves: all of it, or for the ODE none
            whole = self.scaler not in ("ode", "er_sde_4")
            return self._noised(to_data(start, end, {0: 1.0}, noise=end.noise if whole else 0.0), start, end)
        q = phi(there) / phi(here)
        added = end.signal * math.sqrt(max(there**2 - (q * here) ** 2, 0.0))
        data = {0: end.signal * (1.0 - q)}
        known = [_ratio(levels[i - k]) for k in range(min(self.order, i + 1))]
        known = [ratio for ratio in known if ratio < math.inf]
        for power in range(1, len(known)):
            integral = phi(there) * self._integral(phi, here, there, power - 1)
            factor = end.signal * ((there - here) ** power / math.factorial(power) + integral)
            # the divided difference of the last ones is the derivative over a factorial; I_1 is with the derivative itself
            for back, weight in enumerate(_differences(known[: power + 1])):
                data[back] = data.get(back, 0.0) + factor * math.factorial(power) * weight
        step = Update({0: end.signal / start.signal * q}, data, noise=added)
        return self._noised(step, start, end)

    def _noised(self, step: Update, start: Level, end: Level) -> Update:
        interval = path_between(self.noise, start, end) if step.noise else None
        return Update(step.latents, step.data, noise=self.s_noise * step.noise, interval=interval)

    def _integral(self, phi: Callable[[float], float], here: float, there: float, power: int) -> float:
        """The integral of ``(s - here)^power / phi(s)`` from ``there`` up to ``here``."""
        if self.points is not None:
            width = (here - there) / self.points
            places = [there + k * width for k in range(self.points)]
            return width * sum((s - here) ** power / phi(s) for s in places)
        middle, half = math.log(here * there) / 2.0, math.log(here / there) / 2.0
        total = 0.0
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):  # in log(s), in which 1 / phi is smooth
            s = math.exp(middle + half * node)
            total += weight * half * s * (s - here) ** power / phi(s)
        return total


def _ratio(level: Level) -> float:
    return level.noise / level.signal if level.signal else math.inf


def _differences(places: list[float]) -> list[float]:
    """Weights of values at ``places`` in their divided difference."""
    return [1.0 / math.prod(own - other for other in places if other != own) for own in places]
