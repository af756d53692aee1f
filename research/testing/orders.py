"""The order of a solver, measured: how fast its error falls with the number of steps on a model that is known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from research.sampling import LoopSampler
from research.solvers import Levels, LinearSolver, TrainedLevels
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask


@dataclass(frozen=True)
class SmoothLevels:
    """Levels that are smooth in half log-SNR, from that of ``first`` to that of ``last``: at ``u = i / steps`` the part
    ``u^power`` is behind.

    A multistep method begins with steps of lower order. With a power of 3 its first steps are so short that they do not decide.

    Args:
        first, last: sigmas of the ends; the last has noise, as no step is smooth that ends without.
        power: 1 is even.
    """

    first: float = 8.0
    last: float = 0.15
    power: float = 3.0

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        """See `research.solvers.levels.Schedule`."""
        top, end = (trained.at_sigma(sigma).half_log_snr for sigma in (self.first, self.last))
        places = [top + (end - top) * (i / steps) ** self.power for i in range(steps + 1)]
        return Levels(tuple(trained.at_half_log_snr(place) for place in places), trained, n_steps=steps)


FLOW_LEVELS = SmoothLevels(first=0.9, last=0.13)


def errors(solver: LinearSolver, model: GaussianModel, steps: Sequence[int], sigmas: Any = None) -> list[float]:
    """Root mean square distance of the latents at the end from the exact trajectory's, for each number of steps."""
    grid = sigmas or (FLOW_LEVELS if model.prediction == "flow" else SmoothLevels())
    found = []
    for count in steps:
        task = GaussianTask()
        LoopSampler(model, solver, sigmas=grid).sample(task, seeds=[0, 1], steps=count, progress=False)
        first = task.timeline_walked[0]
        right = model.transport(torch.cat(task.starts), (first.signal, first.noise), task.end_level)
        found.append(float((torch.cat(task.ends).double() - right).square().mean().sqrt()))
    return found


def slope(steps: Sequence[int], found: Sequence[float]) -> float:
    """The order that the last two errors show: minus the slope of log error over log steps."""
    return math.log(found[-2] / found[-1]) / math.log(steps[-1] / steps[-2])
