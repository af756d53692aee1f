"""Words that a tokenizer has and its text encoder does not: a prompt that holds one is refused by name."""

from __future__ import annotations

from typing import Any

import torch

from research.errors import ConfigError
from research.models.base import BaseModel


def refuse_unknown_tokens(model: BaseModel) -> None:
    """Where a tokenizer's words reach beyond its encoder's rows, have the encoder look at what it is told."""
    parts = model.named_parts()
    for name, encoder in parts.items():
        tokenizer = parts.get(name.replace("text_encoder", "tokenizer"))
        if not name.startswith("text_encoder") or tokenizer is None or not hasattr(encoder, "get_input_embeddings"):
            continue
        table = encoder.get_input_embeddings()
        rows = getattr(table, "num_embeddings", None)
        if rows is not None and max(tokenizer.get_vocab().values(), default=0) >= rows:
            table.register_forward_pre_hook(_looking(tokenizer, rows, name))


def _looking(tokenizer: Any, rows: int, name: str) -> Any:
    def look(_: torch.nn.Module, told: tuple[torch.Tensor, ...]) -> None:
        unknown = told[0][told[0] >= rows]
        if len(unknown):
            word = tokenizer.convert_ids_to_tokens(int(unknown[0]))
            raise ConfigError(
                f"task.prompt: found {word!r}, a word that was added to the tokenizer and that {name} knows nothing of (it has "
                f"{rows} tokens); accepted are prompts without it."
            )

    return look
