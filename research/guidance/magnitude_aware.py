"""Guidance that is damped where it is large."""

from __future__ import annotations

import torch
from torch import Tensor

from research.checks import check_number
from research.guidance.pairs import Pair, inner
from research.sampling.interfaces import StepState


class MagnitudeAware(Pair):
    """MAMBO-G (Zhu et al., arXiv:2508.03442, section 4): ``u + w * (c - u)`` with ``w = 1 + (scale - 1) * exp(-alpha *
    r)``.

    ``r = |c - u| / |u|``, one number an image and stage, says how large the update is against the prediction.

    Args:
        scale: the greatest one, where the predictions agree; 1 is no guidance and costs one evaluation a stage.
        alpha: how fast it is damped, from 0 (CFG); the paper has 8 for models with many latents.
        space: where lengths are taken: "flow" is that of the paper's velocities, whatever the model predicts; or "x0",
            "epsilon", "v", or "prediction". In "epsilon" the two hardly differ at high noise, which is where the damping
            matters.

    Raises:
        ConfigError: the scale is not a finite number, alpha is negative, or the space is unknown.
    """

    def __init__(self, scale: float = 7.5, alpha: float = 8.0, space: str = "flow"):
        super().__init__(scale, space)
        self.alpha = check_number("guidance.alpha", alpha, least=0)

    def vectorises(self) -> bool:
        return self.scale != 1

    def guided(self, state: StepState, u: Tensor, c: Tensor) -> Tensor:
        difference = c - u
        update, own = inner(difference, difference), inner(u, u)
        ratio = (update / own.clamp_min(1e-30)).sqrt()  # 0 where the predictions agree, whatever their length
        scale = 1 + (state.scale_of(self) - 1) * torch.exp(-self.alpha * ratio)
        return u + scale.to(u.dtype) * difference
