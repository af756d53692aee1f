"""Token perturbation guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from research.guidance.perturbed import LayerPatch, PatchedLayers
from research.sampling.interfaces import Guidance, ModelFacts, Patch, StepState
from research.sampling.noise import NoiseSource

STREAM = "hook/tpg"


class TPG(PatchedLayers):
    """Token perturbation guidance (Rajabi et al., arXiv:2506.10036, section 4): ``g + scale * (c - p)``.

    ``p`` is the conditional prediction of a network in which the picture's tokens are shuffled before some of its blocks: what
    they say stays, and where they say it is lost. It needs no prompt. ``g`` is what the base gives, ``c`` without one. On
    purpose different from the authors' code: each image, block and stage has a permutation of its own, drawn from the image's
    noise, where that has one for a batch.

    Args:
        scale: strength of the push, from 0; the authors take 3.
        layers: transformer blocks, by pattern; in a network without any, its self-attention layers. By default those of the way
            down, as the authors have it, or where there is none the block in the middle.
        base: for example ``CFG(5)``; by default none, which costs two evaluations a stage.

    Raises:
        ConfigError: see `PatchedLayers`.
    """

    kind = "picture-block"
    why = "shuffles the picture's tokens before blocks that are given them apart from the text's"
    branch = "shuffled"

    def __init__(self, scale: float = 3.0, layers: str | Sequence[str] | None = None, base: Guidance | None = None):
        super().__init__(scale, "down" if layers is None else layers, base)
        self._usual = layers is None

    def _choose(self, model: ModelFacts) -> list[str]:
        if self._usual and not any(name.startswith("down_blocks") for name in model.layers(self.kind)):
            self.layers = ("mid",)
        elif self._usual:
            self.layers = ("down",)
        return super()._choose(model)

    def vectorises(self) -> bool:
        return self.pushes_each_alone()

    def patch(self, state: StepState) -> Patch:
        return ShuffledTokens(self.chosen, state.run.noise)


class ShuffledTokens(LayerPatch):
    """A block that is given the picture's tokens in another order, its own for each image."""

    kind = "picture-block"

    def __init__(self, layers: Sequence[str], noise: NoiseSource):
        super().__init__(layers)
        self.noise = noise

    def __call__(self, layer: Any, forward: Any, hidden: Tensor, **kwargs: Any) -> Any:
        tokens = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
        order = self.noise.draw(STREAM, (tokens.shape[1],), torch.float32).argsort(dim=1)
        mixed = tokens.gather(1, order.unsqueeze(-1).expand_as(tokens))
        return forward(mixed.transpose(1, 2).reshape(hidden.shape) if hidden.ndim == 4 else mixed, **kwargs)
