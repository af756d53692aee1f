"""How many of the user's steps a strength keeps. Needs no torch, so that jobs can be checked before it is imported."""

from __future__ import annotations

import math
import numbers
from typing import Any

from research.errors import ConfigError


def kept_steps(steps: int, strength: float, *, parity: bool = False) -> int:
    """How many of ``steps`` user steps a strength in [0, 1] keeps.

    The product is rounded down after binary noise is removed, so that 0.29 of 100 steps is 29. With ``parity`` it is
    ``int(steps * strength)`` as in the diffusers Stable Diffusion pipelines (28).

    Raises:
        ConfigError: strength is not a number in [0, 1].
    """
    product = steps * checked(strength)
    return min(int(product if parity else math.floor(product + 1e-9 * steps)), steps)


def steps_needed(strength: float) -> int:
    """The smallest number of steps of which a strength above 0 keeps at least one."""
    return math.ceil(1.0 / strength - 1e-9)


def checked(strength: Any, key: str = "strength") -> float:
    """A strength as a float, be it Python's or numpy's.

    Raises:
        ConfigError: it is no number from 0 to 1; ``key`` is how the message calls it.
    """
    number = not isinstance(strength, bool) and isinstance(strength, numbers.Real)
    if not number or not 0.0 <= strength <= 1.0:  # NaN fails the comparison as well
        raise ConfigError(f"{key}: found {strength!r}; accepted is a number from 0 to 1.")
    return float(strength)
