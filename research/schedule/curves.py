"""Noise schedules as numbers: over the timesteps a model was trained on, and over the steps that a scheduler takes.

All levels are given in the same three ways, whatever scaling the scheduler works in. With latents ``x = a * x0 + b * epsilon``:
``alphas_cumprod = a^2 / (a^2 + b^2)`` (the cumulative product of DDPM, arXiv:2006.11239, eq. 4), ``sigma = b / a`` (EDM,
arXiv:2206.00364), for flow matching the flow time ``b / (a + b)``, and ``log_snr = 2 log(a / b)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.errors import ConfigError
from research.sampling.timeline import Timeline

_FLOW_TIMESTEPS = 1000


@dataclass(frozen=True, slots=True)
class Level:
    """A noise level; infinite where there is no picture or no noise, NaN where it is not known."""

    alphas_cumprod: float
    sigma: float
    log_snr: float


@dataclass(frozen=True, slots=True)
class Point:
    """One model evaluation of a scheduler."""

    step: int  # the user's step, from 0, in the full schedule
    stage: int  # the evaluation, from 0, in the full schedule
    t: float
    level: Level
    run: bool  # whether it is run, or left out by strength


@dataclass(frozen=True, slots=True)
class Curve:
    """Levels over training timesteps."""

    times: tuple[float, ...]
    levels: tuple[Level, ...]


def level(signal: float, noise: float, *, flow: bool = False, input_scale: float = 1.0) -> Level:
    """The level of latents with so much picture and so much noise.

    Args:
        signal, noise: ``a`` and ``b``.
        flow: give the flow time as sigma.
        input_scale: the picture is multiplied by it before it is noised, which moves log-SNR by twice its logarithm
            (arXiv:2301.10972, section 2.2).
    """
    a, b = signal * input_scale, noise
    if not (math.isfinite(a) and math.isfinite(b)):
        return Level(math.nan, math.nan, math.nan)
    total = a * a + b * b
    if flow:
        sigma = b / (a + b) if a + b else math.nan
    else:
        sigma = b / a if a > 0 else math.inf
    return Level(a * a / total if total else math.nan, sigma, _log_snr(a, b))


def _log_snr(a: float, b: float) -> float:
    if a <= 0:
        return -math.inf
    return 2.0 * math.log(a / b) if b > 0 else math.inf


def points(timeline: Timeline, first_run: int, *, flow: bool) -> list[Point]:
    """The points of a full timeline.

    Args:
        timeline: of all steps, not sliced.
        first_run: the stage at which the part that is run begins; its length if nothing is.
        flow: see `level`.
    """
    return [Point(s.step, s.index, s.time, level(s.signal, s.noise, flow=flow), s.index >= first_run) for s in timeline]


def training_curve(scheduler: Any, *, flow: bool) -> Curve | None:
    """The levels that the model of a diffusers scheduler object was trained on; None where it does not say."""
    if flow:
        times = range(1, _FLOW_TIMESTEPS + 1)
        return Curve(
            tuple(map(float, times)),
            tuple(level(1 - t / _FLOW_TIMESTEPS, t / _FLOW_TIMESTEPS, flow=True) for t in times),
        )
    table = getattr(scheduler, "alphas_cumprod", None)
    return None if table is None else _of_alphas(table.double().tolist())


def beta_curve(settings: Mapping[str, Any], *, input_scale: float = 1.0) -> Curve:
    """The levels of a beta schedule.

    Args:
        settings: beta_schedule, beta_start, beta_end, num_train_timesteps, rescale_betas_zero_snr or some of them, as
            diffusers' schedulers take them.
        input_scale: see `level`.

    Raises:
        ConfigError: betas that there cannot be.
    """
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler
    try:
        table = scheduler(**settings).alphas_cumprod.double()
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"beta_schedule: {dict(settings)} cannot be made: {error}") from error
    numbers = table.tolist()
    if not all(0.0 <= number <= 1.0 for number in numbers):
        raise ConfigError(
            f"beta_start, beta_end: {dict(settings)} leaves the range 0 to 1; accepted are betas from 0 to 1."
        )
    return _of_alphas(numbers, input_scale)


def _of_alphas(table: Sequence[float], input_scale: float = 1.0) -> Curve:
    return Curve(
        tuple(float(t) for t in range(len(table))),
        tuple(level(math.sqrt(a), math.sqrt(max(1 - a, 0.0)), input_scale=input_scale) for a in table),
    )
