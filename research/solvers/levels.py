"""Noise levels: one of them, the grid that a run visits, and what a model was trained on.

Latents at a level are ``x = signal * x0 + noise * epsilon``. Native solvers keep one scaling whatever the solver: models that
predict epsilon, x0 or v have ``signal**2 + noise**2 = 1`` (variance-preserving), models that predict flow ``signal + noise = 1``.
All numbers are Python floats, so float64.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, overload

from research.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Level:
    """One noise level, and what the model is told at it.

    Attributes:
        signal, noise: of the latents; (1, 0) is clean, signal 0 is noise alone.
        time: the timestep, whole or between two; at the end of a run nobody is told it.
    """

    signal: float
    noise: float
    time: float
    flow: bool = False

    @property
    def scale(self) -> float:
        """What latents are divided by to be those that sigma is about: signal, or for flow ``signal + noise``, which is 1."""
        return self.signal + self.noise if self.flow else self.signal

    @property
    def sigma(self) -> float:
        """``noise / signal``, infinite at signal 0; for flow the flow time ``noise / (signal + noise)``, from 1 to 0."""
        scale = self.scale
        return self.noise / scale if scale else math.inf

    @property
    def half_log_snr(self) -> float:
        """``log(signal / noise)``, the lambda of DPM-Solver (arXiv:2206.00927, section 3): -inf is noise alone, inf is clean."""
        if not self.noise:
            return math.inf
        return math.log(self.signal / self.noise) if self.signal else -math.inf


@dataclass(frozen=True)
class TrainedLevels:
    """The noise levels that a model was trained on, by timestep, and every level between two of them.

    Args:
        sigmas: ``noise / signal`` of timesteps 0, 1, ..., rising; empty for a flow model, whose level at ``time`` is
            ``noise = time / n_timesteps`` and whose signal is the rest.
        n_timesteps: how many there are.
        shift: of a flow model, what its own schedule is shifted by: ``t -> shift * t / (1 + (shift - 1) * t)``.
    """

    sigmas: tuple[float, ...]
    n_timesteps: int
    flow: bool = False
    shift: float = 1.0

    @cached_property
    def _logs(self) -> tuple[float, ...]:
        return tuple(
            math.log(sigma) if 0 < sigma < math.inf else math.copysign(math.inf, sigma - 1) for sigma in self.sigmas
        )

    @property
    def sigma_min(self) -> float:
        """The smallest level: that of timestep 0, for flow that of 1 (0 is clean)."""
        return 1.0 / self.n_timesteps if self.flow else self.sigmas[0]

    @property
    def sigma_max(self) -> float:
        """The largest level: infinite for a model trained at zero terminal SNR, 1 for flow."""
        return 1.0 if self.flow else self.sigmas[-1]

    def at_sigma(self, sigma: float) -> Level:
        """The level of a sigma; its timestep lies between the trained ones linearly in log-sigma (for flow: exactly).

        Levels beyond the trained range are told the timestep at its end.
        """
        if self.flow:
            return Level(1.0 - sigma, sigma, sigma * self.n_timesteps, True)
        if sigma == math.inf:
            return Level(0.0, 1.0, self.n_timesteps - 1.0)
        norm = math.hypot(1.0, sigma)
        return Level(1.0 / norm, sigma / norm, self._time_of(sigma))

    def at_half_log_snr(self, value: float) -> Level:
        """The level of a ``log(signal / noise)``."""
        ratio = math.exp(-value) if value > -700 else math.inf
        if not self.flow:
            return self.at_sigma(ratio)
        return self.at_sigma(ratio / (1.0 + ratio) if ratio < math.inf else 1.0)

    def at_time(self, time: float) -> Level:
        """The level of a timestep, whole or between two; -1 is clean."""
        if self.flow:
            return self.at_sigma(time / self.n_timesteps)
        if time < 0:
            return Level(1.0, 0.0, time)
        low = min(int(time), self.n_timesteps - 1)
        part = time - low
        if part <= 0 or low + 1 >= self.n_timesteps:
            return _with_time(self.at_sigma(self.sigmas[low]), float(low))
        log = self._logs[low] + part * (self._logs[low + 1] - self._logs[low])
        return _with_time(self.at_sigma(math.exp(log)), time)

    def clean(self) -> Level:
        """The end of a run: no noise is left."""
        return Level(1.0, 0.0, 0.0, self.flow)

    def _time_of(self, sigma: float) -> float:
        if sigma <= self.sigmas[0]:
            return 0.0
        if sigma >= self.sigmas[-1]:
            return self.n_timesteps - 1.0
        log = math.log(sigma)
        high = bisect_left(self._logs, log)
        low_log, high_log = self._logs[high - 1], self._logs[high]
        if high_log == math.inf:
            return float(high - 1)
        return high - 1 + (log - low_log) / (high_log - low_log)


def _with_time(level: Level, time: float) -> Level:
    return Level(level.signal, level.noise, time, level.flow)


@dataclass(frozen=True)
class Levels(Sequence[Level]):
    """The grid of a run: a level a step, and the one it ends at.

    Indexing gives a `Level`; ``levels[0]`` is where the first step begins, ``levels[-1]`` where the last one ends.

    Args:
        grid: at least two levels, each with less noise than the one before.
        trained: what lies between, for solvers that ask the model there.
        start_scale: what standard normal noise is multiplied by to be the start latents: 1, or the first level's noise.
        n_steps: the user's steps of the full schedule, of which these may be the last.
    """

    grid: tuple[Level, ...]
    trained: TrainedLevels
    start_scale: float = 1.0
    n_steps: int = field(default=-1)

    @overload
    def __getitem__(self, index: int) -> Level: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Level, ...]: ...
    def __getitem__(self, index: int | slice) -> Level | tuple[Level, ...]:
        return self.grid[index]

    def __len__(self) -> int:
        return len(self.grid)

    def __iter__(self) -> Iterator[Level]:
        return iter(self.grid)

    @property
    def steps(self) -> int:
        """How many steps are taken: one less than there are levels."""
        return len(self.grid) - 1

    @property
    def flow(self) -> bool:
        return self.trained.flow

    def half_log_snr(self, i: int) -> float:
        return self.grid[i].half_log_snr

    def sigma(self, i: int) -> float:
        return self.grid[i].sigma

    def last(self, kept: int) -> Levels:
        """The grid of the last ``kept`` steps."""
        return Levels(self.grid[self.steps - kept :], self.trained, self.start_scale, self.n_steps)

    def check(self, name: str, *, divides: bool = False) -> None:
        """Raise unless a run can walk over these levels.

        Args:
            name: of the solver or grid, for the message.
            divides: the solver divides by the distance of two levels, so none may come twice.

        Raises:
            ConfigError: fewer than two levels, one that is no number, rises, or comes twice where that matters.
        """
        if len(self.grid) < 2:
            raise ConfigError(
                f"sigmas: {name} has {len(self.grid)} levels; accepted are two or more, the last is the end."
            )
        for i, level in enumerate(self.grid):
            if not (math.isfinite(level.signal) and math.isfinite(level.noise)):
                raise ConfigError(
                    f"sigmas: level {i + 1} of {name}, t = {level.time:g}, is no number; another number of steps or other "
                    "noise levels may do."
                )
        last = len(self.grid) - 1
        for i in range(last):
            before, after = self.grid[i], self.grid[i + 1]
            if after.sigma > before.sigma:
                raise ConfigError(
                    f"sigmas: {name} rises from {before.sigma:.4g} to {after.sigma:.4g} at level {i + 2}; accepted are levels "
                    "that fall."
                )
            # the last step may stand still: nothing is divided by its length any more
            if divides and after.sigma == before.sigma and i + 1 < last:
                raise ConfigError(
                    f"sigmas: {name} visits the noise level {before.sigma:.4g} twice, at steps {i + 1} and {i + 2}, and divides "
                    "by their distance; accepted are fewer steps, or other noise levels."
                )


class Schedule(Protocol):
    """A way to choose the levels of a run, apart from the solver that walks them: those of `research.sigmas`, or one's own."""

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        """A grid of ``steps`` steps: that many levels and the end, which is the last.

        Raises:
            ConfigError: the grid cannot be had for this model or number of steps.
        """
        ...


def trained_levels(config: Mapping[str, Any], *, flow: bool = False) -> TrainedLevels:
    """The levels that a model of this scheduler config was trained on.

    Args:
        config: as a ``scheduler_config.json`` says it: betas and their schedule, ``rescale_betas_zero_snr``; for a flow model
            ``shift``.
        flow: the model predicts flow.
    """
    count = int(config.get("num_train_timesteps") or 1000)
    if flow:
        return TrainedLevels((), count, True, float(config.get("shift") or 1.0))
    from diffusers import DDIMScheduler

    known = {key: value for key, value in config.items() if not key.startswith("_")}
    bars = DDIMScheduler.from_config(known).alphas_cumprod.double().tolist()
    return TrainedLevels(tuple(math.sqrt((1.0 - bar) / bar) if bar > 0 else math.inf for bar in bars), count)
