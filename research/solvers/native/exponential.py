"""Exponential integrators in half-log-SNR: the functions phi, and the weights of data predictions that they give.

With lambda the half log-SNR and ``f = 1 + tau^2`` (1 for the ODE), the step of ``h`` is, exactly,

    x' = kept * x + signal' * f * integral_0^h e^(-f (h - u)) D(lambda + u) du,

and a solver says what stands for D. Weights here are over ``1 - e^(-f h)``, so that they sum to 1 as `to_data` takes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from research.errors import ConfigError
from research.solvers.levels import Level

Noise = Literal["fresh", "brownian"]


def phi(k: int, z: float) -> float:
    """``phi_0 = e^z`` and ``phi_(k+1) = (phi_k - 1 / k!) / z`` (Hochbruck and Ostermann, Acta Numerica 2010, eq. 2.11)."""
    if abs(z) < 1.0:  # the recurrence is a difference of equals
        term, total, n = 1.0 / math.factorial(k), 0.0, 0
        while abs(term) > 1e-19:
            total += term
            n += 1
            term *= z / (n + k)
        return total
    value = math.exp(z)
    for j in range(k):
        value = (value - 1.0 / math.factorial(j)) / z
    return value


def adams_weights(places: Sequence[float], z: float) -> list[float]:
    """Weights, which sum to 1, of data predictions at parts of a step: those of the polynomial through them under the integral.

    Args:
        places: where they were made, in steps from the start: 0 is the start, 1 the end, negative the past; all differ.
        z: ``f h``, finite.
    """
    moments = [math.factorial(k) * phi(k + 1, -z) / phi(1, -z) for k in range(len(places))]
    weights = []
    for j, own in enumerate(places):
        others = [place for k, place in enumerate(places) if k != j]
        scale = math.prod(own - other for other in others)
        coefficients = np.poly(others)[::-1] / scale if others else np.array([1.0])  # lowest power first
        weights.append(float(sum(c * m for c, m in zip(coefficients, moments, strict=True))))
    return weights


def path_between(noise: Noise, start: Level, end: Level) -> tuple[float, float] | None:
    """The part of a Brownian path that the noise of a step is, or None where it is fresh; from noise alone it always is."""
    return (start.sigma, end.sigma) if noise == "brownian" and start.sigma < math.inf else None


def check_noise(noise: str) -> None:
    """Raise unless it is a kind of noise.

    Raises:
        ConfigError: it is something else.
    """
    if noise not in ("fresh", "brownian"):
        raise ConfigError(f"scheduler.options.noise: found {noise!r}; accepted are 'fresh' and 'brownian'.")


def check_part(key: str, value: float) -> None:
    """Raise unless an option is a part of a step, above 0 and at most 1.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"scheduler.options.{key}: found {value!r}; accepted are numbers above 0 and at most 1.")


def check_range(key: str, value: float, least: float = 0.0, most: float = math.inf) -> None:
    """Raise unless an option is a number in a range.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        upto = f" to {most:g}" if most < math.inf else " or more"
        raise ConfigError(f"scheduler.options.{key}: found {value!r}; accepted are numbers of {least:g}{upto}.")
