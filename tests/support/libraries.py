"""What libraries work out again and again in a run of the tests, worked out once. Nothing that they give is another."""

from __future__ import annotations

from functools import wraps
from typing import Any

import diffusers
import numpy as np
from hydra._internal import defaults_list
from omegaconf import OmegaConf


def timesteps_of_levels_once() -> None:
    """A KDPM2 scheduler has the timesteps of 1000 levels when it is made, one by one, which takes half a second."""
    for kind in (diffusers.KDPM2DiscreteScheduler, diffusers.KDPM2AncestralDiscreteScheduler):
        _once(kind)


def _once(kind: Any) -> None:
    theirs, known = kind._sigma_to_t, {}

    @wraps(theirs)  # the name of its module tells the solvers that the class is as it was published
    def timestep(self: Any, sigma: Any, log_sigmas: Any) -> Any:
        of_grid = known.setdefault((type(log_sigmas), np.asarray(log_sigmas).tobytes()), {})
        key = type(sigma), np.asarray(sigma).dtype, np.shape(sigma), np.asarray(sigma).tobytes()
        if key not in of_grid:
            of_grid[key] = theirs(self, sigma, log_sigmas)
        return of_grid[key]  # callers make arrays of them

    kind._sigma_to_t = timestep


def choices_of_others_where_asked() -> None:
    """Hydra makes a config of all choices for each file that it lists, for entries of defaults that name another choice."""
    theirs, none = defaults_list._create_interpolation_map, OmegaConf.create({})

    def of_others(overrides: Any, entries: list[Any], self_added: bool) -> Any:
        asked = any(not entry.is_self() and entry.is_interpolation() for entry in entries)
        return theirs(overrides, entries, self_added) if asked else none

    defaults_list._create_interpolation_map = of_others
