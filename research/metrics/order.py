"""The order of a solver, from its errors at several step counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from research.errors import ConfigError


@dataclass(frozen=True)
class Order:
    """The line ``log error = log constant - order * log steps``.

    Attributes:
        order: how fast the error falls: 1 for DDIM and Euler, 2 for Heun, where the steps are many enough.
        constant: the error at one step, by the line.
        se: standard error of the order from the scatter around the line; NaN for two step counts.
        r2: the part of the scatter that the line explains, at most 1.
    """

    order: float
    constant: float
    se: float
    r2: float

    def error(self, steps: float) -> float:
        """What the line says of a step count."""
        return self.constant * steps**-self.order


def fit_order(steps: Sequence[float], errors: Sequence[float]) -> Order:
    """The convergence order, by least squares in logarithms.

    Leave out step counts so few that the error does not fall yet, and errors so small that they are
    rounding or the reference's own.

    Args:
        steps: step counts (or NFE), two different ones at least, above 0.
        errors: one each, above 0 and finite.

    Raises:
        ConfigError: fewer, or numbers out of range.
    """
    if len(steps) != len(errors):
        raise ConfigError(
            f"fit_order: found {len(steps)} step counts and {len(errors)} errors; accepted is one error each."
        )
    for name, values in (("steps", steps), ("errors", errors)):
        for value in values:
            if not (0 < value < math.inf):
                raise ConfigError(f"fit_order: {name}: found {value!r}; accepted are finite numbers above 0.")
    if len(set(steps)) < 2:
        raise ConfigError(f"fit_order: steps: found {sorted(set(steps))}; accepted are two different ones at least.")
    x, y = [math.log(value) for value in steps], [math.log(value) for value in errors]
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((value - mean_x) ** 2 for value in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    off = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - mean_y) ** 2 for b in y)
    return Order(
        order=-slope,
        constant=math.exp(mean_y - slope * mean_x),
        se=math.sqrt(off / (n - 2) / spread) if n > 2 else math.nan,
        r2=1 - off / total if total else 1.0,
    )
