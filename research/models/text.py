"""Prompts to embeddings, as Stable Diffusion pipelines do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class TextEncoder:
    """A CLIP tokenizer and text encoder, with the embeddings of texts seen before.

    Args:
        tokenizer: `CLIPTokenizer`.
        encoder: `CLIPTextModel`; the last hidden state is the embedding.
    """

    # bytes of embeddings kept; a text of Stable Diffusion 1.x takes 0.2 MB in fp32
    CACHE_BYTES = 256 * 2**20

    def __init__(self, tokenizer: Any, encoder: Any):
        self.tokenizer = tokenizer
        self.encoder = encoder
        self._cache: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @property
    def max_tokens(self) -> int:
        """Tokens the encoder takes, begin and end included."""
        # a tokenizer whose config says none has an absurdly large one
        return min(int(self.tokenizer.model_max_length), int(self.encoder.config.max_position_embeddings))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [N, tokens, dim] of each text by itself, so that they do not depend on what it is encoded with."""
        rows = []
        for text in texts:
            key = (text, self.encoder.device, self.encoder.dtype)
            if key not in self._cache:
                embedding = self.encode_together([text])
                held = sum(t.nbytes for t in self._cache.values())
                if held + embedding.nbytes > self.CACHE_BYTES:
                    self._cache.clear()
                self._cache[key] = embedding
            rows.append(self._cache[key])
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    @torch.no_grad()
    def encode_together(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [N, tokens, dim] of all texts in one batch: what a diffusers pipeline computes."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.max_tokens,
            truncation=True,
            return_tensors="pt",
        )
        mask = None
        if getattr(self.encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self.encoder.device)
        output = self.encoder(tokens.input_ids.to(self.encoder.device), attention_mask=mask)[0]
        return output.to(self.encoder.dtype)

    def dropped(self, text: str) -> str | None:
        """What of a text is cut off because the encoder takes no more, or None."""
        ids = self.tokenizer(text, truncation=False, verbose=False).input_ids
        if len(ids) <= self.max_tokens:
            return None
        return self.tokenizer.decode(ids[self.max_tokens - 1 : -1]).strip()
