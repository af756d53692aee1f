"""Trigonometric flow (TrigFlow: Lu & Song, arXiv:2410.11081, section 3): latents are ``cos(t) x0 + sin(t) epsilon`` at an angle t
from pi / 2 (noise alone) to 0, which has squares that add to 1, and the network predicts v, ``cos(t) epsilon - sin(t) x0``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from research.sampling.interfaces import Guided, StepOutput
from research.sampling.noise import NoiseSource
from research.sampling.timeline import Stage, Timeline, build_timeline, kept_steps
from research.solvers.diffusers_solver import DiffusersSolver
from research.solvers.levels import Level, Levels, TrainedLevels
from research.solvers.steps import step_from
from research.solvers.upstream_levels import make_timesteps

# as diffusers' pipelines of such models have them by default
FIRST_ANGLE = 1.57080
SECOND_OF_TWO = 1.3
_TIMESTEPS = 1000
_HALF_TURN = math.pi / 2


def is_trigflow(config: Mapping[str, Any]) -> bool:
    """Whether the model of a scheduler config predicts the velocity of trigonometric flow."""
    return config.get("_class_name") == "SCMScheduler"


class TrigFlowLevels(TrainedLevels):
    """Every angle, counted in timesteps from 0 to 999: timestep i is the angle ``(i + 1) / 1000 * pi / 2``."""

    def at_sigma(self, sigma: float) -> Level:
        """The level of a sigma, the tangent of its angle."""
        angle = math.atan(sigma)
        return _at(angle, max(angle / _HALF_TURN * _TIMESTEPS - 1, 0.0))

    def at_time(self, time: float) -> Level:
        """The level of a timestep, whole or between two; -1 is clean."""
        return Level(1.0, 0.0, time) if time < 0 else _at(angle_of(time), time)


def angle_of(time: Any) -> Any:
    """The angle of timesteps."""
    return (time + 1) * (_HALF_TURN / _TIMESTEPS)


def _at(angle: float, time: float) -> Level:
    if angle >= _HALF_TURN - 1e-12:
        return Level(0.0, 1.0, time)
    return Level(math.cos(angle), math.sin(angle), time)


TRIGFLOW = TrigFlowLevels((*(math.tan(angle_of(time)) for time in range(_TIMESTEPS - 1)), math.inf), _TIMESTEPS)


class TrigFlowGrid:
    """The angles that the pipelines visit: even ones from pi / 2, and with two steps pi / 2 and 1.3."""

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        """See `research.solvers.levels.Schedule`."""
        angles = [_HALF_TURN * (1 - i / steps) for i in range(steps)]
        if steps == 2:
            angles[1] = SECOND_OF_TWO
        grid = [trained.at_sigma(math.inf if angle == _HALF_TURN else math.tan(angle)) for angle in angles]
        return Levels((*grid, trained.clean()), trained, n_steps=steps)


class SCMSolver(DiffusersSolver):
    """diffusers' ``SCMScheduler`` as the pipelines use it: its latents are those of the network times ``sigma_data``, and the
    last step gives its estimate of the clean ones."""

    rounds_up = True

    def __init__(self, scheduler: Any, **told: Any):
        super().__init__(scheduler, **told)
        self.supports = self.supports | {"first-order", "noise-levels"}

    @property
    def _spread(self) -> float:
        return float(self.scheduler.config.sigma_data)

    def timeline(
        self,
        steps: int,
        *,
        strength: float = 1.0,
        device: torch.device | str = "cpu",
        by_strength: bool = False,
        told: bool = False,
    ) -> Timeline:
        """See `DiffusersSolver.timeline`; these classes are told no strength."""
        kept = kept_steps(steps, strength, parity=True, flow=True)
        own: dict[str, Any]
        if self._levels is None:
            own = {"max_timesteps": FIRST_ANGLE, "intermediate_timesteps": SECOND_OF_TWO if steps == 2 else None}
        else:
            angles = [math.atan2(level.noise, level.signal) for level in self._levels(steps, self._shape)]
            own = {"timesteps": angles, "max_timesteps": None, "intermediate_timesteps": None}
        make_timesteps(self.scheduler, self.name, steps, device, told=own)
        self.scheduler.set_begin_index(steps - kept)
        times = self.scheduler.timesteps[:-1]
        levels = [(max(math.cos(t), 0.0) * self._spread, math.sin(t) * self._spread) for t in times.tolist()]
        made = build_timeline(times, range(steps), levels, n_steps=steps, kept=kept, kind=self.kind)
        self._last = len(made) - 1
        return replace(made, first_stage=steps - kept)

    def scale_noise(self, noise: Tensor) -> Tensor:
        return noise * self._spread

    def scale_input(self, x: Tensor, stage: Stage) -> Tensor:
        return x / self._spread

    def add_noise(self, clean: Tensor, noise: Tensor, stage: Stage | None) -> Tensor:
        """See `DiffusersSolver.add_noise`."""
        if stage is None:
            return clean
        return torch.cos(stage.t) * (clean * self._spread) + torch.sin(stage.t) * (noise * self._spread)

    def step(self, guided: Guided, x: Tensor, stage: Stage, noise: NoiseSource) -> StepOutput:
        prediction, x = step_from(guided, self.kind, x, stage)
        out, clean = self.scheduler.step(prediction.value.float() * self._spread, stage.t, x, **self._kwargs)
        clean = clean / self._spread
        return StepOutput(clean if stage.index == self._last else out, clean)
