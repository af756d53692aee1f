"""Renormalisation: guided predictions are given the length of the conditional one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from research.checks import check_choice
from research.guidance.modifier import Modifier
from research.guidance.pairs import guided_in
from research.guidance.wrapping import with_branches
from research.sampling.interfaces import Branch, Guidance, Guided, StepState
from research.sampling.packing import pack, unpack
from research.sampling.prediction import Prediction

_KEY = "guidance.modifiers.renorm"
OVER = ("tokens", "rows", "image")


class Renorm(Modifier):
    """Gives each vector of the guided prediction the length of the conditional one: ``g * |c| / |g|``.

    As the pipelines of Qwen-Image (``over="tokens"``) and Lumina 2 (``over="rows"``, its ``cfg_normalization``) do it around
    `CFG`: with ``parity=True`` bit for bit. The conditional prediction is evaluated if the guidance does not ask for it. On
    purpose different: a vector without length stays as it is, where diffusers divides by 0; half precision is computed in fp32; a
    step that stands still (`CFGZero`) is left as it is.

    Args:
        guidance: what is renormalised.
        over: what a vector is: "tokens" for what the network takes as one token (the channels of a patch of latents; of a
            network without patches, of one latent), "rows" for a row of a channel, "image" for all of an image.

    Raises:
        ConfigError: over is not one of the accepted.
    """

    def __init__(self, guidance: Guidance, over: str = "tokens"):
        super().__init__(guidance)
        self.over = check_choice(f"{_KEY}.over", over, OVER)

    def vectorises(self) -> bool:
        return self.guidance.vectorises()

    def branches(self, state: StepState) -> Sequence[Branch]:
        asked = self.guidance.branches(state)
        return asked if self.stands_still(state) else with_branches(asked, *Guidance.branches(self, state))

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        guided = self.guidance.combine(state, predictions)
        c, g = predictions["cond"], guided.prediction
        if g is c or self.stands_still(state):
            return guided
        model = state.run.model
        patch = model.size_multiple // model.vae_factor
        if state.run.parity and g.kind == c.kind:
            return replace(guided, prediction=Prediction(renormed(g.value, c.value, self.over, patch), g.kind))
        made = partial(_made, over=self.over, patch=patch)
        return replace(guided, prediction=guided_in(state, {"c": c, "g": g}, "prediction", made).prediction)


def _made(values: Mapping[str, Tensor], *, over: str, patch: int) -> Tensor:
    return renormed(values["g"], values["c"], over, patch)


def renormed(g: Tensor, c: Tensor, over: str, patch: int = 1) -> Tensor:
    """``g`` [N, C, h, w] with the lengths of ``c``; see `Renorm`. ``patch`` are the latents a token, on a side."""
    if over == "rows":
        return g * _ratio(c, g)
    if over == "image":
        return (g.flatten(1) * _ratio(c.flatten(1), g.flatten(1))).reshape(g.shape)
    height, width = g.shape[2:]
    tokens = pack(g, patch)
    return unpack(tokens * _ratio(pack(c, patch), tokens), height, width, patch)


def _ratio(c: Tensor, g: Tensor) -> Tensor:
    length = torch.norm(g, dim=-1, keepdim=True)
    return torch.where(length == 0, 1.0, torch.norm(c, dim=-1, keepdim=True) / length)
