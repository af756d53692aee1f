"""Diffusion posterior sampling: a step along the gradient of a residual after each step of the scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from research.guidance.loss import LossGuidance
from research.sampling.interfaces import Guidance, Guided, StepState
from research.sampling.prediction import Prediction


class DPS(LossGuidance):
    """Diffusion posterior sampling (Chung et al., arXiv:2209.14687, algorithm 1): after the scheduler's step from ``x``, latents
    move by ``-scale * grad_x ||y - A(x0(x))||``.

    The loss is the squared norm ``||y - A(x0)||**2`` of one image, and the step is along the gradient of the norm with a constant
    factor, as the paper's section 3.3 chooses it (``zeta_i = zeta' / ||y - A(x0)||`` times the gradient of the squared norm, so
    that ``scale`` is ``2 zeta'``) and as its published code has it. The gradient passes through the model, and the decoder.

    On purpose different: any scheduler with one evaluation a step and no memory may take the steps, where the paper has a DDPM of
    1000; in other scalings of the latents than DDPM's (Euler) the move is that of DDPM's scaling. Since each step of the
    scheduler is followed by one of the same size, the pull grows with the number of steps; `LossGuidance` is a term of the score,
    whose pull does not.

    Args:
        scale: zeta, the length of the move in units of the gradient; 0 is no guidance. The paper's tasks take 0.3 to 1 of
            1000 steps, pixels from -1 to 1.
        loss: of latents or pixels, a squared norm an image [N]; see `LossGuidance`.
        sees: "pixels" for the decoded estimate, or "latents".
        base: the guidance whose result the scheduler steps with, such as ``CFG(3)``; none by default.

    Raises:
        ConfigError: an argument is none of the accepted.
        SamplingError: the loss returns no tensor, another shape, NaN, infinity or a negative number, or has no gradient.
    """

    own_requires = frozenset({"noise-levels", "first-order"})

    def __init__(
        self, scale: float, loss: Callable[[Tensor], Tensor], sees: str = "pixels", base: Guidance | None = None
    ):
        super().__init__(scale, loss, sees=sees, base=base)

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        guided = self.guidance.combine(state, predictions)
        if not self.active(state):
            return guided
        values, gradient = self._plain_gradient(
            state, guided.prediction, lambda seen: self._losses(seen, state), pixels=self.sees == "pixels", through=True
        )
        of_norm = gradient / (2 * self._norms(state, values, gradient, "DPS"))
        # x = n * (DDPM's latents): the gradient with respect to these is n times that of x
        here, after = math.hypot(state.stage.signal, state.stage.noise), math.hypot(*_level_after(state))
        shift = -state.scale_of(self) * here * after * of_norm
        return replace(guided, shift=shift if guided.shift is None else guided.shift + shift)


def _level_after(state: StepState) -> tuple[float, float]:
    """Signal and noise of the latents that the step of this stage leads to."""
    timeline, after = state.run.timeline, state.stage.index + 1
    if after < len(timeline):
        return timeline[after].signal, timeline[after].noise
    return state.run.solver.end_level
