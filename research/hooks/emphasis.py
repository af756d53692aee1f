"""Words of a prompt made stronger or weaker: which tokens they are, and what is done to their embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from research.checks import check_number
from research.errors import ConfigError
from research.hooks.windows import Window


class Emphasis:
    """The weight of some words in a part of the steps.

    Args:
        key: how messages call it.
        words: one word or several in a row, as they stand in the prompt; capitals matter if they do to the tokenizer.
        given: the weight, from 0, or a mapping with ``weight`` and ``steps`` (lo, hi).

    Raises:
        ConfigError: no words, a weight that is none, or steps out of range.
    """

    def __init__(self, key: str, words: Any, given: Any):
        if not isinstance(words, str) or not words.strip():
            raise ConfigError(f"{key}: found {words!r}; accepted are words of the prompt, each with its weight.")
        self.words, self.key = words, f"{key}.{words}"
        inner = dict(given) if isinstance(given, Mapping) else {"weight": given}
        if unknown := inner.keys() - {"weight", "steps"}:
            raise ConfigError(f"{self.key}: found {min(map(str, unknown))!r}; accepted are weight and steps.")
        self.weight = check_number(
            f"{self.key}.weight" if "steps" in inner else self.key, inner.get("weight"), least=0.0
        )
        self.window = Window(f"{self.key}.steps", inner.get("steps", (0.0, 1.0)))


def emphases(key: str, given: Any) -> list[Emphasis]:
    """Each entry of ``{words: weight}``.

    Raises:
        ConfigError: see `Emphasis`.
    """
    if given is None:
        return []
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key}: found {given!r}; accepted are words with their weights, as in {{red: 1.4}}.")
    return [Emphasis(key, words, weight) for words, weight in given.items()]


def token_places(text_encoder: Any, text: str, words: str) -> list[int]:
    """Where the tokens of ``words`` stand in the embeddings of a text; empty if they do not occur in what the encoder takes."""
    tokenizer = text_encoder.tokenizer
    if hasattr(text_encoder, "prepared"):  # some pipelines change texts before they are encoded
        text, words = text_encoder.prepared(text), text_encoder.prepared(words)
    ids = tokenizer(text, truncation=True, max_length=text_encoder.max_tokens).input_ids
    sought = tokenizer(words, add_special_tokens=False).input_ids
    starts = [k for k in range(len(ids) - len(sought) + 1) if sought and ids[k : k + len(sought)] == sought]
    return [place for start in starts for place in range(start, start + len(sought))]


def emphasised(
    embeds: Tensor, empty: Tensor, texts: Sequence[str], active: Sequence[Emphasis], text_encoder: Any
) -> Tensor:
    """Embeddings with each token of the words moved away from, or towards, what stands in its place in the empty sentence.

    ``e + weight * (z - e)`` for a token's embedding ``z``: 0 is as if the word were not there, 1 as it is. Tokens of words
    that overlap have the product of their weights.

    Args:
        embeds: [N, tokens, dim].
        empty: of the empty sentence, [1 or N, tokens, dim].
        texts: one a row.
    """
    weights = torch.ones(embeds.shape[:2])
    for row, text in enumerate(texts):
        for one in active:
            for place in token_places(text_encoder, text, one.words):
                weights[row, place] *= one.weight
    w = weights.to(embeds.device).unsqueeze(-1)
    z, e = embeds.float(), empty.float()
    return torch.where(w == 1.0, embeds, (e + w * (z - e)).to(embeds.dtype))
