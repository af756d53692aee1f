"""Going back to a higher noise level and denoising again: Restart, and the jumps of RePaint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from research.checks import check_whole_number
from research.errors import ConfigError
from research.hooks.windows import Window
from research.sampling.interfaces import Hook, Run, Solver, StepState
from research.sampling.noise import HOOK
from research.sampling.timeline import Timeline, noise_level

Level = tuple[float, float]  # signal and noise of the latents


class Revisiting(Hook):
    """What hooks share that walk over stages again. A subclass says in which order.

    Where the walk goes back, latents of the level ``(a, b)`` that they have come to get the noise that they lack of the earlier
    one ``(a', b')``, from a stream of their own: ``x' = (a' / a) x + sqrt(b'^2 - (a' / a)^2 b^2) epsilon``, a draw from
    ``q(x' | x)`` of the forward process. (In the scaling of arXiv:2206.00364, ``a = 1``, this is line 5 of Restart's algorithm
    1; in that of DDPM it is line 9 of RePaint's, for ``jump_length`` steps at once.)

    It takes a scheduler that can go back: first-order ones without memory (ddim, ddpm, euler, euler_a), without parity.
    """

    order = -1000  # before whatever looks at the latents
    requires = frozenset({"revisits"})
    claims = frozenset({"timeline"})
    keeps = ("_reached",)
    name: ClassVar[str]  # of the hook in messages, and of its noise

    def walk(self, solver: Solver, timeline: Timeline) -> list[int]:
        """Indices of the timeline's stages in the order that they are walked."""
        raise NotImplementedError

    def timeline(self, solver: Solver, timeline: Timeline) -> Timeline:
        if "revisits" not in solver.supports or timeline.order is not None:
            raise ConfigError(
                f"hooks.{self.name}: cannot go back in the timeline of {solver.name} with this task; accepted are tasks that "
                "denoise once."
            )
        if not len(timeline):
            return timeline
        return dataclasses.replace(timeline, order=tuple(self.walk(solver, timeline)))

    def on_start(self, run: Run) -> None:
        self._levels = levels(run.solver, run.timeline)
        self._reached: int | None = None

    def pre_step(self, state: StepState) -> None:
        index, reached = state.stage.index, self._reached
        if reached is not None and index < reached:
            noise = state.run.noise.draw(f"{HOOK}/{self.name}", state.x.shape[1:], state.x.dtype)
            state.x = renoised(state.x, noise, self._levels[reached], self._levels[index])
        self._reached = index + 1


class Restart(Revisiting):
    """Restart sampling (arXiv:2306.14878, algorithm 1): an interval of noise levels is gone through ``times`` times more.

    Each time the latents at its lower end are noised to the upper one and denoised again, which shrinks the errors made so far.
    The interval's steps are those of the run (the paper gives them a number of their own): it reaches from the highest of the
    run's levels that lies in it to the lowest. ``times`` more ways through ``m`` steps cost ``times * m`` evaluations more.

    Args:
        sigma: ``(lo, hi)``, noise levels ``noise / signal``, for models that predict flow the flow time, with ``0 <= lo < hi``.
        times: how often the interval is gone through again, K in the paper; 0 is no hook.
        steps: the interval as a part of the user's steps instead of ``sigma``, two fractions ``lo < hi`` from 0 to 1: the steps
            ``k`` of ``n``, counted from 0, with ``lo <= k / n < hi`` are taken again.

    Raises:
        ConfigError: a setting is out of range, or the interval holds no step of the run (once the run is set up).
    """

    name = "restart"

    def __init__(self, sigma: Sequence[float] | None = None, times: int = 2, steps: Sequence[float] | None = None):
        if (sigma is None) == (steps is None):
            raise ConfigError("hooks.restart: found neither or both of sigma and steps; accepted is one of them.")
        self.sigma = None if sigma is None else _interval("hooks.restart.sigma", sigma)
        self.window = None if steps is None else Window("hooks.restart.steps", steps)
        self.times = check_whole_number("hooks.restart.times", times, least=0)

    def walk(self, solver: Solver, timeline: Timeline) -> list[int]:
        inside = self._inside(solver, timeline)
        if not inside:
            sigmas = [noise_level(*level, solver.kind) for level in levels(solver, timeline)]
            key, told = (
                (f"steps: [{self.window.low:g}, {self.window.high:g}) holds none", "a wider part")
                if self.window
                else (
                    f"sigma: {list(self.sigma or ())} holds no two levels",
                    f"an interval within {sigmas[-1]:.3g} to {sigmas[0]:.3g} with two of them",
                )
            )
            raise ConfigError(
                f"hooks.restart.{key} of the {len(timeline)} steps that are run; accepted is {told}, or more steps."
            )
        through = list(range(inside[-1] + 1))
        return through + inside * self.times + list(range(inside[-1] + 1, len(timeline)))

    def _inside(self, solver: Solver, timeline: Timeline) -> list[int]:
        """Indices of the stages that are walked again, one after the other."""
        if self.window is not None:
            return [stage.index for stage in timeline.stages if stage in self.window]
        assert self.sigma is not None
        low, high = self.sigma
        found = [
            i for i, level in enumerate(levels(solver, timeline)) if low <= noise_level(*level, solver.kind) <= high
        ]
        return found[:-1]  # a stage lies between two levels


class RePaint(Revisiting):
    """The resampling of RePaint (arXiv:2201.09865, section 4.2 and appendix B): jumps back on the way down.

    Where the latents have come to the level of a stage that is a multiple of ``jump_length`` stages before the last, they are
    noised back by as many steps and denoised again, until this has been done ``jump_n_sample - 1`` times; after the last stage,
    where latents are clean, there is no jump. With 12 steps, ``jump_length=3`` and ``jump_n_sample=2`` the stages are 0 1 2 3 4,
    2 3 4 5 6 7, 5 6 7 8 9 10, 8 9 10 11. With `MaskComposite` or the inpainting task this is RePaint: what is drawn and what is
    kept come to fit. ``L`` steps cost ``L + jump_length * (jump_n_sample - 1) * ceil((L - jump_length) / jump_length)``
    evaluations.

    The walk is that of the published code (``get_schedule_jump``). Diffusers' ``RePaintPipeline`` has the same list of times and
    reads it one step later: it evaluates 0 to 5 first, jumps from there, and at last from the clean picture. The kept part is
    drawn afresh at each step, as published (see `Composite`). On purpose different: any scheduler without memory takes the
    steps and not DDPM's alone, and a jump draws once for all its steps, which is the same distribution.

    Args:
        jump_length: steps of a jump, from 1 to one less than are run; j in the paper, 10 there (of 250 steps).
        jump_n_sample: how often each stretch is denoised, r in the paper, 10 there; 1 is no hook.

    Raises:
        ConfigError: a setting is out of range (the jump's length once the run is set up).
    """

    name = "repaint"

    def __init__(self, jump_length: int = 10, jump_n_sample: int = 10):
        self.jump_length = check_whole_number("hooks.repaint.jump_length", jump_length, least=1)
        self.jump_n_sample = check_whole_number("hooks.repaint.jump_n_sample", jump_n_sample, least=1)

    def walk(self, solver: Solver, timeline: Timeline) -> list[int]:
        total, length = len(timeline), self.jump_length
        if length >= total:
            raise ConfigError(
                f"hooks.repaint.jump_length: found {length} with {total} steps to run; accepted is less, or more steps."
            )
        left = dict.fromkeys(range(0, total - length, length), self.jump_n_sample - 1)
        order, last = [], total - 1
        to_go = last  # stages after the one whose level the latents are at
        while to_go >= 0:
            order.append(last - to_go)
            to_go -= 1
            if left.get(to_go, 0):
                left[to_go] -= 1
                to_go += length
        return order


def levels(solver: Solver, timeline: Timeline) -> list[Level]:
    """``(signal, noise)`` of the latents at each stage, and after the last."""
    return [*((stage.signal, stage.noise) for stage in timeline.stages), solver.end_level]


def renoised(x: Tensor, noise: Tensor, start: Level, end: Level) -> Tensor:
    """Latents [N, C, h, w] of one level brought to a noisier one with standard normal noise of their shape, in their dtype."""
    ratio = end[0] / start[0] if start[0] else 1.0
    added = math.sqrt(max(end[1] ** 2 - (ratio * start[1]) ** 2, 0.0))
    wide = x if x.element_size() >= 4 else x.float()
    return (ratio * wide + added * noise).to(x.dtype)


def _interval(key: str, given: Any) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in given)
        good = 0.0 <= low < high < math.inf
    except (TypeError, ValueError):
        good = False
    if not good:
        found = list(given) if isinstance(given, list | tuple) else given
        raise ConfigError(f"{key}: found {found!r}; accepted are two numbers, 0 <= lo < hi.")
    return low, high
