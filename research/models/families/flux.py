"""FLUX.1 dev and schnell (Black Forest Labs, 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from research.models.families.packed import PackedModel, image_ids
from research.models.families.texts import padded
from research.models.memory import device_of
from research.sampling.interfaces import Condition


class FluxModel(PackedModel):
    """T5 beside the picture's tokens, and the pooled state of a CLIP tower. Dev is told a guidance scale besides.

    Attributes:
        distilled_guidance: what the network is told; 3.5 at first, as by its pipeline, and None for schnell.
    """

    family = "flux"
    guided_by_negative_alone = True
    supports = PackedModel.supports | {"word-places"}
    sigmas_for_all = False

    @classmethod
    def facts_of(cls, configs: Mapping[str, Mapping[str, Any]], index: Mapping[str, Any]) -> Mapping[str, Any]:
        embeds = configs.get("transformer", {}).get("guidance_embeds")
        return {**super().facts_of(configs, index), "distilled_guidance": 3.5 if embeds else None}

    def tokenizers(self) -> Sequence[tuple[Any, int]]:
        clip = self.parts["tokenizer"]
        return [(self.parts["tokenizer_2"], self.max_length), (clip, clip.model_max_length)]

    def encode_texts(self, texts: Sequence[str], *, negative: bool) -> Condition:
        clip, t5 = self.parts["text_encoder"], self.parts["text_encoder_2"]
        tokenizer = self.parts["tokenizer"]
        ids = padded(tokenizer, texts, tokenizer.model_max_length, device_of(clip)).input_ids
        longer = padded(self.parts["tokenizer_2"], texts, self.max_length, device_of(t5)).input_ids
        # T5 attends to its padding, and the transformer too
        return Condition(embeds=t5(longer)[0], pooled=clip(ids).pooler_output)

    def of_tokens(
        self, tokens: Tensor, time: Tensor, told: Condition, grid: tuple[int, int], *, parity: bool
    ) -> Tensor:
        assert told.embeds is not None
        scale = self.distilled_guidance
        guidance = None if scale is None else torch.full([1], scale, device=tokens.device).expand(len(tokens))
        return self.network(
            hidden_states=tokens,
            timestep=time,
            guidance=guidance,
            pooled_projections=told.pooled,
            encoder_hidden_states=told.embeds,
            txt_ids=torch.zeros(told.embeds.shape[1], 3, device=tokens.device),
            img_ids=image_ids(*grid, tokens.device),
            joint_attention_kwargs={},
            return_dict=False,
        )[0]
