"""Classifier-free guidance whose pull has a greatest length."""

from collections.abc import Mapping, Sequence

import torch

from research.checks import check_number
from research.guidance import Guidance
from research.sampling import Branch, Guided, Prediction, StepState, convert


class CappedCFG(Guidance):
    """CFG whose pull ``(scale - 1) (cond - uncond)`` is cut, image by image, to ``cap`` times the length of ``cond``.

    Lengths are those of clean estimates (x0), so that it does the same whatever the model predicts.

    Args:
        scale: 1 is no guidance.
        cap: greatest length of the pull, as a part of that of the conditional estimate; above 0. ``.inf`` is plain CFG.
    """

    requires = frozenset({"uncond"})
    neutral = 1.0

    def __init__(self, scale: float = 7.0, cap: float = 0.5):
        self.scale = check_number("guidance.scale", scale)
        self.cap = check_number("guidance.cap", cap, above=0, infinite=True)

    def branches(self, state: StepState) -> Sequence[Branch]:
        return [Branch(name, state.conditions[name]) for name in ("uncond", "cond")]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        u, c = (
            convert(predictions[name], "x0", state.x_before, state.stage).value.float() for name in ("uncond", "cond")
        )
        pull = (state.scale_of(self) - 1) * (c - u)
        over = length(pull) / (self.cap * length(c)).clamp_min(torch.finfo(torch.float32).tiny)
        x0 = c + pull / over.clamp_min(1)
        return Guided(Prediction(x0.to(predictions["cond"].value.dtype), "x0"))


def length(values: torch.Tensor) -> torch.Tensor:
    """Of each image: [N, C, h, w] to [N, 1, 1, 1]."""
    return values.square().sum((1, 2, 3), keepdim=True).sqrt()
