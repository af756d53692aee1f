"""Restart sampling, with Heun's method inside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from research.checks import check_whole_number
from research.errors import ConfigError
from research.solvers.levels import Level, Levels
from research.solvers.linear import LinearSolver, StagePlan, after_noise, along
from research.solvers.native.exponential import check_range

_KEYS = ("lo", "hi", "times", "steps")


@dataclass(frozen=True)
class Restart(LinearSolver):
    """Restart (arXiv:2306.14878, algorithm 1): Heun's method over the grid; where it comes to the lower end of an interval of
    noise levels, latents are noised up to its upper end, ``x' = x + sqrt(hi^2 - lo^2) z`` in latents over their signal, and led
    down again by steps of the interval's own, so many times. Errors made
    above shrink by the noise, and those of the ODE stay small.

    An interval reaches from ``hi`` to the level of the grid nearest to ``lo``; between, levels are spaced as EDM does
    (arXiv:2206.00364, eq. 5, rho = 7). One that ends above the first level of the run, or beyond its last, does nothing.
    (`research.hooks.Restart` goes back over the levels of the run itself, with any memoryless solver.)

    Args:
        intervals: mappings of ``lo`` and ``hi`` (noise over signal, for flow models too), ``times`` (the paper's K), ``steps``.
        s_noise: factor of the noise that is added.

    Raises:
        ConfigError: an interval says something else, or a number is out of range.
    """

    intervals: tuple[Mapping[str, Any], ...] = ({"lo": 0.1, "hi": 2.0, "times": 1, "steps": 9},)
    s_noise: float = 1.0
    levels_like = "HeunDiscreteScheduler"

    def __post_init__(self) -> None:
        check_range("s_noise", self.s_noise)
        if not isinstance(self.intervals, Sequence) or isinstance(self.intervals, str):
            raise ConfigError(
                f"scheduler.options.intervals: found {self.intervals!r}; accepted is a list of intervals."
            )
        for k, interval in enumerate(self.intervals):
            key = f"scheduler.options.intervals[{k}]"
            if not isinstance(interval, Mapping) or sorted(interval) != sorted(_KEYS):
                raise ConfigError(f"{key}: found {interval!r}; accepted is a mapping of {', '.join(_KEYS)}.")
            check_range(f"intervals[{k}].lo", interval["lo"])
            check_range(f"intervals[{k}].hi", interval["hi"])
            if not 0 < interval["lo"] < interval["hi"]:
                raise ConfigError(
                    f"{key}: found lo={interval['lo']:g} and hi={interval['hi']:g}; accepted is 0 < lo < hi."
                )
            check_whole_number(f"{key}.times", interval["times"], least=0)
            check_whole_number(f"{key}.steps", interval["steps"], least=1)

    def __hash__(self) -> int:
        return hash((tuple(tuple(sorted(interval.items())) for interval in self.intervals), self.s_noise))

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        returns: dict[int, list[list[Level]]] = {}  # by the step after which they come: levels to walk, from the top
        for interval in self.intervals:
            lo, hi = _nearest(levels, interval["lo"]), levels.trained.at_half_log_snr(-math.log(interval["hi"]))
            if not levels.flow and hi.sigma > levels.trained.sigma_max:
                raise ConfigError(
                    f"scheduler.options.intervals: found hi={interval['hi']:g}; the model knows noise up to sigma "
                    f"{levels.trained.sigma_max:.4g}."
                )
            if lo and levels[lo].noise and hi.half_log_snr < levels[lo].half_log_snr:
                walk = _edm(levels, hi, levels[lo], interval["steps"])
                returns.setdefault(lo - 1, []).extend([walk] * interval["times"])
        stages: list[StagePlan] = []
        for i in range(levels.steps):
            stages += _heun(levels[i], levels[i + 1], i)
            for walk in returns.get(i, ()):
                last = stages[-1]
                update = after_noise(last.update, levels[i + 1], walk[0])
                stages[-1] = replace(last, update=replace(update, noise=self.s_noise * update.noise))
                for start, end in pairwise(walk):
                    stages += _heun(start, end, i)
        return stages


def _heun(start: Level, end: Level, i: int) -> list[StagePlan]:
    first = StagePlan(start, along(start, end, {0: 1.0}), i)
    if not end.noise or start.sigma == math.inf:
        return [first]
    return [first, StagePlan(end, along(start, end, {1: 0.5, 0: 0.5}, back=1), i)]


def _ratio(level: Level) -> float:
    return level.noise / level.signal if level.signal else math.inf


def _nearest(levels: Levels, ratio: float) -> int:
    """The place of the level nearest to a noise over signal, of those that have signal."""
    places = [i for i in range(len(levels)) if levels[i].signal]
    return min(places, key=lambda i: abs(_ratio(levels[i]) - ratio))


def _edm(levels: Levels, hi: Level, lo: Level, steps: int) -> list[Level]:
    """Levels from one to another in so many steps, evenly spaced in the seventh root."""
    first, last = _ratio(hi) ** (1.0 / 7.0), _ratio(lo) ** (1.0 / 7.0)
    inner = [(first + k / steps * (last - first)) ** 7.0 for k in range(1, steps)]
    return [hi, *(levels.trained.at_half_log_snr(-math.log(ratio)) for ratio in inner), lo]
