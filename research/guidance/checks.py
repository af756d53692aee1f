"""Checks of settings that several methods share."""

from __future__ import annotations

import math
from numbers import Real

from research.errors import ConfigError


def checked_scale(scale: float, key: str = "guidance.scale") -> float:
    """``scale`` as a float, if it is a finite number.

    Raises:
        ConfigError: anything else, NaN and text included.
    """
    if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
        raise ConfigError(f"{key}: found {scale!r}; accepted is a finite number.")
    return float(scale)
