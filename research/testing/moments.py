"""Mean and variance of what a solver samples on Gaussian data, exactly, and so the weak order of solvers that add noise.

A linear solver on a model whose data prediction is affine in the latents keeps every latent an affine function of the start
and of the noises drawn on the way. These coefficients are propagated, and with them mean and variance are known to rounding.

With ``y = x / signal``, ``r = noise / signal`` and a stochasticity ``tau^2(r)``, 0 for the ODE and 1 for the reverse SDE of
arXiv:2011.13456, solvers follow

    dy = (1 + tau^2) (y - D) dr / r + tau sqrt(2 r) dw                                  (SA-Solver, arXiv:2309.05019, eq. 6),

which keeps the marginals whatever tau is, so that the right variance is that of the last level. On data of spread s, a start
that is off the mean stays off it ``exp(integral of (1 + tau^2) r / (s^2 + r^2) dr)`` times as far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from research.solvers import Level, Levels, LinearSolver, StagePlan
from research.solvers.levels import trained_levels
from research.testing.gaussian import GaussianModel
from research.testing.orders import FLOW_LEVELS, SmoothLevels

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WeakError:
    """What is wrong with the latents at the end, the worst over the elements.

    Attributes:
        mean: of latents that begin a standard deviation off the mean, how many of them they end from where they should.
        variance: distance of variance over right variance from 1, of latents that begin at the marginal of the first level.
    """

    mean: float
    variance: float


def end_moments(solver: LinearSolver, model: GaussianModel, levels: Levels) -> tuple[Array, Array, Array]:
    """Moments of latents at the end of a grid, which begin at the marginal of its first level.

    Args:
        solver: any linear one; `LinearSolver.clip` is not heeded, as it is not linear.
        model: of Gaussian data with one or several means and spreads.
        levels: the grid; latents have noise at each level asked at.

    Returns:
        For each element of ``model.mean`` and ``model.std``, flattened: the mean, the variance, and how far the mean moves when
        the start does by one of its standard deviations.
    """
    mean, spread = model.mean.numpy().ravel(), model.std.numpy().ravel()
    plan = solver.plan(levels)
    noisy = [k for k, stage in enumerate(plan) if stage.update.noise]
    column = {k: 2 + place for place, k in enumerate(noisy)}
    first = levels[0]
    x = np.zeros((len(mean), 2 + len(noisy)))  # factors of 1, of the start's noise, and of each that is drawn
    x[:, 0], x[:, 1] = first.signal * mean, np.hypot(first.signal * spread, first.noise)
    latents: list[Array] = []
    data: list[Array] = []
    for k, stage in enumerate(plan):
        latents.insert(0, x)
        data.insert(0, _data(x, stage.level, mean, spread))
        x = _combined(stage, plan, k, latents, data)
        if stage.update.noise:
            x[:, column[k]] += stage.update.noise
        kept = max((later.update.depth for later in plan[k + 1 :]), default=0) + 1
        del latents[kept:], data[kept:]
    drawn = x[:, 2:]
    variance = x[:, 1] ** 2 + np.einsum("ei,ij,ej->e", drawn, _correlation([plan[k] for k in noisy]), drawn)
    return x[:, 0], variance, x[:, 1]


def weak_errors(
    solver: LinearSolver,
    model: GaussianModel,
    steps: Sequence[int],
    sigmas: Any = None,
    stochasticity: Callable[[float], float] = lambda ratio: 1.0,
) -> list[WeakError]:
    """How far mean and variance at the end of smooth levels are off, for each number of steps.

    Args:
        sigmas: the levels, in the place of those of `SmoothLevels`; the first has signal, the last noise.
        stochasticity: ``tau^2`` of noise over signal.
    """
    flow = model.prediction == "flow"
    grid = sigmas or (FLOW_LEVELS if flow else SmoothLevels())
    trained = trained_levels(model.scheduler_config, flow=flow)
    mean, spread = model.mean.numpy().ravel(), model.std.numpy().ravel()
    found = []
    for count in steps:
        levels = grid.levels(trained, count)
        own_mean, variance, moved = end_moments(solver, model, levels)
        start, end = levels[0], levels[-1]
        right = (end.signal * spread) ** 2 + end.noise**2
        begun = np.hypot(spread, start.noise / start.signal)
        expected = end.signal * begun * _kept(spread, start, end, stochasticity)
        off = (np.abs(own_mean - end.signal * mean) + np.abs(moved - expected)) / np.sqrt(right)
        found.append(WeakError(float(off.max()), float(np.abs(variance / right - 1.0).max())))
    return found


def _kept(spread: Array, start: Level, end: Level, stochasticity: Callable[[float], float]) -> Array:
    """What is left at the end of a distance from the mean, latents over their signal."""
    high, low = (np.log(level.noise / level.signal) for level in (start, end))
    nodes, weights = np.polynomial.legendre.leggauss(64)
    exponent = np.zeros_like(spread)
    for node, weight in zip((nodes + 1.0) / 2.0, weights / 2.0, strict=True):  # in log r
        ratio = float(np.exp(low + node * (high - low)))
        exponent += weight * (high - low) * (1.0 + stochasticity(ratio)) * ratio**2 / (spread**2 + ratio**2)
    return np.exp(-exponent)


def _data(x: Array, level: Level, mean: Array, spread: Array) -> Array:
    gain = level.signal * spread**2 / ((level.signal * spread) ** 2 + level.noise**2)
    found = gain[:, None] * x
    found[:, 0] += mean - gain * level.signal * mean
    return found


def _combined(
    stage: StagePlan, plan: Sequence[StagePlan], k: int, latents: Sequence[Array], data: Sequence[Array]
) -> Array:
    update = stage.update
    found = np.zeros_like(latents[0])
    parts: tuple[tuple[Mapping[int, float], Sequence[Array]], ...] = ((update.latents, latents), (update.data, data))
    for factors, known in parts:
        for back, factor in factors.items():
            found += factor * known[back]
    for back, factor in update.slopes.items():
        level = plan[k - back].level
        found += factor * (latents[back] / level.scale - data[back]) / level.sigma
    return found


def _correlation(stages: Sequence[StagePlan]) -> Array:
    """Of the noises drawn at stages: increments of one Brownian path have the time in common that their intervals have."""
    found = np.eye(len(stages))
    places = [i for i, stage in enumerate(stages) if stage.update.interval is not None]
    if places:
        high, low = (np.array([stages[i].update.interval[end] for i in places]) for end in (0, 1))  # type: ignore[index]
        shared = np.minimum.outer(high, high) - np.maximum.outer(low, low)
        length = high - low
        found[np.ix_(places, places)] = np.maximum(shared, 0.0) / np.sqrt(np.outer(length, length))
    return found
