"""Perturbed-attention guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from research.guidance.perturbed import LayerPatch, PatchedLayers
from research.sampling.interfaces import Guidance, Patch, StepState


class PAG(PatchedLayers):
    """Perturbed-attention guidance (Ahn et al., arXiv:2403.17377): ``g + scale * (c - p)``.

    ``p`` is the conditional prediction with the self-attention maps of some layers replaced by the identity: each place sees its
    own value alone, so that structure is lost and appearance kept. ``g`` is what the base gives, ``c`` without one.

    Args:
        scale: strength of the push, from 0; the paper uses 1 to 5.
        layers: self-attention layers, by pattern; the paper takes the middle block.
        base: for example ``CFG(5)``; by default none, which costs two evaluations a stage.

    Raises:
        ConfigError: see `PatchedLayers`.
    """

    def __init__(self, scale: float = 3.0, layers: str | Sequence[str] = "mid", base: Guidance | None = None):
        super().__init__(scale, layers, base)

    def vectorises(self) -> bool:
        return self.pushes_each_alone()

    def patch(self, state: StepState) -> Patch:
        return IdentityAttention(self.layers)


class IdentityAttention(LayerPatch):
    """Self-attention whose map is the identity: the values, projected out."""

    def __call__(self, layer: Any, forward: Any, hidden: Tensor, **kwargs: Any) -> Tensor:
        residual, shape = hidden, hidden.shape
        if layer.spatial_norm is not None:
            hidden = layer.spatial_norm(hidden, kwargs.get("temb"))
        if len(shape) == 4:  # [N, C, h, w], as UNets without text have it
            hidden = hidden.flatten(2).transpose(1, 2)
        if layer.group_norm is not None:
            hidden = layer.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
        for projection in (layer.to_v, *layer.to_out):
            hidden = projection(hidden)
        if len(shape) == 4:
            hidden = hidden.transpose(-1, -2).reshape(shape)
        if layer.residual_connection:
            hidden = hidden + residual
        return hidden / layer.rescale_output_factor
