"""What all grids of noise levels share: the range that a model knows, where a grid ends, and what no grid may hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from research.checks import check_choice, check_number, check_whole_number
from research.errors import ConfigError
from research.solvers.levels import Level, Levels, TrainedLevels

ENDS = ("zero", "smallest")
_ROUNDED = 0.01  # published tables and lists are rounded: so far past the model's range is its end


@dataclass(frozen=True)
class Range:
    """The levels between which a grid is laid.

    Attributes:
        low, high: sigmas, both finite.
        from_noise_alone: the grid begins at noise alone, which is infinitely far, and ``high`` stands for it in the curve.
    """

    low: float
    high: float
    from_noise_alone: bool = False


def shifted(trained: TrainedLevels, time: float) -> float:
    """A flow time in [0, 1] as the model's own schedule shifts it (arXiv:2403.03206, eq. 23)."""
    return trained.shift * time / (1.0 + (trained.shift - 1.0) * time)


def smallest(trained: TrainedLevels) -> float:
    """The smallest level that a model knows: that of timestep 0, for flow that of 1 as its schedule shifts it."""
    return shifted(trained, 1.0 / trained.n_timesteps) if trained.flow else trained.sigmas[0]


def largest_finite(trained: TrainedLevels) -> float:
    """The largest level at which something of the picture is left: for flow, and for a model of zero terminal SNR, the last
    but one."""
    if trained.flow:
        return shifted(trained, 1.0 - 1.0 / trained.n_timesteps)
    return max(sigma for sigma in trained.sigmas if sigma < math.inf)


def range_of(trained: TrainedLevels, low: float | None, high: float | None) -> Range:
    """The range of a grid: what the user says, or the model's own.

    Raises:
        ConfigError: beyond what the model knows, or upside down.
    """
    floor = 0.0 if trained.flow else trained.sigma_min
    for key, value in (("sigma_min", low), ("sigma_max", high)):
        if value is not None and not floor * (1 - _ROUNDED) <= value <= trained.sigma_max * (1 + _ROUNDED):
            raise ConfigError(f"sigmas.{key}: found {value:g}; accepted is what the model knows, {known(trained)}.")
    least = smallest(trained) if low is None else max(low, floor)
    if high is not None:
        found = Range(least, min(high, trained.sigma_max))
    elif trained.sigma_max == math.inf:
        found = Range(least, largest_finite(trained), True)
    else:
        found = Range(least, trained.sigma_max)
    if not found.low < found.high:
        raise ConfigError(
            f"sigmas.sigma_min: found {found.low:g} with sigma_max {found.high:g}; accepted is the smaller one."
        )
    return found


def known(trained: TrainedLevels) -> str:
    """The range of a model in words."""
    return (
        f"flow times above 0, up to {trained.sigma_max:g}"
        if trained.flow
        else (f"sigmas from {trained.sigma_min:.4g} to {trained.sigma_max:.5g}")
    )


def check_range(low: float | None, high: float | None) -> None:
    """Check the options ``sigma_min`` and ``sigma_max`` of a grid.

    Raises:
        ConfigError: no positive numbers.
    """
    for key, value in (("sigma_min", low), ("sigma_max", high)):
        if value is not None:
            check_number(f"sigmas.{key}", value, above=0.0, otherwise="null, the model's own")


def check_end(end: str) -> None:
    """Check the option ``end``.

    Raises:
        ConfigError: neither zero nor smallest.
    """
    check_choice("sigmas.end", end, ENDS)


def check_steps(steps: int) -> int:
    """Check a number of steps.

    Raises:
        ConfigError: no whole number from 1.
    """
    return check_whole_number("steps", steps, least=1)


def shares(steps: int, end: str) -> list[float]:
    """Even places from 0 to 1 where the curve of a grid is read.

    ``steps`` of them where zero comes after, so that the last before it is the curve's own end; ``steps + 1`` otherwise.
    """
    last = steps - 1 if end == "zero" else steps
    return [i / last if last else 0.0 for i in range(last + 1)]


def as_levels(
    name: str, sigmas: Sequence[float], trained: TrainedLevels, end: str, *, from_noise_alone: bool = False
) -> Levels:
    """Sigmas as the grid of a run; ``end="zero"`` puts the clean end after them.

    Raises:
        ConfigError: they are no levels of a run; see `check_sigmas`.
    """
    check_sigmas(name, sigmas, trained)
    low, high = (0.0, 1.0) if trained.flow else (trained.sigma_min, trained.sigma_max)
    found = [trained.at_sigma(sigma if sigma == 0 else min(max(sigma, low), high)) for sigma in sigmas]
    if from_noise_alone:
        found[0] = trained.at_sigma(1.0 if trained.flow else math.inf)
    return finished(name, found, trained, end)


def finished(name: str, found: Sequence[Level], trained: TrainedLevels, end: str) -> Levels:
    """Levels as the grid of a run, its end put after them where that is zero.

    Raises:
        ConfigError: fewer than two, or they do not fall.
    """
    grid = (*found, trained.clean()) if end == "zero" else tuple(found)
    levels = Levels(grid, trained, n_steps=len(grid) - 1)
    levels.check(name)
    for i in range(len(grid) - 1):
        if grid[i].sigma == grid[i + 1].sigma:
            raise ConfigError(
                f"sigmas: {name} has the level {grid[i].sigma:.4g} twice, at places {i + 1} and {i + 2}; accepted are levels "
                "that fall."
            )
    return levels


def check_sigmas(name: str, sigmas: Sequence[float], trained: TrainedLevels) -> None:
    """Raise unless a run of a model can visit these levels. Zero may be the last.

    Raises:
        ConfigError: one is no number, negative, beyond the model's range, not below the one before it, or zero before the end.
    """
    floor = 0.0 if trained.flow else trained.sigma_min * (1 - _ROUNDED)
    ceiling = trained.sigma_max * (1 + _ROUNDED)
    for i, sigma in enumerate(sigmas):
        where = f"sigmas: level {i + 1} of {name}"
        if isinstance(sigma, bool) or not isinstance(sigma, int | float) or math.isnan(sigma):
            raise ConfigError(f"{where}: found {sigma!r}; accepted is a number.")
        if sigma < 0:
            raise ConfigError(f"{where}: found {sigma:g}, which is negative; accepted are {known(trained)}.")
        if sigma == 0 and i < len(sigmas) - 1:
            raise ConfigError(f"{where}: found 0 before the end; accepted is 0 as the last alone.")
        if sigma != 0 and not floor <= sigma <= ceiling:
            raise ConfigError(
                f"{where}: found {sigma:g}, beyond what the model knows; accepted are {known(trained)}, and 0 at the end."
            )
        if i and sigma >= sigmas[i - 1]:
            how = "comes twice" if sigma == sigmas[i - 1] else f"rises from {sigmas[i - 1]:g}"
            raise ConfigError(f"{where}: found {sigma:g}, which {how}; accepted are levels that fall.")


def between(table: Sequence[float], count: int) -> list[float]:
    """So many levels evenly spread over the places of a table, linear in log-sigma between them."""
    found = []
    for i in range(count):
        place = i * (len(table) - 1) / (count - 1) if count > 1 else 0.0
        low = min(int(place), len(table) - 2)
        part = place - low
        found.append(math.exp((1 - part) * math.log(table[low]) + part * math.log(table[low + 1])))
    return found
