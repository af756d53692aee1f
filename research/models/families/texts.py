"""Sentences to tokens and on, as the pipelines of the families do it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from research.caches import MIB, Cache
from research.errors import ConfigError
from research.models.memory import device_of

_dropped = Cache("text lengths", 16 * MIB, 16384)


class Texts:
    """The tokenizers of a model with several text encoders; see `research.sampling.interfaces.TextEncoding`.

    Args:
        tokenizers: each with how many tokens its encoder takes; the one that takes most counts.
        identity: says which weights these are.
        closing: tokens that the tokenizer puts after a text.
        lowered: whether texts are lower-cased and stripped before they are encoded.
    """

    def __init__(
        self,
        tokenizers: Sequence[tuple[Any, int]],
        identity: Hashable = None,
        closing: int = 1,
        *,
        lowered: bool = False,
    ):
        self.closing, self.lowered = closing, lowered
        self.tokenizer, self.max_tokens = max(tokenizers, key=lambda pair: pair[1])
        self.identity = object() if identity is None else identity

    def prepared(self, text: str) -> str:
        """A text as the tokenizer is given it."""
        return text.lower().strip() if self.lowered else text

    def encode(self, texts: Sequence[str]) -> Tensor:
        raise ConfigError(
            "model: this family tells its network of texts by several tensors; ask model.condition(texts)."
        )

    def encode_together(self, texts: Sequence[str]) -> Tensor:
        return self.encode(texts)

    def dropped(self, text: str) -> str | None:
        """What of a text no encoder takes."""
        return _dropped.get((self.identity, self.max_tokens, text), lambda: self._dropped(text), 2 * len(text))

    def _dropped(self, text: str) -> str | None:
        ids = self.tokenizer(text, truncation=False, verbose=False).input_ids
        if len(ids) <= self.max_tokens:
            return None
        rest = ids[self.max_tokens - self.closing : len(ids) - self.closing]
        return str(self.tokenizer.decode(rest)).strip()


def padded(tokenizer: Any, texts: Sequence[str], length: int, device: torch.device, **more: Any) -> Any:
    """Tokens [N, length] and their mask, filled up or cut to a length."""
    found = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt", **more
    )
    return found.to(device)


def clip_hidden_and_pooled(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The states before the last layer [N, tokens, dim] and the projected pooled state [N, dim] of a CLIP text tower."""
    ids = padded(tokenizer, texts, tokenizer.model_max_length, device_of(encoder)).input_ids
    out = encoder(ids, output_hidden_states=True)
    return out.hidden_states[-2], out[0]
