"""Any function of the latents, before the model sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from research.errors import ConfigError, SamplingError
from research.sampling.hooks import Hook
from research.sampling.run import StepState


class LatentTransform(Hook):
    """Replaces the latents before a step by a function of them.

    Args:
        transform: takes latents [N, C, h, w] and returns latents of the same shape and dtype.
        steps: the part of the user's steps in which it acts, as two fractions ``lo <= hi`` from 0 to 1: step ``k`` of
            ``n``, counted from 0, is in it if ``lo <= k / n < hi``.

    Raises:
        ConfigError: the fractions are out of order or range.
        SamplingError: the function returned another shape or dtype.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor], steps: Sequence[float] = (0.0, 1.0)):
        self.transform = transform
        self.low, self.high = (float(bound) for bound in steps)
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise ConfigError(
                f"hooks.latent_transform.steps: found {list(steps)}; accepted are 0 <= lo <= hi <= 1."
            )

    def pre_step(self, state: StepState) -> None:
        stage = state.stage
        if not self.low <= stage.step / stage.n_steps < self.high:
            return
        new = self.transform(state.x)
        if new.shape != state.x.shape or new.dtype != state.x.dtype:
            raise SamplingError(
                f"hooks.latent_transform: returned {tuple(new.shape)} {new.dtype} at step {stage.step}; "
                f"accepted is the latents' own {tuple(state.x.shape)} {state.x.dtype}."
            )
        state.x = new
