"""Where the steps of a scheduler lead when the model is perfect: it is driven with the predictions of a "
"picture that is known."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch

from research.sampling.interfaces import Guided
from research.sampling.noise import NoiseSource
from research.sampling.prediction import Prediction, convert
from research.sampling.timeline import Timeline
from research.solvers.diffusers_solver import DiffusersSolver

# of the latents that are driven: as many numbers as the spread of noise needs to be told to 1 %
SHAPE = (1, 4, 32, 32)


@dataclass(frozen=True, slots=True)
class Road:
    """Where the steps of a solver lead when the model is perfect.

    Attributes:
        timeline: what the solver says: the levels it wants to go through.
        signal, noise: what it does: share of picture and of noise after each evaluation [L].
        draws: whether an evaluation added fresh noise [L].
        failure: what a step raised, with the user's step it happened in.
    """

    timeline: Timeline
    signal: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    draws: tuple[bool, ...] = ()
    failure: tuple[int, Exception] | None = None

    @property
    def driven(self) -> bool:
        return bool(self.signal)

    @property
    def finite(self) -> bool:
        return all(math.isfinite(value) for value in (*self.signal, *self.noise))


def drive(solver: DiffusersSolver, timeline: Timeline) -> Road:
    """Walk a solver through its timeline with perfect predictions; each of the user's steps starts from the level it should.

    The first element of the latents is picture and no noise, the second is noise and no picture; the others are neither,
    so that what they become is noise that the solver drew.
    """
    picture, noise = torch.zeros(SHAPE), torch.zeros(SHAPE)
    picture.view(-1)[0] = noise.view(-1)[1] = 1.0
    ends = []
    for scale in (1.0, 0.0):  # the second run has the same random numbers and nothing else
        try:
            ends.append(_walk(copy.deepcopy(solver), timeline, scale * picture, scale * noise))
        except _Failed as failed:
            return Road(timeline, failure=(failed.step, failed.cause))
    response, drawn = ends[0] - ends[1], ends[1][:, 2:].std(dim=1)
    total = torch.sqrt(response[:, 1] ** 2 + drawn**2)
    return Road(
        timeline, signal=tuple(response[:, 0].tolist()), noise=tuple(total.tolist()), draws=tuple((drawn > 0).tolist())
    )


def _walk(solver: DiffusersSolver, timeline: Timeline, picture: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    source = NoiseSource([0])
    fix_noise(solver, source)
    ends: list[torch.Tensor] = []
    x = picture
    for i, stage in enumerate(timeline):
        if i == 0 or timeline[i - 1].last_of_step:
            x = stage.signal * picture + stage.noise * noise
        perfect = convert(Prediction(picture, "x0"), solver.kind, x, stage)
        try:
            solver.scale_input(x, stage)  # some schedulers count on it
            x = solver.step(Guided(perfect), x, stage, source).x
        except Exception as error:  # whatever a class raises at these settings, it would in a run
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise _Failed(stage.step, cause) from error
        ends.append(x.flatten().double())
    return torch.stack(ends)


def fix_noise(solver: DiffusersSolver, source: NoiseSource) -> None:
    solver.start(source)
    if hasattr(solver.scheduler, "noise_sampler_seed"):  # two runs are compared, so they have the same tree
        solver.scheduler.noise_sampler_seed = 0


class _Failed(Exception):
    def __init__(self, step: int, cause: Exception):
        super().__init__(str(cause))
        self.step, self.cause = step, cause
