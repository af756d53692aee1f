"""Any diffusers scheduler as a solver of the loop."""

from __future__ import annotations

import copy
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
        self.supports = frozenset({f"predicts:{kind}", *(["first-order"] if self.order == 1 else [])})

    def timeline(self, steps: int, *, strength: float = 1.0, device: torch.device | str = "cpu") -> Timeline:
        """Set the full schedule and slice it by strength.

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
        timeline = build_timeline(
            times, user_steps(self.scheduler, steps, len(times)), levels, n_steps=steps, kept=kept
        )
        self._begin_at(timeline.first_stage)
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

    def _begin_at(self, stage: int) -> None:
        # Without it a duplicated first timestep resolves to its second place. Pipelines that start at the top do not set it.
        if hasattr(self.scheduler, "set_begin_index") and not (self.parity and stage == 0):
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
        if stage is None:
            return clean
        return clean * stage.signal + noise * stage.noise

    def step(self, guided: Guided, x: Tensor, stage: Stage, noise: NoiseSource) -> StepOutput:
        prediction = guided.prediction
        if prediction.kind != self.kind:
            prediction = convert(prediction, self.kind, x, stage)
        t = int(stage.time) if self._numbers else stage.t
        out = self.scheduler.step(prediction.value, t, x, **self._kwargs)
        return StepOutput(out[0], out[1] if len(out) > 1 else None)


def user_steps(scheduler: Any, steps: int, evaluations: int) -> list[int]:
    """The user's step that each model evaluation belongs to; a second-order step has two."""
    if evaluations == steps:
        return list(range(steps))
    if type(scheduler).__name__.startswith("PNDM"):
        # Runge-Kutta warm-up: four evaluations for each of the first three steps; without it, the first step has two
        warm_up, each = (3, 4) if not scheduler.config.skip_prk_steps else (1, 2)
        head = [i // each for i in range(warm_up * each)]
        return (head + list(range(warm_up, steps)))[:evaluations]
    order = max(1, math.ceil(evaluations / steps))
    return [min(i // order, steps - 1) for i in range(evaluations)]


def noise_levels(scheduler: Any, times: Tensor) -> list[tuple[float, float]]:
    """``(signal, noise)`` of the latents at each evaluation, in the scheduler's own scaling.

    Asked of the scheduler's public ``add_noise`` with unit samples, so that a class this project has never heard of works too.
    """
    # DPM2: every second evaluation is at a midpoint that add_noise does not know
    if hasattr(scheduler, "sigmas_interpol"):
        sigmas, middle = scheduler.sigmas.tolist(), scheduler.sigmas_interpol.tolist()
        back = 1 if hasattr(scheduler, "sigmas_up") else 0  # the ancestral kind keeps them one place earlier
        return [(1.0, middle[i - back] if i % 2 else sigmas[i]) for i in range(len(times))]
    probe = cpu_copy(scheduler)
    one, zero = torch.ones(len(times), 1), torch.zeros(len(times), 1)
    at = times.cpu()
    if hasattr(probe, "add_noise"):
        signal, noise = probe.add_noise(one, zero, at), probe.add_noise(zero, one, at)
    elif not hasattr(probe, "scale_noise"):
        # nothing to ask (IPNDM): it samples, and whoever reads the levels sees that they are not known
        return [(math.nan, math.nan)] * len(times)
    else:
        signal = torch.cat([probe.scale_noise(one[:1], t[None], zero[:1]) for t in at])
        noise = torch.cat([probe.scale_noise(zero[:1], t[None], one[:1]) for t in at])
    return list(zip(signal.flatten().double().tolist(), noise.flatten().double().tolist(), strict=True))


def cpu_copy(scheduler: Any) -> Any:
    """A copy to ask questions of: its tables on the CPU, and nothing done to it touches the original."""
    probe = copy.deepcopy(scheduler)
    for name, value in vars(probe).items():
        if isinstance(value, Tensor):
            setattr(probe, name, value.cpu())
    return probe
