"""The noise levels that a class of diffusers visits, as the grid of a native solver."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from research.errors import ConfigError
from research.solvers.corrections import lay_beta_over_timesteps, without_surplus
from research.solvers.levels import Level, Levels, TrainedLevels, trained_levels
from research.solvers.probing import end_level, user_steps, usual_shift

# their steps begin at Euler's levels; what they work out besides takes them long
_AS_EULER = {
    "HeunDiscreteScheduler": "EulerDiscreteScheduler",
    "KDPM2DiscreteScheduler": "EulerDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler": "EulerDiscreteScheduler",
    "DPMSolverSDEScheduler": "EulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler": "FlowMatchEulerDiscreteScheduler",
}
_ROUNDED_BY = 0.02  # timesteps; below it is rounding of the interpolation itself


Shape = tuple[int, int, int]  # of latents: channels, height, width
# What a model has a scheduler told besides the number of steps, as arguments of ``set_timesteps`` ("sigmas", "mu"): called with
# the scheduler, the steps, the shape of the latents (None: the model's own) and whether it is to be as the pipeline does it.
Told = Callable[[Any, int, Shape | None, bool], Mapping[str, Any]]


def nothing_told(scheduler: Any, steps: int, shape: Shape | None, parity: bool) -> Mapping[str, Any]:
    """Where no model says more than the number of steps; see `usual_shift`."""
    return usual_shift(scheduler)


def shifted(trained: TrainedLevels, scheduler: Any, told: Mapping[str, Any]) -> TrainedLevels:
    """What a flow model was trained on, with the shift for the latents' size where it has one (``mu`` of a dynamic shift)."""
    if "mu" not in told or not getattr(scheduler.config, "use_dynamic_shifting", False):
        return trained
    linear = getattr(scheduler.config, "time_shift_type", "exponential") == "linear"
    return dataclasses.replace(trained, shift=told["mu"] if linear else math.exp(told["mu"]))


def make_timesteps(
    scheduler: Any, name: str, steps: int, device: Any = "cpu", *, told: Mapping[str, Any] | None = None
) -> None:
    """Set a scheduler's timesteps.

    Args:
        told: further arguments of its ``set_timesteps``; with "sigmas" among them the number of steps is not said.

    Raises:
        ConfigError: more steps than it was trained with, or a count that it cannot make.
    """
    limit = getattr(scheduler.config, "num_train_timesteps", None)
    if limit is not None and steps > limit:
        raise ConfigError(f"steps: found {steps}; scheduler {name} has {limit} timesteps, accepted is 1 to {limit}.")
    told = told or {}
    count = {} if told.get("sigmas") is not None else {"num_inference_steps": steps}
    try:
        scheduler.set_timesteps(**count, device=device, **told)
    except (
        ValueError, LookupError, RuntimeError, TypeError, AttributeError, ZeroDivisionError, AssertionError
    ) as error:  # fmt: skip
        why = str(error) or f"{type(error).__name__} in its set_timesteps"
        raise ConfigError(f"steps: scheduler {name} cannot make {steps} steps: {why}") from error
    if len(scheduler.timesteps) < steps:
        raise ConfigError(
            f"steps: scheduler {name} makes {len(scheduler.timesteps)} stages of {steps} steps; accepted are more."
        )


def trained_of(scheduler: Any, config: Mapping[str, Any], *, flow: bool) -> TrainedLevels:
    """What a model was trained on, as a scheduler of it has it in its table."""
    bars = getattr(scheduler, "alphas_cumprod", None)
    if flow or not isinstance(bars, Tensor):
        return trained_levels(config, flow=flow)
    sigmas = tuple(math.sqrt((1.0 - bar) / bar) if bar > 0 else math.inf for bar in bars.double().tolist())
    return TrainedLevels(sigmas, len(sigmas))


def levels_of(
    untouched: Any, name: str, trained: TrainedLevels, steps: int, told: Mapping[str, Any] | None = None
) -> Levels:
    """The grid that a class of diffusers visits in so many steps, its surplus steps and rounded timesteps put right.

    Args:
        untouched: a scheduler object whose timesteps were never set; it is left alone.
        name: for messages.
        trained: what lies between the levels.
        told: see `make_timesteps`.

    Raises:
        ConfigError: a count that it cannot make, or timesteps beyond its table.
    """
    import diffusers

    if like := _AS_EULER.get(type(untouched).__name__):
        scheduler = getattr(diffusers, like).from_config(untouched.config)
    else:
        scheduler = copy.copy(untouched)  # set_timesteps puts new tables in place of the old ones and changes none
    lay_beta_over_timesteps(scheduler)
    make_timesteps(scheduler, name, steps, told=told)
    without_surplus(scheduler, steps)
    times = scheduler.timesteps.double().tolist()
    step_of = user_steps(scheduler, steps, len(times))
    firsts = [i for i in range(len(times)) if i == 0 or step_of[i] != step_of[i - 1]]
    whole = not scheduler.timesteps.is_floating_point()
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, Tensor):
        table = sigmas.double().tolist()
        grid = [_at(trained, table[i], times[i], whole=whole) for i in firsts]
    else:
        last = trained.n_timesteps - 1
        if any(
            times[i] > last for i in firsts
        ):  # leading spacing with an offset: 1000 steps end beyond the last timestep
            raise ConfigError(
                f"steps: scheduler {name} cannot make {steps} steps: they leave its {last + 1} timesteps."
            )
        grid = [trained.at_time(times[i]) for i in firsts]
    signal, noise = end_level(scheduler, len(times))
    if type(scheduler).__name__.startswith("TCD"):  # it ends at timestep 0
        end = trained.at_time(0.0)
    else:
        norm = signal + noise if trained.flow else math.hypot(signal, noise)
        end = Level(signal / norm, noise / norm, 0.0, trained.flow)
    scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
    if scale != 1.0:  # of latents whose signal is 1
        scale /= math.hypot(1.0, grid[0].sigma)
    return Levels((*grid, end), trained, scale, steps)


def _at(trained: TrainedLevels, sigma: float, time: float, *, whole: bool) -> Level:
    """A level of a scheduler's own table: told its timestep, unless that was rounded to a whole one of another level."""
    level = trained.at_sigma(sigma)
    if whole and abs(level.time - time) > _ROUNDED_BY:
        return level
    return Level(level.signal, level.noise, time, trained.flow)


def given_levels(scheduler: Any, name: str, levels: Levels, schedule: Any = None) -> dict[str, list[Any]]:
    """Levels as the argument of a scheduler's ``set_timesteps`` that pipelines give them by: ``sigmas`` or ``timesteps``.

    Args:
        schedule: where the levels are from. A list that somebody gave, in its attribute ``sigmas`` or ``timesteps``, is handed on
            as it is, to the last bit.

    Raises:
        ConfigError: the class takes neither.
    """
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    for key in ("timesteps", "sigmas"):
        if key in accepted and (values := list(getattr(schedule, key, None) or ())):
            values = values[: levels.steps]  # a last 0 is the class's own to add ...
            if key == "sigmas" and type(scheduler).__name__ == "EulerDiscreteScheduler":
                values.append(0.0)  # ... but for this one, which takes the last for the end
            return {key: [int(v) if float(v).is_integer() else v for v in values] if key == "timesteps" else values}
    if "sigmas" in accepted:
        values = [level.sigma for level in levels[:-1]]
        return {"sigmas": [*values, 0.0] if type(scheduler).__name__ == "EulerDiscreteScheduler" else values}
    if "timesteps" in accepted and all(level.time.is_integer() for level in levels[:-1]):
        return {"timesteps": [int(level.time) for level in levels[:-1]]}
    between = " between its timesteps" if "timesteps" in accepted else ""
    raise ConfigError(
        f"sigmas: scheduler {name} ({type(scheduler).__name__}) takes no noise levels{between}; accepted is "
        "sigmas=model, or a solver that takes them (euler, ddim, dpmpp_2m, ...)."
    )
