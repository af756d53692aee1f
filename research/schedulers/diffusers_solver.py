"""Any diffusers scheduler as a solver of the loop."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError
from research.sampling.noise import STEP, NoiseSource
from research.sampling.plugs import Guided, StepOutput
from research.sampling.prediction import Kind, convert
from research.sampling.timeline import Stage, Timeline, build_timeline, kept_steps
from research.schedulers.probing import is_deterministic, noise_levels, noised, user_steps

STEP_ARGUMENTS_OF_THE_LOOP = {
    "self", "model_output", "timestep", "sample", "generator", "return_dict", "args", "kwargs"
}  # fmt: skip
# They index their tables with the timestep: a Python number gives the same entries as a 0-d tensor at a fraction of the cost.
_TAKE_NUMBERS = {"DDIMScheduler", "DDPMScheduler"}


class DiffusersSolver:
    """One diffusers scheduler object for one run.

    Args:
        scheduler: a fresh scheduler object; it is changed by the run.
        name: how messages call it.
        kind: what the model predicts for it.
        step_options: further arguments of its ``step`` (``eta``, ``s_churn``).
        parity: use the object exactly as the diffusers pipeline does.
    """

    def __init__(
        self, scheduler: Any, *, name: str, kind: Kind, step_options: Mapping[str, Any], parity: bool
    ):
        self.scheduler = scheduler
        self.name = name
        self.kind: Kind = kind
        self.parity = parity
        self.order = int(getattr(scheduler, "order", 1))
        accepted = inspect.signature(scheduler.step).parameters
        self._takes_generator = "generator" in accepted
        # the pipelines pass eta=0 to every scheduler that takes it, whatever its own default (TCD: 0.3)
        of_pipelines = {"eta": 0.0} if parity and "eta" in accepted else {}
        self._kwargs: dict[str, Any] = {**of_pipelines, **step_options, "return_dict": False}
        self._numbers = type(scheduler).__name__ in _TAKE_NUMBERS
        offers = {"first-order": self.order == 1}
        offers["deterministic"] = is_deterministic(scheduler, self._kwargs, self._takes_generator)
        self.supports = frozenset({f"predicts:{kind}", *(name for name, held in offers.items() if held)})

    def timeline(
        self,
        steps: int,
        *,
        strength: float = 1.0,
        device: torch.device | str = "cpu",
        by_strength: bool = False,
    ) -> Timeline:
        """Set the full schedule and slice it by strength.

        Args:
            steps: the user's steps of the full schedule.
            strength: the part of them to keep, the last ones.
            device: where the timesteps go.
            by_strength: the pipeline of the task slices by strength, and so sets where the scheduler begins even if all is
                kept; text-to-image pipelines do not. Of account with ``parity`` alone.

        Raises:
            ConfigError: more steps than the scheduler was trained with, or a count it cannot make.
        """
        kept = kept_steps(steps, strength, parity=self.parity)
        self._set_timesteps(steps, device)
        times = self.scheduler.timesteps
        try:
            levels = noise_levels(self.scheduler, times)
        except IndexError as error:  # leading spacing with an offset: 1000 steps end beyond the last timestep
            raise ConfigError(
                f"steps: scheduler {self.name} cannot make {steps} steps: they leave its {self._limit} timesteps."
            ) from error
        # pipelines multiply what they leave out by the order that the class states; PNDM states 1 and has a stage more
        first = min((steps - kept) * self.order, len(times)) if self.parity else None
        timeline = build_timeline(
            times,
            user_steps(self.scheduler, steps, len(times)),
            levels,
            n_steps=steps,
            kept=kept,
            first=first,
        )
        self._begin_at(timeline.first_stage, by_strength)
        return timeline

    @property
    def _limit(self) -> int | None:
        return getattr(self.scheduler.config, "num_train_timesteps", None)

    def _set_timesteps(self, steps: int, device: torch.device | str) -> None:
        limit = self._limit
        if limit is not None and steps > limit:
            raise ConfigError(
                f"steps: found {steps}; scheduler {self.name} has {limit} timesteps, accepted is 1 to {limit}."
            )
        try:
            self.scheduler.set_timesteps(steps, device=device)
        except (ValueError, LookupError, RuntimeError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise ConfigError(f"steps: scheduler {self.name} cannot make {steps} steps: {error}") from error
        if len(self.scheduler.timesteps) < steps:
            raise ConfigError(
                f"steps: scheduler {self.name} makes {len(self.scheduler.timesteps)} stages of {steps} steps; accepted are more."
            )

    def _begin_at(self, stage: int, by_strength: bool) -> None:
        # without it a duplicated first timestep resolves to its second place; text-to-image pipelines do not set it
        if hasattr(self.scheduler, "set_begin_index") and (not self.parity or by_strength or stage > 0):
            self.scheduler.set_begin_index(stage)

    def start(self, noise: NoiseSource) -> None:
        if self._takes_generator:
            self._kwargs["generator"] = noise.generators(STEP)
        if hasattr(self.scheduler, "noise_sampler_seed") and not self.parity:
            # Brownian trees take seeds and no generators; one an image keeps it the same in any batch
            given = self.scheduler.noise_sampler_seed
            seeds = noise.seeds_of(STEP if given is None else f"{STEP}/{given}")
            self.scheduler.noise_sampler_seed = seeds

    def scale_noise(self, noise: Tensor) -> Tensor:
        return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def scale_input(self, x: Tensor, stage: Stage) -> Tensor:
        return (
            self.scheduler.scale_model_input(x, stage.t)
            if hasattr(self.scheduler, "scale_model_input")
            else x
        )

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
        prediction = guided.prediction
        if prediction.kind != self.kind:
            prediction = convert(prediction, self.kind, x, stage)
        t = int(stage.time) if self._numbers else stage.t
        out = self.scheduler.step(prediction.value, t, x, **self._kwargs)
        return StepOutput(out[0], out[1] if len(out) > 1 else None)


def full_precision(x: Tensor) -> Tensor:
    """Half precision as fp32, anything wider as it is: sums of large terms lose the small ones."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
