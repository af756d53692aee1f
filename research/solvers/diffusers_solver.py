"""Any diffusers scheduler as a solver of the loop."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError, SamplingError
from research.sampling.interfaces import Guided, StepOutput
from research.sampling.noise import STEP, NoiseSource
from research.sampling.prediction import Kind
from research.sampling.timeline import Stage, Timeline, build_timeline, kept_steps
from research.solvers.corrections import Walk, as_upstream, corrected, faults, lay_beta_over_timesteps, without_surplus
from research.solvers.levels import Levels
from research.solvers.probing import end_level, is_deterministic, is_memoryless, noised, surplus_stages
from research.solvers.steps import full_precision, step_from
from research.solvers.upstream_levels import Shape, given_levels, make_timesteps

STEP_ARGUMENTS_OF_THE_LOOP = {
    "self", "model_output", "timestep", "sample", "generator", "return_dict", "args", "kwargs"
}  # fmt: skip
# They index their tables with the timestep: a Python number gives the same entries as a 0-d tensor at a fraction of the cost.
_TAKE_NUMBERS = {"DDIMScheduler", "DDPMScheduler"}
# multistep solvers, whose coefficients are divided by the distance of neighbouring levels
_DIVIDE_BY_LEVELS = {
    "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
    "LMSDiscreteScheduler",
}


class DiffusersSolver:
    """One diffusers scheduler object for one run.

    Args:
        scheduler: a fresh scheduler object; it is changed by the run.
        name: how messages call it.
        kind: what the model predicts for it.
        step_options: further arguments of its ``step`` (``eta``, ``s_churn``).
        parity: use the object exactly as the diffusers pipeline does.
        levels: gives the levels of a run of so many steps, where they are not the scheduler's own.
        grid: where those are from.
        told: what ``set_timesteps`` is told besides the steps, for the latents' shape.

    Attributes:
        end_level: ``(signal, noise)`` of the latents after the last step, known once the timeline is made.
        notes: with ``parity``, the faults of upstream that the timeline has and that are reproduced, a sentence each.
    """

    end_level = (1.0, 0.0)
    turn: int | None = None
    notes: Sequence[str] = ()

    def __init__(
        self,
        scheduler: Any,
        *,
        name: str,
        kind: Kind,
        step_options: Mapping[str, Any],
        parity: bool,
        levels: Callable[[int, Shape | None], Levels] | None = None,
        grid: Any = None,
        told: Callable[[Any, int, Shape | None], Mapping[str, Any]] | None = None,
    ):
        self.scheduler = self._given = scheduler
        self.name = name
        self.kind: Kind = kind
        self.parity = parity
        self._levels, self._grid, self._told = levels, grid, told
        self._shape: Shape | None = None
        self.order = int(getattr(scheduler, "order", 1))
        accepted = inspect.signature(scheduler.step).parameters
        self._takes_generator = "generator" in accepted
        # the pipelines pass eta=0 to every scheduler that takes it, whatever its own default (TCD: 0.3)
        of_pipelines = {"eta": 0.0} if parity and "eta" in accepted else {}
        self._kwargs: dict[str, Any] = {**of_pipelines, **step_options, "return_dict": False}
        self._arguments: Sequence[int] | None = None
        self._numbers = type(scheduler).__name__ in _TAKE_NUMBERS
        probed = scheduler, self._kwargs, self._takes_generator
        forgets = is_memoryless(*probed)
        offers = {"first-order": forgets, "renoise": forgets, "deterministic": is_deterministic(*probed)}
        # a class with nothing to ask (IPNDM) samples, and what x0 its predictions imply is not known
        offers["noise-levels"] = hasattr(scheduler, "add_noise") or hasattr(scheduler, "scale_noise")
        offers["revisits"] = self._revisits = forgets and not parity
        self.supports = frozenset({f"predicts:{kind}", *(name for name, held in offers.items() if held)})

    def fit(self, shape: Shape) -> None:
        self._shape = shape

    @property
    def rounds_up(self) -> bool:
        """Whether the pipelines round up the steps that a strength keeps."""
        return self.kind == "flow"

    def timeline(
        self,
        steps: int,
        *,
        strength: float = 1.0,
        device: torch.device | str = "cpu",
        by_strength: bool = False,
        told: bool = False,
    ) -> Timeline:
        """Set the full schedule and slice it by strength.

        Args:
            steps: the user's steps of the full schedule.
            strength: the part of them to keep, the last ones.
            device: where the timesteps go.
            by_strength: the pipeline of the task slices by strength, and so sets where the scheduler begins even if all is
                kept; text-to-image pipelines do not. Of account with ``parity`` alone.
            told: with ``parity``, the scheduler is told the strength and makes all steps below it (LCM).

        Raises:
            ConfigError: more steps than the scheduler was trained with, a count it cannot make, or cannot be told a strength.
        """
        kept = kept_steps(steps, strength, parity=self.parity, flow=self.rounds_up, told=told)
        self.scheduler = self._given  # and not one that was corrected for another timeline
        if not self.parity:
            lay_beta_over_timesteps(self.scheduler)
        self._set_timesteps(steps, device, {"strength": strength} if told else {})
        surplus = surplus_stages(self.scheduler, steps)
        if surplus and self.parity:  # it is walked as by the pipelines, and is a step more
            steps, kept = steps + 1, kept + 1 if kept else 0
        elif surplus:
            without_surplus(self.scheduler, steps)
        # pipelines multiply what they leave out by the order that the class states; PNDM states 1 and has a stage more
        count = len(self.scheduler.timesteps)
        first = min((steps - kept) * self.order, count) if self.parity else None
        self.end_level = end_level(self.scheduler, count)
        try:
            walk = as_upstream(self.scheduler, steps, kept, first)
        except IndexError as error:  # leading spacing with an offset: 1000 steps end beyond the last timestep
            raise ConfigError(
                f"steps: scheduler {self.name} cannot make {steps} steps: they leave its timesteps."
            ) from error
        if self.parity:
            self.notes = faults(self.scheduler, walk)
            if surplus:
                more = (
                    f"{self.name}: trailing spacing makes {steps} of {steps - 1} steps, and the last is at timestep -1"
                )
                self.notes = [*self.notes, more]
        else:
            self.scheduler, walk = corrected(self.scheduler, walk, steps, kept)
        self._arguments, self._begin = walk.arguments, walk.begin or 0
        # without it a duplicated first timestep resolves to its second place; text-to-image pipelines do not set it
        begins = not self.parity or by_strength or walk.first > 0
        if walk.begin is not None and begins and hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(walk.begin)
        if not self.parity:
            self._check_levels(walk)
        timeline = build_timeline(
            walk.times, walk.step_of, walk.levels, n_steps=steps, kept=kept, first=0, kind=self.kind
        )
        return dataclasses.replace(timeline, first_stage=walk.first)

    def _check_levels(self, walk: Walk) -> None:
        """Refuse noise levels with which the steps are no numbers: found before anything is computed."""
        numbers = [math.isfinite(signal) and math.isfinite(noise) for signal, noise in walk.levels]
        if not any(numbers):
            return  # a class that does not tell its levels
        if not all(numbers):
            place = numbers.index(False)
            raise ConfigError(
                f"scheduler: the noise level of {self.name} at step {walk.step_of[place] + 1}, t = {float(walk.times[place]):g}, "
                "is no number; another number of steps or other noise levels may do."
            )
        if type(self.scheduler).__name__ not in _DIVIDE_BY_LEVELS:
            return
        # the last step may stand still: nothing is divided by its length any more
        for place, (before, level) in enumerate(pairwise(walk.levels[:-1])):
            if before == level:
                raise ConfigError(
                    f"scheduler: {self.name} visits the noise level {level[1] / max(level[0], 1e-12):.4g} twice, at steps "
                    f"{walk.step_of[place] + 1} and {walk.step_of[place + 1] + 1}, and divides by their distance; accepted are "
                    "fewer steps, or other noise levels."
                )

    def _set_timesteps(self, steps: int, device: torch.device | str, more: Mapping[str, Any]) -> None:
        told = {**(self._told(self.scheduler, steps, self._shape) if self._told else {}), **more}
        if unknown := more.keys() - inspect.signature(self.scheduler.set_timesteps).parameters.keys():
            raise ConfigError(
                f"scheduler: {self.name} is not told a {unknown.pop()}, as the image-to-image pipeline of latent consistency "
                "models has it; accepted with parity is lcm (LCMScheduler)."
            )
        if self._levels is None:
            make_timesteps(self.scheduler, self.name, steps, device, told=told)
            return
        given = given_levels(self.scheduler, self.name, self._levels(steps, self._shape), self._grid)
        given |= {key: value for key, value in told.items() if key != "sigmas"}
        try:
            self.scheduler.set_timesteps(**given, device=device)
        except (ValueError, LookupError, RuntimeError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise ConfigError(f"sigmas: scheduler {self.name} does not take these: {error}") from error

    def start(self, noise: NoiseSource) -> None:
        if self._takes_generator:
            self._kwargs["generator"] = noise.generators(STEP)
        if hasattr(self.scheduler, "noise_sampler_seed") and not self.parity:
            # Brownian trees take seeds and no generators; one an image keeps it the same in any batch
            given = self.scheduler.noise_sampler_seed
            seeds = noise.seeds_of(STEP if given is None else f"{STEP}/{given}")
            self.scheduler.noise_sampler_seed = seeds

    @property
    def draws_by_image(self) -> bool:
        """Whether the noise of its steps is each image's own."""
        known = self._takes_generator or (hasattr(self.scheduler, "noise_sampler_seed") and not self.parity)
        return known or "deterministic" in self.supports

    def memory(self) -> dict[str, Any]:
        """What the scheduler object keeps from step to step: numbers, and tensors like the latents."""
        return {name: value for name, value in vars(self.scheduler).items() if _is_kept(value)}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Go on with what `memory` gave."""
        vars(self.scheduler).update(memory)

    def copy(self, noise: NoiseSource) -> DiffusersSolver:
        """Another one that draws from ``noise`` and goes on from here."""
        found = copy.copy(self)
        found.scheduler, found._kwargs = copy.copy(self.scheduler), dict(self._kwargs)
        if self._takes_generator:
            found._kwargs["generator"] = noise.generators(STEP)
        return found

    def scale_noise(self, noise: Tensor) -> Tensor:
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def scale_input(self, x: Tensor, stage: Stage) -> Tensor:
        if not hasattr(self.scheduler, "scale_model_input"):
            return x
        self._turn_to(stage)
        try:
            return self.scheduler.scale_model_input(x, stage.t)
        except (IndexError, AssertionError) as error:  # UniPC asserts that it has steps left
            raise self._out_of_range(stage, error) from error

    def add_noise(self, clean: Tensor, noise: Tensor, stage: Stage | None) -> Tensor:
        """Clean latents noised to the level of a stage, shapes [N or 1, C, h, w]; after the last stage (None) they stay clean.

        With ``parity`` the scheduler is asked, as the pipelines do: a class that keeps count takes the level where it stands
        (where it begins before the first step), whatever the stage.

        Raises:
            ConfigError: the scheduler has no noise levels that are known (IPNDM).
        """
        if stage is None:
            return clean
        if math.isnan(stage.noise):
            raise ConfigError(
                f"scheduler: {self.name} cannot start from a picture: {type(self.scheduler).__name__} has no add_noise."
            )
        if self.parity:
            return noised(self.scheduler, clean, noise, stage.t.reshape(1).repeat(len(noise)))
        total = full_precision(clean) * stage.signal + full_precision(noise) * stage.noise
        return total.to(clean.dtype)

    def step(self, guided: Guided, x: Tensor, stage: Stage, noise: NoiseSource) -> StepOutput:
        prediction, x = step_from(guided, self.kind, x, stage)
        self._turn_to(stage)
        t: Any = int(stage.time) if self._numbers else stage.t
        if self._arguments is not None:
            t = self._arguments[stage.index]
        try:
            out = self.scheduler.step(prediction.value, t, x, **self._kwargs)
        except (IndexError, AssertionError) as error:  # UniPC asserts that it has steps left
            raise self._out_of_range(stage, error) from error
        except Exception as error:
            error.add_note(f"raised in {type(self.scheduler).__name__}.step at step {stage.step}")
            raise
        new = None if isinstance(out, Tensor) or not out else out[0]
        if not isinstance(new, Tensor) or new.shape != x.shape:
            found = f"latents of {list(new.shape)}" if isinstance(new, Tensor) else type(out).__name__
            raise SamplingError(
                f"scheduler: {type(self.scheduler).__name__}.step returned {found} at step {stage.step}; accepted is an output "
                f"of diffusers or a tuple that begins with the next latents, {list(x.shape)}."
            )
        return StepOutput(new, out[1] if len(out) > 1 else None)

    def _turn_to(self, stage: Stage) -> None:
        """Some classes count their steps: those that can be taken again are told where they are."""
        if self._revisits and getattr(self.scheduler, "_step_index", None) is not None:
            self.scheduler._step_index = self._begin + stage.index

    def _out_of_range(self, stage: Stage, error: Exception) -> SamplingError:
        """Classes that look their place up by the timestep lose count where one comes twice (cosine betas, Karras sigmas)."""
        reason = str(error) or "no steps are left"
        return SamplingError(
            f"scheduler: {self.name} leaves its own table of noise levels at stage {stage.index}, step {stage.step + 1} of "
            f"{stage.n_steps} (t = {stage.time:g}): {reason}; another number of steps or other noise levels may do."
        )


def _is_kept(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.ndim or value.ndim >= _LIKE_LATENTS
    if isinstance(value, list | tuple):
        return all(_is_kept(inner) for inner in value)
    return value is None or isinstance(value, int | float)


_LIKE_LATENTS = 3  # dimensions from which on a tensor one is of latents, and no table of the schedule
