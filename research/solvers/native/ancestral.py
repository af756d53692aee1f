"""Ancestral noise: a step goes further down than its level, and fresh noise brings it back up."""

from __future__ import annotations

import math

from research.solvers.levels import Level, TrainedLevels


def ancestral(start: Level, end: Level, eta: float = 1.0) -> tuple[float, float]:
    """Where the deterministic part of a step leads, and how much noise follows.

    Variance-preserving (k-diffusion's ``get_ancestral_step``): ``up = min(sigma', eta sqrt(sigma'^2 (sigma^2 - sigma'^2) /
    sigma^2))`` and ``down = sqrt(sigma'^2 - up^2)``. Flow: ``down = sigma' (1 + (sigma' / sigma - 1) eta)``, and the noise
    restores the level.

    Returns:
        ``sigma_down``, and the standard deviation of the noise at the scaling of ``end``.
    """
    if not eta or not end.noise:
        return end.sigma, 0.0
    if end.flow:
        down = end.sigma * (1.0 + (end.sigma / start.sigma - 1.0) * eta)
        factor = end.signal / (1.0 - down)
        return down, math.sqrt(max(end.noise**2 - (factor * down) ** 2, 0.0))
    up = min(end.sigma, eta * end.sigma * math.sqrt(max(1.0 - (end.sigma / start.sigma) ** 2, 0.0)))
    return math.sqrt(max(end.sigma**2 - up**2, 0.0)), end.signal * up


def level_at(trained: TrainedLevels, sigma: float) -> Level:
    """The level of a sigma, clean at 0."""
    return trained.at_sigma(sigma) if sigma else trained.clean()
