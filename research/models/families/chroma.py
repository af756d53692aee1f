"""Chroma (Lodestone Rock, 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from research.models.families.packed import PackedModel, image_ids
from research.models.families.texts import padded
from research.models.memory import device_of
from research.sampling.interfaces import Condition

# The network multiplies the masks of two tokens and adds that to the logarithm of their attention: with 0 for padding, as its
# pipeline has it, padding is attended to. With this, what is no padding attends to none of it, and padding to padding alone.
_LEFT_OUT = -200.0


class ChromaModel(PackedModel):
    """Flux without CLIP and without an embedded guidance scale: T5 whose padding is left out, but for one token."""

    family = "chroma"
    supports = PackedModel.supports | {"word-places"}

    def tokenizers(self) -> Sequence[tuple[Any, int]]:
        return [(self.parts["tokenizer"], self.max_length)]

    def encode_texts(self, texts: Sequence[str], *, negative: bool) -> Condition:
        encoder = self.parts["text_encoder"]
        found = padded(self.parts["tokenizer"], texts, self.max_length, device_of(encoder))
        embeds = encoder(found.input_ids, attention_mask=found.attention_mask)[0]
        places = torch.arange(embeds.shape[1], device=embeds.device)
        return Condition(embeds=embeds, mask=(places <= found.attention_mask.sum(1, keepdim=True)).to(embeds.dtype))

    def of_tokens(
        self, tokens: Tensor, time: Tensor, told: Condition, grid: tuple[int, int], *, parity: bool
    ) -> Tensor:
        assert told.embeds is not None
        assert told.mask is not None
        seen = torch.ones(len(tokens), tokens.shape[1], dtype=told.mask.dtype, device=tokens.device)
        mask = torch.cat([told.mask, seen], dim=1)
        if not parity:
            mask = torch.where(mask > 0, 1.0, _LEFT_OUT).to(mask.dtype)
        return self.network(
            hidden_states=tokens,
            timestep=time,
            encoder_hidden_states=told.embeds,
            txt_ids=torch.zeros(told.embeds.shape[1], 3, device=tokens.device),
            img_ids=image_ids(*grid, tokens.device),
            attention_mask=mask,
            joint_attention_kwargs={},
            return_dict=False,
        )[0]
