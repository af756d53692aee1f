"""What a scheduler is asked about itself: its noise levels, the user's steps, and whether it draws noise."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_KNOWN_DETERMINISTIC: dict[tuple[type, str], bool] = {}
_KNOWN_MEMORYLESS: dict[tuple[type, str], bool] = {}
_PROBED_STEPS = (20, 4, 1)  # the first count that the scheduler can make is taken


def cpu_copy(scheduler: Any) -> Any:
    """A copy to ask questions of: its tables on the CPU, and nothing done to it touches the original."""
    probe = copy.deepcopy(scheduler)
    for name, value in vars(probe).items():
        if isinstance(value, Tensor):
            setattr(probe, name, value.cpu())
    return probe


def settings_key(scheduler: Any, *more: Any) -> tuple[type, str]:
    """Class and config of a scheduler, and whatever else decides what it does, as a key of caches."""
    config = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in dict(scheduler.config).items()}
    # the class itself and not its name: a notebook defines the same name again and again
    return type(scheduler), json.dumps([config, *more], sort_keys=True, default=str)


def surplus_stages(scheduler: Any, steps: int) -> int:
    """How many evaluations too many a scheduler has whose timesteps are set.

    Trailing spacing counts down by ``num_train / steps`` in floats, and for 62 of the counts up to 1000 (61, 103, 121, ...) the
    rounding leaves one timestep more: -1, which there is none of. A second-order class evaluates it twice.
    """
    spacing = getattr(scheduler.config, "timestep_spacing", None)
    times = scheduler.timesteps
    if spacing != "trailing" or len(times) <= steps or float(times[-1]) >= 0:
        return 0
    return max(1, int(getattr(scheduler, "order", 1)))


def user_steps(scheduler: Any, steps: int, evaluations: int) -> list[int]:
    """The user's step that each model evaluation belongs to; a second-order step has two."""
    if evaluations == steps:
        return list(range(steps))
    if type(scheduler).__name__.startswith("PNDM"):
        # Runge-Kutta warm-up: four evaluations for each of the first three steps; without it, the first step has two
        warm_up, each = (3, 4) if not scheduler.config.skip_prk_steps else (1, 2)
        head = [i // each for i in range(warm_up * each)]
        return (head + list(range(warm_up, steps)))[:evaluations]
    order = max(1, math.ceil(evaluations / steps))
    return [min(i // order, steps - 1) for i in range(evaluations)]


def noise_levels(scheduler: Any, times: Tensor, first: int = 0) -> list[tuple[float, float]]:
    """``(signal, noise)`` of the latents at each evaluation from ``first`` on, in the scheduler's own scaling.

    Asked of the scheduler's public ``add_noise`` with unit samples, so that a class this project has never heard of works too.
    """
    places = range(first, len(times))
    if not places:
        return []
    # DPM2: every second evaluation is at a midpoint that add_noise does not know
    if hasattr(scheduler, "sigmas_interpol"):
        sigmas, middle = scheduler.sigmas.tolist(), scheduler.sigmas_interpol.tolist()
        back = 1 if hasattr(scheduler, "sigmas_up") else 0  # the ancestral kind keeps them one place earlier
        return [(1.0, middle[i - back] if i % 2 else sigmas[i]) for i in places]
    if hasattr(scheduler, "mid_point_sigma"):  # DPM-Solver++ SDE: its midpoints are geometric means
        sigmas = scheduler.sigmas.tolist()
        return [(1.0, math.sqrt(sigmas[i - 1] * sigmas[i]) if i % 2 else sigmas[i]) for i in places]
    ask = getattr(scheduler, "add_noise", None) or getattr(scheduler, "scale_noise", None)
    if ask is None:
        # nothing to ask (IPNDM): it samples, and whoever reads the levels sees that they are not known
        return [(math.nan, math.nan)] * len(places)
    # what a slice leaves out may be no timestep of the scheduler at all
    probe, at = cpu_copy(scheduler), times[first:].cpu()
    one, zero = torch.ones(len(at), 1), torch.zeros(len(at), 1)
    if hasattr(probe, "set_begin_index"):
        # by place: schedulers that look a timestep up find another level where a timestep stands twice
        levels = []
        for i, place in enumerate(places):
            probe.set_begin_index(place)
            probe._step_index = None  # flow Heun goes by the first place it was asked for
            levels.append(tuple(noised(probe, a[:1], b[:1], at[i : i + 1]) for a, b in ((one, zero), (zero, one))))
        return [(float(signal), float(noise)) for signal, noise in levels]
    signal, noise = noised(probe, one, zero, at), noised(probe, zero, one, at)
    return list(zip(signal.flatten().double().tolist(), noise.flatten().double().tolist(), strict=True))


def noised(scheduler: Any, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Clean samples noised by the scheduler itself, called as the pipelines call it."""
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(clean, noise, times)
    return scheduler.scale_noise(clean, times, noise)  # flow matching: no add_noise, and another order


def is_deterministic(scheduler: Any, kwargs: Mapping[str, Any], takes_generator: bool) -> bool:
    """Whether a fresh scheduler's steps add no noise, found by taking the same steps with other random numbers.

    Args:
        scheduler: as it was constructed; it is left alone.
        kwargs: further arguments of its ``step`` (``eta``, ``s_churn``).
        takes_generator: whether ``step`` has a ``generator``.
    """
    key = settings_key(scheduler, dict(kwargs), takes_generator)
    if key not in _KNOWN_DETERMINISTIC:
        a, b = (_walk(scheduler, kwargs, takes_generator, seed) for seed in (1, 2))
        _KNOWN_DETERMINISTIC[key] = a is not None and b is not None and torch.equal(a, b)
    return _KNOWN_DETERMINISTIC[key]


def is_memoryless(scheduler: Any, kwargs: Mapping[str, Any], takes_generator: bool) -> bool:
    """Whether a fresh scheduler evaluates the model once a step and forgets it, found by giving it two pasts and one present.

    Arguments as for `is_deterministic`.
    """
    key = settings_key(scheduler, dict(kwargs), takes_generator)
    if key not in _KNOWN_MEMORYLESS:
        _KNOWN_MEMORYLESS[key] = getattr(scheduler, "order", 1) == 1 and all(
            a is not None and b is not None and torch.equal(a[last:], b[last:])
            for last in (1, 2, 3)
            for a, b in [[_walk(scheduler, kwargs, takes_generator, 1, past=(past, last)) for past in (-1.0, 2.0)]]
        )
    return _KNOWN_MEMORYLESS[key]


def _walk(
    scheduler: Any, kwargs: Mapping[str, Any], takes_generator: bool, seed: int, past: tuple[float, int] | None = None
) -> Tensor | None:
    """All latents of a few steps with made-up outputs; None where the scheduler cannot be driven so.

    With ``past``, a factor and a count, so many first steps see latents and outputs times the factor, and one more is taken.
    """
    given = {**kwargs, "return_dict": False}
    if takes_generator:
        given["generator"] = torch.Generator().manual_seed(seed)
    for steps in _PROBED_STEPS if past is None else _PROBED_STEPS[:-1]:
        # a scheduler that takes no generator may draw from the global one, which is the user's
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            try:
                probe = cpu_copy(scheduler)
                if hasattr(probe, "noise_sampler_seed"):  # Brownian trees take seeds and no generators
                    probe.noise_sampler_seed = seed
                probe.set_timesteps(steps, **usual_shift(probe))
                start = x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
                passed: list[Tensor] = []
                for t in probe.timesteps[: None if past is None else past[1] + 1]:
                    if past is not None:
                        x = start * (past[0] if len(passed) < past[1] else 1.0)
                    if hasattr(probe, "scale_model_input"):
                        probe.scale_model_input(x, t)  # some count on it
                    x = probe.step(0.1 * x, t, x, **given)[0]
                    passed.append(x)
                return torch.stack(passed).nan_to_num()
            except Exception:  # whatever a class raises at this count, another may do
                continue
    return None


def usual_shift(scheduler: Any) -> dict[str, float]:
    """What ``set_timesteps`` is told of a shift where no model says for which size: that of large pictures, if there is one."""
    config = getattr(scheduler, "config", None) or {}
    return {"mu": float(config.get("max_shift") or 1.15)} if config.get("use_dynamic_shifting") else {}


def end_level(scheduler: Any, evaluations: int) -> tuple[float, float]:
    """``(signal, noise)`` of the latents after the last step of the full schedule: not always clean.

    Stable Diffusion's own config ends DDIM and PNDM at the level of timestep 0 (``set_alpha_to_one: false``), and
    ``final_sigmas_type: sigma_min`` does the same to the multistep schedulers.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if isinstance(sigmas, Tensor) and len(sigmas) > evaluations:
        last = sigmas[-1].double()
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            signal, noise = scheduler._sigma_to_alpha_sigma_t(last)
            return float(signal), float(noise)
        return 1.0, float(last)
    bar = getattr(scheduler, "final_alpha_cumprod", None)
    # LCM ends with its estimate of the clean latents and takes that level for none of its steps
    if bar is None or type(scheduler).__name__.startswith("LCM"):
        return 1.0, 0.0
    return math.sqrt(float(bar)), math.sqrt(1.0 - float(bar))
