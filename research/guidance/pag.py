"""Perturbed-attention guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from research.checks import check_number
from research.guidance.perturbed import LayerPatch, PatchedLayers
from research.sampling.interfaces import Branch, Guidance, Guided, Patch, StepState
from research.sampling.prediction import Prediction


class PAG(PatchedLayers):
    """Perturbed-attention guidance (Ahn et al., arXiv:2403.17377): ``g + scale * (c - p)``.

    ``p`` is the conditional prediction with the self-attention maps of some layers replaced by the identity: each place sees its
    own value alone, so that structure is lost and appearance kept. ``g`` is what the base gives, ``c`` without one.

    Args:
        scale: strength of the push, from 0; the paper uses 1 to 5.
        layers: self-attention layers, by pattern; the paper takes the middle block.
        base: for example ``CFG(5)``; by default none, which costs two evaluations a stage.
        adaptive: how fast the scale falls: at the time ``t``, from 1000 to 0, it is ``scale - adaptive * (1000 - t)``, not below
            0, from where on nothing is perturbed (``pag_adaptive_scale`` of diffusers); 0 keeps it.

    Raises:
        ConfigError: adaptive is no number from 0; see also `PatchedLayers`.
    """

    why = "replaces self-attention by the identity, which nobody has published for picture and text in one sequence"

    def __init__(
        self,
        scale: float = 3.0,
        layers: str | Sequence[str] = "mid",
        base: Guidance | None = None,
        adaptive: float = 0.0,
    ):
        super().__init__(scale, layers, base)
        self.adaptive = check_number("guidance.adaptive", adaptive, least=0)

    def vectorises(self) -> bool:
        return self.adaptive == 0 and self.pushes_each_alone()

    def branches(self, state: StepState) -> Sequence[Branch]:
        with self._adapted(state):
            return super().branches(state)

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        with self._adapted(state):
            return super().combine(state, predictions)

    def _adapted(self, state: StepState) -> AbstractContextManager[None]:
        scale = state.scale_of(self)
        if self.adaptive == 0 or isinstance(scale, Tensor):
            return nullcontext()
        # in fp32, as the pipelines
        fallen = scale - self.adaptive * (1000 - torch.tensor(state.stage.time, dtype=torch.float32))
        return state.at_scale(self, max(float(fallen), 0.0))

    def patch(self, state: StepState) -> Patch:
        return IdentityAttention(self.chosen)


class IdentityAttention(LayerPatch):
    """Self-attention whose map is the identity: the values, projected out. In joint attention of picture and text each place of
    the picture sees itself and the text, as in diffusers' ``PAGJointAttnProcessor2_0`` (which leaves out that queries and keys
    are normalised in Stable Diffusion 3.5)."""

    def __call__(self, layer: Any, forward: Any, hidden: Tensor, **kwargs: Any) -> Any:
        if (text := kwargs.get("encoder_hidden_states")) is not None and layer.add_q_proj is not None:
            return _joint(layer, hidden, text)
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


def _joint(layer: Any, hidden: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Joint attention in which places of the picture do not see one another: states of the picture [N, places, dim] and of the
    text [N, tokens, dim]."""

    def heads(states: Tensor, norm: Any = None) -> Tensor:
        split = states.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        return split if norm is None else norm(split)

    places = hidden.shape[1]
    queries = torch.cat(
        [heads(layer.to_q(hidden), layer.norm_q), heads(layer.add_q_proj(text), layer.norm_added_q)], dim=2
    )
    keys = torch.cat(
        [heads(layer.to_k(hidden), layer.norm_k), heads(layer.add_k_proj(text), layer.norm_added_k)], dim=2
    )
    values = torch.cat([heads(layer.to_v(hidden)), heads(layer.add_v_proj(text))], dim=2)
    length = places + text.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=hidden.device)
    seen[:places, :places] = torch.eye(places, dtype=torch.bool, device=hidden.device)
    found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
    found = found.transpose(1, 2).flatten(2)
    picture, words = found[:, :places], found[:, places:]
    for projection in layer.to_out:
        picture = projection(picture)
    return picture, words if layer.context_pre_only else layer.to_add_out(words)
