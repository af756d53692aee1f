"""PixArt-alpha (arXiv:2310.00426) and PixArt-sigma (arXiv:2403.04692)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from research.models.families.pipeline_model import PipelineModel, patched_geometry
from research.models.families.texts import Texts, padded
from research.models.geometry import LatentGeometry
from research.models.memory import device_of
from research.sampling.interfaces import Condition


class PixArtSigmaModel(PipelineModel):
    """T5 with its mask; learned sigmas are dropped. Prompts are lower-cased and stripped, and not cleaned further."""

    family = "pixart-sigma"
    supports = PipelineModel.supports | {"word-places"}
    max_length: int = 300

    @classmethod
    def geometry_of(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentGeometry:
        return patched_geometry(network, vae)

    def tokenizers(self) -> Sequence[tuple[Any, int]]:
        return [(self.parts["tokenizer"], self.max_length)]

    @property
    def text(self) -> Texts:
        return Texts(self.tokenizers(), self.weights_sha256, lowered=True)

    def encode_texts(self, texts: Sequence[str], *, negative: bool) -> Condition:
        encoder = self.parts["text_encoder"]
        given = [self.text.prepared(text) for text in texts]
        found = padded(self.parts["tokenizer"], given, self.max_length, device_of(encoder), add_special_tokens=True)
        embeds = encoder(found.input_ids, attention_mask=found.attention_mask)[0]
        return Condition(embeds=embeds, mask=found.attention_mask)

    def evaluate(self, x: Tensor, t: Tensor, told: Condition) -> Tensor:
        out = self.network(
            x,
            encoder_hidden_states=told.embeds,
            encoder_attention_mask=told.mask,
            timestep=t.expand(len(x)),
            added_cond_kwargs={name: told.extra.get(name) for name in ("resolution", "aspect_ratio")},
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]


class PixArtAlphaModel(PixArtSigmaModel):
    """The same with shorter texts; networks made for 1024 pixels are told sizes too."""

    family = "pixart-alpha"
    max_length: int = 120

    def of_size(self, told: Condition, size: tuple[int, int]) -> Condition:
        """Networks made for 1024 pixels are told height and width and their ratio."""
        if self.network.config.sample_size != 128:
            return told
        assert told.embeds is not None
        rows, like = len(told.embeds), told.embeds
        sides, ratio = like.new_tensor([size]), like.new_tensor([[size[0] / size[1]]])
        added = {"resolution": sides.expand(rows, -1), "aspect_ratio": ratio.expand(rows, -1)}
        return Condition(embeds=told.embeds, mask=told.mask, extra=added)
