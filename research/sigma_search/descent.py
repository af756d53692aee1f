"""Levels by descent of the solver's own error, without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from research.solvers import TrainedLevels


def descend(
    error: Callable[[list[float]], float],
    start: Sequence[float],
    trained: TrainedLevels,
    evaluations: int,
    told: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Falling sigmas with a smaller error, by the Nelder-Mead simplex.

    The first level stays; the others are told by the shares of log-SNR that each step takes, as logarithms, so that every point
    of the search is a grid that falls.

    Args:
        error: of a list of sigmas, without the end.
        start: sigmas to begin with, at least two.
        trained: gives the axis: between the first level and the smallest one.
        evaluations: of the error, at most.
        told: called with how many were made and the best so far.

    Returns:
        The best sigmas that were tried, those to begin with counted.
    """
    from scipy.optimize import minimize

    first, lowest = start[0], trained.at_sigma(trained.sigma_min).half_log_snr
    top = trained.at_sigma(first).half_log_snr
    if not math.isfinite(top):  # from noise alone: the axis begins at the second level, which stays
        if len(start) < 3:
            return list(start)
        return [first, *descend(lambda sigmas: error([first, *sigmas]), start[1:], trained, evaluations, told)]
    span = lowest - top
    points = [trained.at_sigma(sigma).half_log_snr for sigma in start]
    shares = np.diff([*points, max(lowest, points[-1] + 1e-3 * span)]) / span
    best: tuple[float, list[float]] = (error(list(start)), list(start))
    made = 1

    def grid(logs: np.ndarray) -> list[float]:
        parts = np.exp(logs - logs.max())
        parts = parts / parts.sum()
        places = top + span * np.cumsum(parts)[:-1]
        return [first, *(trained.at_half_log_snr(float(place)).sigma for place in places)]

    def score(logs: np.ndarray) -> float:
        nonlocal best, made
        sigmas = grid(logs)
        value = error(sigmas)
        made += 1
        if value < best[0]:
            best = value, sigmas
        if told is not None:
            told(made, best[0])
        return value

    logs = np.log(np.maximum(shares, 1e-4))
    simplex = np.stack([logs, *(logs + 0.5 * unit for unit in np.eye(len(logs)))])
    options = {
        "maxfev": max(evaluations - 1, 1),
        "initial_simplex": simplex,
        "xatol": 1e-3,
        "fatol": 1e-6,
        "adaptive": True,
    }
    minimize(score, logs, method="Nelder-Mead", options=options)
    return best[1]
