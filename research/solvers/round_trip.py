"""From clean latents to noise and back with DDIM's deterministic step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError
from research.sampling.interfaces import Guided, Solver, StepOutput
from research.sampling.noise import NoiseSource
from research.sampling.prediction import convert
from research.sampling.timeline import Stage, Timeline, log_snr_of, noise_level
from research.solvers.native.ddim import DDIM
from research.solvers.steps import ddim_step, step_from


class RoundTripSolver:
    """Walks a DDIM solver's timeline backwards, from clean latents to noise, and then forwards again.

    Both ways use DDIM's step between two noise levels (arXiv:2010.02502, eq. 12 with sigma = 0, the Euler step of eq. 13's ODE).
    Going back, the model is told the timestep that the step leads to, as `DDIMInverseScheduler` does: coming forth it is
    told the same one, so that the two ways cancel but for the change of the prediction in between. For the same reason a
    guidance with a noise of its own to step along changes roles on the way back: where a step down takes the clean estimate of
    one prediction and the noise of another, the step up takes the noise of the first and the clean estimate of the second
    (CFG++, arXiv:2406.08070, the inversion of algorithm 2).

    A prediction of x0 is turned into noise at the level that the model is told.

    Each way counts the user's steps as sampling does, from the noisiest: the stage between two levels has the same step on
    both ways, ``n - 1`` to 0 going back and 0 to ``n - 1`` coming forth, so that windows and schedules mean the same levels.

    Args:
        solver: that of DDIM; its timesteps and noise levels are used.
        back_only: end at the noise.

    Raises:
        ConfigError: the scheduler is another one than DDIM without noise of its own.
    """

    def __init__(self, solver: Solver, *, back_only: bool = False):
        native = isinstance(getattr(solver, "solver", None), DDIM)
        ddim = native or type(getattr(solver, "scheduler", None)).__name__ == "DDIMScheduler"
        if not ddim or "deterministic" not in solver.supports:
            raise ConfigError(
                f"scheduler: {solver.name} cannot be walked back to the noise; accepted for inversion is ddim with eta 0."
            )
        self._solver, self._back_only = solver, back_only
        self.name, self.kind, self.supports = solver.name, solver.kind, solver.supports - {"revisits"}
        self.parity, self.end_level = solver.parity, (0.0, 1.0)
        self.turn: int | None = None
        self.notes: Sequence[str] = ()
        self._after: list[tuple[float, float]] = []  # signal and noise that each stage leads to

    def fit(self, shape: tuple[int, int, int]) -> None:
        self._solver.fit(shape)

    def timeline(
        self, steps: int, *, strength: float = 1.0, device: torch.device | str = "cpu", by_strength: bool = False
    ) -> Timeline:
        forth = list(self._solver.timeline(steps, strength=strength, device=device))
        # ends where the scheduler itself does, so that its own walk from the noise gives the same
        levels = [(stage.signal, stage.noise) for stage in forth] + [self._solver.end_level]
        # the stage that led down to a level leads up from it, told the same timestep
        back = [_at(stage, levels[i + 1], levels[i]) for i, stage in enumerate(forth)][::-1]
        stages = back if self._back_only else [*back, *(_at(s, levels[i], levels[i + 1]) for i, s in enumerate(forth))]
        self._after = levels[-2::-1] + ([] if self._back_only else levels[1:])
        self.end_level = self._after[-1] if self._after else levels[0]
        self.turn = len(back) - 1  # after this stage the latents are noise
        return Timeline(
            tuple(dataclasses.replace(s, index=i, last_of_step=True) for i, s in enumerate(stages)), n_steps=steps
        )

    def start(self, noise: NoiseSource) -> None:
        return None

    def memory(self) -> dict[str, Any]:
        return {}

    def scale_noise(self, noise: Tensor) -> Tensor:
        return self._solver.scale_noise(noise)

    def scale_input(self, x: Tensor, stage: Stage) -> Tensor:
        return x

    def add_noise(self, clean: Tensor, noise: Tensor, stage: Stage | None) -> Tensor:
        return clean if stage is None else clean * stage.signal + noise * stage.noise

    def step(self, guided: Guided, x: Tensor, stage: Stage, noise: NoiseSource) -> StepOutput:
        signal, level = self._after[stage.index]
        going_back = self.turn is not None and stage.index <= self.turn
        if guided.renoise is not None and going_back:
            guided = dataclasses.replace(guided, prediction=guided.renoise, renoise=guided.prediction)
        kind = self.kind
        if kind == "x0" and going_back and not (self.parity and stage.noise):
            # the model was told the level that the step leads to: its x0 implies the noise of latents there, which is what the
            # same model of epsilon says; at the level of the latents themselves it is too large by the ratio of the two, and
            # infinite where they are clean
            told = dataclasses.replace(stage, signal=signal, noise=level)
            kind = "epsilon"
            guided = dataclasses.replace(
                guided,
                prediction=convert(guided.prediction, kind, x, told),
                renoise=None if guided.renoise is None else convert(guided.renoise, kind, x, told),
            )
        prediction, x = step_from(guided, kind, x, stage)
        return StepOutput(ddim_step(x, prediction, stage, signal, level))


def _at(stage: Stage, level: tuple[float, float], after: tuple[float, float]) -> Stage:
    """A stage whose latents are at another level, and lead to a third."""
    (signal, noise), (next_signal, next_noise) = level, after
    return dataclasses.replace(
        stage,
        signal=signal,
        noise=noise,
        sigma=noise_level(signal, noise),
        sigma_next=noise_level(next_signal, next_noise),
        log_snr=log_snr_of(signal, noise) if noise else math.inf,
    )
