"""Parts of a run, counted in the user's steps: which of them a hook acts in."""

from __future__ import annotations

import math
import operator
from typing import Any

from research.errors import ConfigError
from research.sampling.state import Run
from research.sampling.timeline import Stage


class Window:
    """A part of the user's steps: step ``k`` of ``n``, counted from 0, is in it if ``lo <= k / n < hi``.

    Args:
        key: how messages call it.
        steps: ``(lo, hi)``, fractions from 0 to 1; equal ones are no step at all.

    Raises:
        ConfigError: not two numbers, or out of order or range.
    """

    def __init__(self, key: str, steps: Any = (0.0, 1.0)):
        try:
            low, high = (float(bound) for bound in steps)
            good = 0.0 <= low <= high <= 1.0
        except (TypeError, ValueError):
            good = False
        if not good:
            found = list(steps) if isinstance(steps, list | tuple) else steps
            raise ConfigError(f"{key}: found {found!r}; accepted are 0 <= lo <= hi <= 1.")
        self.key, self.low, self.high = key, low, high

    def __contains__(self, stage: Stage) -> bool:
        return self.low <= stage.step / stage.n_steps < self.high

    def warn_if_empty(self, run: Run) -> None:
        """Say so if no step of the run lies in a window that was meant to have some."""
        if self.low < self.high and not any(stage in self for stage in run.timeline):
            run.warn(f"{self.key}: no step of this run lies in [{self.low:g}, {self.high:g}); the hook did nothing.")


def first_of_step(run: Run, stage: Stage) -> bool:
    """Whether a stage is the first evaluation of its step. Second-order schedulers save the latents there and go on from them."""
    return stage.index == 0 or run.timeline[stage.index - 1].step != stage.step


def whole(key: str, value: Any, least: int, *, accepted: str = "") -> int:
    """``value`` as a whole number.

    Raises:
        ConfigError: it is none, or below ``least``.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ConfigError(f"{key}: found {value!r}; accepted is {accepted or f'a whole number from {least}'}.")
    return number


def real(key: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """``value`` as a finite number in a range, both ends included.

    Raises:
        ConfigError: it is none, or out of range.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not least <= value <= most:
        limits = f" from {least:g} to {most:g}" if math.isfinite(most) else f" from {least:g}"
        raise ConfigError(f"{key}: found {value!r}; accepted is a number{limits if math.isfinite(least) else ''}.")
    return float(value)
