"""What diffusers' schedulers get wrong, found out for the schedule at hand, and put right outside parity mode.

Each correction works on a scheduler whose timesteps are set, and changes what it will read in its own ``step``, so that
clipping, thresholding and added noise stay the scheduler's own work. Only classes whose ``step`` is diffusers' own are
touched: what a class of somebody else's does is theirs to know.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from research.solvers.probing import noise_levels, surplus_stages, user_steps


@dataclass(frozen=True, slots=True)
class Walk:
    """The evaluations that a run makes, and how the scheduler is told of them.

    Attributes:
        times: what the model is told, the part that is walked, shape [L].
        step_of: the user's step of each, counted in the full schedule.
        levels: ``(signal, noise)`` of the latents at each.
        first: how many evaluations of the full schedule were left out.
        begin: where the scheduler's own count begins, or None where it is not to be told.
        arguments: what ``step`` is given as its timestep, where that is not what the model is told.
    """

    times: Tensor
    step_of: Sequence[int]
    levels: Sequence[tuple[float, float]]
    first: int
    begin: int | None
    arguments: Sequence[int] | None = None


def as_upstream(scheduler: Any, steps: int, kept: int, first: int | None = None) -> Walk:
    """The last ``kept`` of the user's steps, from the start of a step, or from evaluation ``first``.

    Raises:
        IndexError: the timesteps leave the scheduler's table of noise levels.
    """
    times = scheduler.timesteps
    step_of = user_steps(scheduler, steps, len(times))
    if first is None:
        first = next((i for i, step in enumerate(step_of) if step >= steps - kept), len(step_of))
    return Walk(times[first:], step_of[first:], noise_levels(scheduler, times, first), first, first)


def corrected(scheduler: Any, walk: Walk, steps: int, kept: int) -> tuple[Any, Walk]:
    """The walk put right, and the scheduler for it: the same where nothing is wrong, or a copy that was changed."""
    own = scheduler
    for correction in _CORRECTIONS:
        if len(walk.times) and correction.applies(scheduler) and correction.fault(scheduler, walk):
            scheduler = copy.deepcopy(scheduler) if scheduler is own else scheduler
            walk = correction.mend(scheduler, walk, steps, kept)
    return scheduler, walk


def faults(scheduler: Any, walk: Walk) -> list[str]:
    """What upstream gets wrong on this walk: a sentence each."""
    found = [c.fault(scheduler, walk) for c in _CORRECTIONS if len(walk.times) and c.applies(scheduler)]
    return [sentence for sentence in found if sentence]


def without_surplus(scheduler: Any, steps: int) -> None:
    """Take away what `surplus_stages` finds at the end of a scheduler whose timesteps are set, from all of its tables."""
    surplus = surplus_stages(scheduler, steps)
    if not surplus:
        return
    count = len(scheduler.timesteps)
    if hasattr(scheduler, "_timesteps"):  # PNDM keeps them rising, and apart for its two methods
        scheduler._timesteps = scheduler._timesteps[1:]
        scheduler.plms_timesteps = scheduler.plms_timesteps[:-1]
        scheduler.timesteps = scheduler.timesteps[:-1]
        return
    for name, table in vars(scheduler).items():
        of_stages = name == "timesteps" or name.startswith("sigmas")  # others are of the training timesteps
        if of_stages and isinstance(table, Tensor) and len(table) in (count, count + 1):
            kept = table[: count - surplus]
            # one entry more than stages is the level at the end
            setattr(scheduler, name, kept if len(table) == count else torch.cat([kept, table[-1:]]))


def lay_beta_over_timesteps(scheduler: Any) -> None:
    """Have ``use_beta_sigmas`` mean what its paper says: timesteps by the quantiles of a Beta distribution (Beta sampling,
    arXiv:2407.12173, section 4), with the noise levels of these. Upstream lays the quantiles over sigmas, so that one of the last
    steps crosses half of the picture."""
    config = scheduler.config
    bars = getattr(scheduler, "alphas_cumprod", None)
    own_step = type(scheduler).step.__module__.startswith("diffusers.")
    if not getattr(config, "use_beta_sigmas", False) or getattr(config, "use_flow_sigmas", False) or bars is None:
        return
    if not own_step or not hasattr(scheduler, "_convert_to_beta"):
        return
    alphas = bars.double().cpu().numpy()
    known = 0.5 * np.log((1 - alphas) / alphas)  # rising with the timestep

    def by_timestep(in_sigmas: Tensor, num_inference_steps: int, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
        from scipy import stats

        places = np.arange(len(known))
        last, first = np.interp(np.log([float(in_sigmas[-1]), float(in_sigmas[0])]), known, places)
        quantiles = stats.beta.ppf(1 - np.linspace(0, 1, num_inference_steps), alpha, beta)
        return torch.from_numpy(np.exp(np.interp(last + quantiles * (first - last), places, known)))

    scheduler._convert_to_beta = by_timestep


@dataclass(frozen=True, slots=True)
class _Correction:
    classes: tuple[str, ...]  # and what inherits their step; none: any with the attributes
    attributes: tuple[str, ...]
    fault: Callable[[Any, Walk], str | None]
    mend: Callable[[Any, Walk, int, int], Walk]

    def applies(self, scheduler: Any) -> bool:
        cls = type(scheduler)
        named = not self.classes or any(base.__name__ in self.classes for base in cls.__mro__)
        upstream = cls.step.__module__.startswith("diffusers.")
        return named and upstream and all(hasattr(scheduler, name) for name in self.attributes)


# -- DDIM: the step leads to t - num_train // n, and not to the next of its own timesteps (diffusers #12633, #11347)


def _gap(scheduler: Any) -> int:
    return scheduler.config.num_train_timesteps // scheduler.num_inference_steps


def _misses_its_next(scheduler: Any, times: Sequence[int]) -> bool:
    """Whether any of distinct, falling timesteps is left for another than the next; after the last comes the end."""
    leads_to = [t - _gap(scheduler) for t in times]
    return leads_to[:-1] != list(times[1:]) or leads_to[-1] >= 0


def _ddim_fault(scheduler: Any, walk: Walk) -> str | None:
    if not _misses_its_next(scheduler, walk.times.tolist()):
        return None
    return (
        f"DDIM with {scheduler.config.timestep_spacing} spacing steps to timestep t - {_gap(scheduler)} and not to the next "
        "timestep of its schedule (diffusers #12633, #11347)"
    )


def _ddim_mend(scheduler: Any, walk: Walk, steps: int, kept: int) -> Walk:
    """Levels and timesteps are renumbered, so that one less is the next of the schedule, and -1 the end."""
    times = walk.times.cpu()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod[times.flip(0).to(scheduler.alphas_cumprod.device)]
    scheduler.num_inference_steps = scheduler.config.num_train_timesteps  # a gap of 1
    return dataclasses.replace(walk, arguments=range(len(times) - 1, -1, -1))


# -- PNDM: the same, and its warm-up is lost where strength cuts the schedule


def _pndm_fault(scheduler: Any, walk: Walk) -> str | None:
    found = []
    if _misses_its_next(scheduler, scheduler._timesteps[::-1].tolist()):
        found.append(
            f"with {scheduler.config.timestep_spacing} spacing it steps to timestep t - {_gap(scheduler)} and not to the "
            "next one of its schedule"
        )
    if walk.first:
        found.append("sliced by strength its warm-up falls on timesteps that were not laid out for it")
    return f"PNDM: {'; '.join(found)}" if found else None


def _pndm_mend(scheduler: Any, walk: Walk, steps: int, kept: int) -> Walk:
    """The slice gets a warm-up of its own, and levels are renumbered: two less is the next timestep, one less half way.

    The warm-up is that of the class: three Runge-Kutta steps of four evaluations (PNDM, arXiv:2202.09778, section 3.4), or
    with ``skip_prk_steps`` (and where fewer than four steps are left) one step of Heun's method.
    """
    own = [int(t) for t in scheduler._timesteps[:kept]]  # rising
    n = len(own)
    runge_kutta = not scheduler.config.skip_prk_steps and n >= 4
    places: list[int] = []
    if runge_kutta:
        for step in range(n - 1, n - 4, -1):
            places += [2 * step, 2 * step - 1, 2 * step - 1, 2 * step - 2]
        scheduler.prk_timesteps = np.array(places)
        places += range(2 * (n - 4), -1, -2)
        step_of = [i // 4 for i in range(12)] + list(range(3, n))
    else:
        falling = list(range(2 * (n - 1), -1, -2))
        places = falling[:2] + falling[1:] if n > 1 else falling
        step_of = [0, *range(n)] if n > 1 else [0]
        scheduler.prk_timesteps = np.array([])
        scheduler.register_to_config(skip_prk_steps=True)
    halfway = [a + (b - a) // 2 for a, b in pairwise(own)] + own[-1:]
    numbered = torch.tensor([t for pair in zip(own, halfway, strict=True) for t in pair])
    times = numbered[places].to(scheduler.timesteps.device)
    levels = noise_levels(scheduler, times)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod[numbered.to(scheduler.alphas_cumprod.device)]
    scheduler.num_inference_steps = scheduler.config.num_train_timesteps // 2  # a gap of 2
    return Walk(
        times=times,
        step_of=[steps - kept + i for i in step_of],
        levels=levels,
        first=walk.first,
        begin=None,
        arguments=places,
    )


# -- LMS: sliced by strength, its order comes from the place in the full schedule while its history is empty (#5630)


def _lms_fault(scheduler: Any, walk: Walk) -> str | None:
    if not walk.first:
        return None
    return "LMS sliced by strength starts with coefficients for a history that it does not have (diffusers #5630)"


def _lms_mend(scheduler: Any, walk: Walk, steps: int, kept: int) -> Walk:
    """The schedule is cut to the slice, so that the scheduler's count is the length of its history."""
    scheduler.sigmas = scheduler.sigmas[walk.first :]
    scheduler.timesteps = scheduler.timesteps[walk.first :]
    return dataclasses.replace(walk, begin=0)


# -- DPM++ 3M: Karras's or exponential sigmas end at the smallest level, and final_sigmas_type sigma_min there once more


def _standstill_fault(scheduler: Any, walk: Walk) -> str | None:
    if scheduler.config.solver_order < 3 or not bool(scheduler.sigmas[-1] == scheduler.sigmas[-2] > 0):
        return None
    return (
        "DPM-Solver of order 3 divides by zero in its last step, which leads from the smallest noise level to the same"
    )


def _standstill_mend(scheduler: Any, walk: Walk, steps: int, kept: int) -> Walk:
    """The last step is one of first order: it stands still, as it should."""
    scheduler.register_to_config(euler_at_final=True)
    return walk


# -- Sigmas of one's own (Karras, exponential, beta, Lu, flow) with timesteps rounded to whole ones (#12771)

_ROUNDED_BY = 0.02  # timesteps; below it is rounding of the interpolation itself


def _right_times(scheduler: Any, walk: Walk) -> Tensor | None:
    """The timesteps that belong to the sigmas, where the schedule's are whole numbers and others."""
    if walk.times.is_floating_point() or not hasattr(scheduler, "set_begin_index"):
        return None
    count = scheduler.config.num_train_timesteps
    sigmas = scheduler.sigmas[walk.first : walk.first + len(walk.times)].double().cpu().numpy()
    if getattr(scheduler.config, "use_flow_sigmas", False):
        right = sigmas * count
    else:
        bars = scheduler.alphas_cumprod.double().cpu().numpy()
        right = np.interp(np.log(sigmas), 0.5 * np.log((1 - bars) / bars), np.arange(count))
    if np.abs(right - walk.times.cpu().numpy()).max() <= _ROUNDED_BY:
        return None
    return torch.from_numpy(right).to(walk.times.device, torch.float32)


def _rounded_fault(scheduler: Any, walk: Walk) -> str | None:
    if _right_times(scheduler, walk) is None:
        return None
    name = type(scheduler).__name__
    return f"{name} tells the model timesteps rounded to whole numbers, which are not those of its noise levels"


def _rounded_mend(scheduler: Any, walk: Walk, steps: int, kept: int) -> Walk:
    """The model is told the timestep of the level itself; the scheduler goes by its own count and does not look at it."""
    times = _right_times(scheduler, walk)
    return walk if times is None else dataclasses.replace(walk, times=times)


_CORRECTIONS = (
    _Correction(("DDIMScheduler", "DDIMParallelScheduler"), ("num_inference_steps",), _ddim_fault, _ddim_mend),
    _Correction(("PNDMScheduler",), ("_timesteps",), _pndm_fault, _pndm_mend),
    _Correction(("LMSDiscreteScheduler",), ("sigmas",), _lms_fault, _lms_mend),
    _Correction(("DPMSolverMultistepScheduler",), ("sigmas",), _standstill_fault, _standstill_mend),
    _Correction((), ("sigmas", "alphas_cumprod", "begin_index"), _rounded_fault, _rounded_mend),
)
