"""Guidance rescale: guided predictions are given the spread of the conditional one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from research.checks import check_number
from research.guidance.modifier import Modifier
from research.guidance.pairs import guided_in
from research.guidance.spaces import checked_space, needs_levels, per_image
from research.guidance.wrapping import with_branches
from research.sampling.interfaces import Branch, Guidance, Guided, StepState
from research.sampling.prediction import Prediction

_KEY = "guidance.modifiers.rescale"


class Rescale(Modifier):
    """Takes back the growth of contrast that guidance brings (Lin et al., arXiv:2305.08891, eqs. 15 and 16).

    With ``std`` over each image, ``g * (phi * std(c) / std(g) + 1 - phi)`` for the guided prediction ``g`` and the
    conditional one ``c``, which is evaluated if the guidance does not ask for it. By default of what the model predicts, as
    diffusers' ``guidance_rescale`` (``rescale_noise_cfg``): with ``parity=True`` bit for bit what its pipelines make around
    `CFG`. On purpose different: an image without spread stays as it is, where diffusers divides by 0; half precision is
    computed in fp32; a step that stands still (`CFGZero`) is left as it is.

    Args:
        guidance: what is rescaled.
        phi: from 0 (off) to 1; the paper takes 0.7.
        space: where: "prediction" for what the model predicts, "x0" (whose spread is what one sees), "epsilon", "v" or "flow".

    Raises:
        ConfigError: phi or space is not one of the accepted.
    """

    def __init__(self, guidance: Guidance, phi: float = 0.7, space: str = "prediction"):
        super().__init__(guidance)
        self.phi = check_number(f"{_KEY}.phi", phi, least=0, most=1)
        self.space = checked_space(space, f"{_KEY}.space")
        self.own_requires = needs_levels(self.space) if self.phi else frozenset()

    def vectorises(self) -> bool:
        return self.guidance.vectorises()

    def branches(self, state: StepState) -> Sequence[Branch]:
        asked = self.guidance.branches(state)
        if self.phi == 0 or self.stands_still(state):
            return asked
        return with_branches(asked, *Guidance.branches(self, state))

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        guided = self.guidance.combine(state, predictions)
        if self.phi == 0 or self.stands_still(state) or guided.prediction is predictions["cond"]:
            return guided
        if state.run.parity and self.space == "prediction":
            c, g = predictions["cond"].value, guided.prediction.value
            over = list(range(1, g.ndim))
            # the pipelines' own order of operations
            level = g * (c.std(dim=over, keepdim=True) / g.std(dim=over, keepdim=True))
            value = self.phi * level + (1 - self.phi) * g
            return replace(guided, prediction=Prediction(value, guided.prediction.kind))
        pair = {"c": predictions["cond"], "g": guided.prediction}
        return replace(guided, prediction=guided_in(state, pair, self.space, self._rescaled).prediction)

    def _rescaled(self, values: Mapping[str, Tensor]) -> Tensor:
        c, g = values["c"], values["g"]
        ratio = _std(c) / _std(g).clamp_min(torch.finfo(torch.float32).tiny)
        return g * per_image(self.phi * ratio + (1 - self.phi), g)


def _std(x: Tensor) -> Tensor:
    return x.flatten(1).float().std(dim=1)
