"""A diffusers UNet as the denoiser of one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from research.errors import SamplingError
from research.models.compiled import counted, is_compiled
from research.models.patching import Look, Patching
from research.sampling.interfaces import Branch, Condition
from research.sampling.prediction import Kind, Prediction
from research.sampling.timeline import Stage

_JOINED = 8


class UnetDenoiser:
    """Evaluates all branches in one batch, in their order (unconditional first under CFG, as diffusers pipelines do).

    Args:
        unet: `UNet2DConditionModel` or `UNet2DModel`.
        kind: what it predicts.
        text: whether it takes text embeddings.
        look: has a check read a value, see `Batch.look`; at once by default.
        timings: takes the seconds of compiling a network that is compiled.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        *,
        kind: Kind,
        text: bool,
        look: Look | None = None,
        timings: dict[str, float] | None = None,
    ):
        self.unet = unet
        self.kind: Kind = kind
        self.text = text
        self._timings = {} if timings is None else timings
        self._compiled = is_compiled(unet)
        self._patching = Patching(unet, look)
        # joined conditions by the branches they belong to; the last few, as hooks may make new ones for every stage
        self._joined: dict[tuple[int, ...], dict[str, Any]] = {}

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        """See `research.sampling.interfaces.Denoiser`.

        Raises:
            SamplingError: no branch, two of one name, or a patch that changes nothing.
            ConfigError: a patch is for layers that the network has not.
        """
        names, conditions, patched, timed = set(), [], False, False
        for branch in branches:
            names.add(branch.name)
            conditions.append(branch.condition)
            patched = patched or bool(branch.patches)
            timed = timed or branch.time is not None
        count = len(branches)
        if len(names) != count or not names:
            raise _unfit(branches)
        key = tuple(map(id, conditions))
        joined = self._joined.get(key) or self._join(key, conditions)
        inputs = torch.cat([x] * count) if count > 1 else x
        if joined["channels"] is not None:
            inputs = torch.cat([inputs, joined["channels"]], dim=1)
        times = _times(branches, stage.t, len(x)) if timed else stage.t
        if patched:
            with self._patching.attached(branches, len(x)):
                output = self._called(inputs, times, joined["arguments"])
            self._patching.compare(branches, output.chunk(count))
        else:
            output = self._called(inputs, times, joined["arguments"])
        if count == 1:
            return {branches[0].name: Prediction(output, self.kind)}
        kind = self.kind
        return {branch.name: Prediction(part, kind) for branch, part in zip(branches, output.chunk(count), strict=True)}

    def _called(self, inputs: Tensor, times: Tensor, arguments: dict[str, Any]) -> Tensor:
        if not self._compiled:
            output: Tensor = self.unet(inputs, times, return_dict=False, **arguments)[0]
            return output
        with counted(self.unet, self._timings):
            return self.unet(inputs, times, return_dict=False, **arguments)[0]

    def _join(self, key: tuple[int, ...], conditions: Sequence[Condition]) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if self.text:
            arguments["encoder_hidden_states"] = _cat([c.embeds for c in conditions])
        if conditions[0].class_labels is not None:
            arguments["class_labels"] = _cat([c.class_labels for c in conditions])
        channels = _cat([c.channels for c in conditions]) if conditions[0].channels is not None else None
        while len(self._joined) >= _JOINED:
            del self._joined[next(iter(self._joined))]
        # the conditions are kept, so that no other can come to have the same id
        self._joined[key] = {"arguments": arguments, "channels": channels, "conditions": tuple(conditions)}
        return self._joined[key]


def _unfit(branches: Sequence[Branch]) -> SamplingError:
    """A branch that would not be computed as asked is an error, and no silent copy of another one."""
    names = ", ".join(branch.name for branch in branches) or "none"
    return SamplingError(f"guidance: asks for the branches {names}; accepted is at least one, each of its own name.")


def _times(branches: Sequence[Branch], t: Tensor, images: int) -> Tensor:
    """What the network is told where a branch has a time of its own: [B]."""
    own = [t if branch.time is None else branch.time.to(t.device) for branch in branches]
    return torch.cat([time.reshape(-1).expand(images) for time in own])


def _cat(parts: Sequence[Tensor | None]) -> Tensor:
    tensors = [part for part in parts if part is not None]
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
