"""Any function of the latents, before the model sees them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from research.errors import ConfigError, SamplingError
from research.hooks.windows import Window, first_of_step
from research.sampling.interfaces import Hook, Run, StepState

KEY = "hooks.latent_transform"


class LatentTransform(Hook):
    """Replaces the latents before a step by a function of them, once a step.

    With a second-order scheduler (Heun, DPM2) it acts before the first evaluation of a step alone: the scheduler saves those
    latents and steps from them, so a transform before the second evaluation would be undone. What a scheduler remembers of
    earlier steps (predictions of LMS, PNDM, DPM++ 2M, UniPC; the latents that DPM++ 2S saves at the first of a pair of steps) is
    not transformed; for an effect that lasts undiluted, use one without memory (DDIM, Euler, Heun).

    Args:
        transform: takes latents [N, C, h, w], or latents and the `StepState`, and returns latents of the same shape and dtype.
            Methods ``on_start(run)`` and ``post_guidance(state)`` of it, if it has them, are called as those of a hook.
        steps: the part of the user's steps in which it acts, as two fractions ``lo <= hi`` from 0 to 1: step ``k`` of
            ``n``, counted from 0, is in it if ``lo <= k / n < hi``.

    Raises:
        ConfigError: the transform cannot be called, or the fractions are out of order or range.
        SamplingError: the function returned another shape or dtype.
    """

    def __init__(self, transform: Callable[..., Tensor], steps: Sequence[float] = (0.0, 1.0)):
        if not callable(transform):
            raise ConfigError(f"{KEY}.transform: found {transform!r}; accepted is a function of the latents.")
        self.transform = transform
        self.requires = frozenset(getattr(transform, "requires", ()))
        self.window = Window(f"{KEY}.steps", steps)
        self._with_state = _takes_state(transform)
        if observe := getattr(transform, "post_guidance", None):
            self.post_guidance = observe  # type: ignore[method-assign]  # the loop takes points set on an object

    def on_start(self, run: Run) -> None:
        self.window.warn_if_empty(run)
        if start := getattr(self.transform, "on_start", None):
            start(run)

    def pre_step(self, state: StepState) -> None:
        stage = state.stage
        if stage not in self.window or not first_of_step(state.run, stage):
            return
        new = self.transform(state.x, state) if self._with_state else self.transform(state.x)
        if not isinstance(new, Tensor) or new.shape != state.x.shape or new.dtype != state.x.dtype:
            found = f"{tuple(new.shape)} {new.dtype}" if isinstance(new, Tensor) else type(new).__name__
            raise SamplingError(
                f"{KEY}: {_name(self.transform)} returned {found} at step {stage.step}; "
                f"accepted is the latents' own {tuple(state.x.shape)} {state.x.dtype}."
            )
        state.x = new


def _takes_state(transform: Callable[..., Any]) -> bool:
    """Whether a function has a second argument that it needs, or one named "state"."""
    try:
        parameters = inspect.signature(transform).parameters.values()
    except (TypeError, ValueError):  # compiled ones do not tell
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    second = positional[1] if len(positional) > 1 else None
    return second is not None and (second.default is second.empty or second.name == "state")


def _name(transform: Any) -> str:
    return getattr(transform, "__name__", type(transform).__name__)
