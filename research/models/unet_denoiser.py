"""A diffusers UNet as the denoiser of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from research.errors import SamplingError
from research.sampling.plugs import Branch, Condition
from research.sampling.prediction import Kind, Prediction
from research.sampling.timeline import Stage


class UnetDenoiser:
    """Evaluates all branches in one batch, in their order (unconditional first under CFG, as diffusers pipelines do).

    Args:
        unet: `UNet2DConditionModel` or `UNet2DModel`.
        kind: what it predicts.
        text: whether it takes text embeddings.
    """

    def __init__(self, unet: torch.nn.Module, *, kind: Kind, text: bool):
        self.unet = unet
        self.kind: Kind = kind
        self.text = text
        # joined conditions by the branches they belong to; a run has few, and a condition lives as long as its run
        self._joined: dict[tuple[int, ...], dict[str, Any]] = {}

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        _check(branches)
        conditions = [branch.condition for branch in branches]
        key = tuple(map(id, conditions))
        joined = self._joined.get(key) or self._join(key, conditions)
        count = len(branches)
        inputs = torch.cat([x] * count) if count > 1 else x
        if joined["channels"] is not None:
            inputs = torch.cat([inputs, joined["channels"]], dim=1)
        output = self.unet(inputs, stage.t, return_dict=False, **joined["arguments"])[0]
        if count == 1:
            return {branches[0].name: Prediction(output, self.kind)}
        rows = output.chunk(count)
        return {branch.name: Prediction(part, self.kind) for branch, part in zip(branches, rows, strict=True)}

    def _join(self, key: tuple[int, ...], conditions: Sequence[Condition]) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if self.text:
            arguments["encoder_hidden_states"] = _cat([c.embeds for c in conditions])
        if conditions[0].class_labels is not None:
            arguments["class_labels"] = _cat([c.class_labels for c in conditions])
        channels = _cat([c.channels for c in conditions]) if conditions[0].channels is not None else None
        # the conditions are kept, so that no other can come to have the same id
        self._joined[key] = {"arguments": arguments, "channels": channels, "conditions": tuple(conditions)}
        return self._joined[key]


def _check(branches: Sequence[Branch]) -> None:
    """A branch that would not be computed as asked is an error, and no silent copy of another one."""
    if len({branch.name for branch in branches}) != len(branches) or not branches:
        names = ", ".join(branch.name for branch in branches) or "none"
        raise SamplingError(
            f"guidance: asks for the branches {names}; accepted is at least one, each of its own name."
        )
    for branch in branches:
        if branch.model != "main" or branch.patches:
            raise SamplingError(
                f"guidance: branch '{branch.name}' asks for a second model or for attention patches, "
                "which this model family does not offer yet."
            )


def _cat(parts: Sequence[Tensor | None]) -> Tensor:
    tensors = [part for part in parts if part is not None]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
