"""Which of diffusers' scheduler classes sample at all: many serve tokens, masks or a pipeline of their own."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from research.errors import ConfigError

_OF_A_STEP = ("model_output", "timestep", "sample")
_SHAPE = (1, 4, 8, 8)


def check_can_sample(scheduler: Any, name: str, step_options: Mapping[str, Any]) -> None:
    """See that a scheduler takes a latent from one timestep to the next, given a prediction: it is asked to, twice.

    Args:
        scheduler: as it was constructed; it is left alone.
        name: how messages call it.
        step_options: further arguments of its ``step``.

    Raises:
        ConfigError: its step asks for something else, or fails.
    """
    parameters = inspect.signature(scheduler.step).parameters
    needed = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and key not in (*_OF_A_STEP, *step_options)
    ]
    if needed:
        raise ConfigError(
            f"scheduler: {name} cannot sample here: its step asks for {', '.join(needed)} besides prediction, timestep and "
            "latents; accepted are classes whose step takes these three."
        )
    probe = copy.deepcopy(scheduler)
    generator = torch.Generator().manual_seed(0)
    more = {**step_options, **({"generator": generator} if "generator" in parameters else {})}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            probe.set_timesteps(5)
            times = probe.timesteps
        except Exception:  # counts are somebody else's to judge
            return
        x = torch.randn(_SHAPE, generator=torch.Generator().manual_seed(1))
        try:
            for time in times[:2]:
                given = probe.scale_model_input(x, time) if hasattr(probe, "scale_model_input") else x
                x = probe.step(0.1 * given, time, x, return_dict=False, **more)[0]
            fits = isinstance(x, torch.Tensor) and tuple(x.shape) == _SHAPE and x.is_floating_point()
            reason = "its step makes no latents of latents"
        except Exception as error:  # of a class that was made for something else, in any way
            said = str(error).strip().splitlines() or [type(error).__name__]
            fits, reason = False, f"its step fails on latents ({said[0][:160]})"
    if not fits:
        raise ConfigError(
            f"scheduler: {name} cannot sample here: {reason}; accepted are classes that step latents from timestep to timestep."
        )
