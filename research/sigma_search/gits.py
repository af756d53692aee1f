"""GITS: the levels of a converged run between which Euler's step errs least."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from research.errors import ConfigError
from research.sigma_search.bench import Trajectory
from research.solvers import Level, to_data


def costs(trajectory: Trajectory) -> Tensor:
    """How far one Euler step from a level to a later one ends from where the trajectory is, [L, L + 1]; infinite backwards.

    The root mean square over images and elements of latents (GITS, arXiv:2405.11326, eq. 8), in the loop's own scaling.
    """
    levels = trajectory.levels
    count = levels.steps
    found = torch.full((count, count + 1), math.inf, dtype=torch.float64)
    for i in range(count):
        for j in range(i + 1, count + 1):
            step = to_data(levels[i], levels[j], {0: 1.0})
            there = trajectory.latents[j] if j < count else trajectory.end
            ends = step.latents[0] * trajectory.latents[i] + step.data[0] * trajectory.data[i]
            found[i, j] = (ends - there).square().mean().sqrt()
    return found


def cheapest(cost: Tensor, steps: int, coefficient: float = 1.15) -> list[int]:
    """The places of levels, from the first to the end, whose steps cost least in all; exact, by dynamic programming.

    Args:
        cost: of each step, [L, L + 1], infinite where there is none.
        steps: how many are taken.
        coefficient: a step's cost counts so much more for each step that comes before it: what is made early may be mended, what
            is made late stays (GITS, section 3.3).

    Raises:
        ConfigError: more steps than there are levels.
    """
    count = len(cost)
    if not 1 <= steps <= count:
        raise ConfigError(f"steps: found {steps}; accepted are 1 to {count}, the levels of the converged run.")
    left = cost[:, count].clone()  # the cheapest way to the end with one step
    ways: list[Tensor] = []
    for _ in range(steps - 1):
        total = cost[:, :count] + coefficient * left[None, :]
        left, way = total.min(dim=1)
        ways.append(way)
    places = [0]
    for way in reversed(ways):
        places.append(int(way[places[-1]]))
    return [*places, count]


def grid(trajectory: Trajectory, steps: int, coefficient: float = 1.15) -> tuple[Level, ...]:
    """The levels that GITS finds, the end included."""
    return tuple(trajectory.levels[place] for place in cheapest(costs(trajectory), steps, coefficient))
