"""Prompts to embeddings, as Stable Diffusion pipelines do it."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from research.caches import MIB, Cache
from research.models.memory import device_of

# a text of Stable Diffusion 1.x takes 0.2 MB in fp32
_embeddings = Cache("texts", 256 * MIB)
_dropped = Cache("text lengths", 16 * MIB, 16384)


class TextEncoder:
    """A CLIP tokenizer and text encoder; embeddings of texts seen before are kept by encoder and text.

    Args:
        tokenizer: `CLIPTokenizer`.
        encoder: `CLIPTextModel`; the last hidden state is the embedding.
        identity: says which weights these are, so that they are known again when they are loaded again.
    """

    def __init__(self, tokenizer: Any, encoder: Any, identity: Hashable = None):
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.identity = object() if identity is None else identity

    @property
    def max_tokens(self) -> int:
        """Tokens the encoder takes, begin and end included."""
        # a tokenizer whose config says none has an absurdly large one
        return min(int(self.tokenizer.model_max_length), int(self.encoder.config.max_position_embeddings))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [N, tokens, dim] of each text by itself, so that they do not depend on what it is encoded with."""
        found = {text: self._encoded(text) for text in dict.fromkeys(texts)}
        rows = [found[text] for text in texts]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _encoded(self, text: str) -> Tensor:
        key = weakref.ref(self.encoder), device_of(self.encoder), self.encoder.dtype, text
        return _embeddings.get(key, lambda: self.encode_together([text]), lambda made: made.nbytes)

    @torch.no_grad()
    def encode_together(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [N, tokens, dim] of all texts in one batch: what a diffusers pipeline computes."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        mask = None
        if getattr(self.encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(device_of(self.encoder))
        output = self.encoder(tokens.input_ids.to(device_of(self.encoder)), attention_mask=mask)[0]
        return output.to(self.encoder.dtype)

    def dropped(self, text: str) -> str | None:
        """What of a text is cut off because the encoder takes no more, or None."""
        return _dropped.get((self.identity, text), lambda: self._dropped(text), 2 * len(text))

    def _dropped(self, text: str) -> str | None:
        ids = self.tokenizer(text, truncation=False, verbose=False).input_ids
        if len(ids) <= self.max_tokens:
            return None
        return self.tokenizer.decode(ids[self.max_tokens - 1 : -1]).strip()
