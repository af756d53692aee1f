"""Patches of a network's layers for the rows of single branches, while all branches are evaluated in one batch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from research.errors import ModelError, SamplingError
from research.guidance.layers import matching
from research.models.layers import layer_names
from research.sampling.interfaces import Branch, Patch, RecordingPatch

Look = Callable[[Tensor, Callable[[Tensor], None]], None]  # `Batch.look`


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows of the batch that are treated alike at one layer: by the patches, the first of them innermost, or by none."""

    rows: slice
    patches: tuple[Patch, ...] = ()


class Patching:
    """The patches of one run's branches.

    Args:
        network: whose layers are patched.
        look: has a check read a value, see `Batch.look`; at once by default.
    """

    def __init__(self, network: nn.Module, look: Look | None = None):
        self.network = network
        self._look = look or _at_once
        self._compared: set[str] = set()  # branches whose patches were seen to change something
        # of those that are still to compare, whether each of their layers did as without a patch: flags on the device
        self.to_compare: dict[str, list[Tensor]] = {}
        self._names: dict[str, list[str]] = {}  # by kind

    @contextmanager
    def attached(self, branches: Sequence[Branch], images: int) -> Iterator[None]:
        """While it lasts, the layers treat each branch's rows of the batch as its patches say. Nothing of it stays, however
        it ends: each layer has its own ``forward`` back.

        Args:
            branches: in the order of the batch.
            images: rows a branch.

        Raises:
            ConfigError: a patch is for layers that the network has not.
        """
        plans: dict[str, list[tuple[Patch, ...]]] = {}
        for place, branch in enumerate(branches):
            for patch in branch.patches:
                for name in matching(patch.layers, self._layers(patch.kind), kind=patch.kind):
                    plan = plans.setdefault(name, [()] * len(branches))
                    plan[place] = (*plan[place], patch)
        self.to_compare |= {b.name: [] for b in branches if _alters(b) and b.name not in self._compared}
        with ExitStack() as undo:
            for name, plan in plans.items():
                layer = self.network.get_submodule(name)
                self._replace(layer, branches, _parts(plan, images), undo)
            yield

    def compare(self, branches: Sequence[Branch], values: Sequence[Tensor]) -> None:
        """Check, the first time that a patched branch is evaluated, that its patches changed what they are there to change.

        Raises:
            SamplingError: they left their layers as they are, or the prediction is bit for bit that of the plain branch; on a
                device that would have to wait, where the loop looks next.
        """
        for branch, value in zip(branches, values, strict=True):
            if not _alters(branch) or branch.name in self._compared:
                continue
            self._compared.add(branch.name)
            flags = self.to_compare.pop(branch.name)
            idle = [torch.stack(flags).all()] if flags else [torch.tensor(True)]
            idle += [(value == v).all() for b, v in zip(branches, values, strict=True) if _is_plain_twin(b, branch)]
            for flag in idle:
                self._look(flag, partial(_check_idle, branch))

    def _layers(self, kind: str) -> list[str]:
        if kind not in self._names:
            self._names[kind] = layer_names(self.network, kind)
        return self._names[kind]

    def _replace(self, layer: nn.Module, branches: Sequence[Branch], parts: Sequence[_Part], undo: ExitStack) -> None:
        own: Callable[..., Any] = layer.forward
        # of the arguments after the hidden states
        names = tuple(inspect.signature(type(layer).forward).parameters)[2:]

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            hidden = hidden_states  # named so that it may come by keyword too
            kwargs.update(zip(names, args, strict=False))
            outputs = []
            for part in parts:
                mine = hidden[part.rows]
                told = {key: _cut(value, part.rows, len(hidden)) for key, value in kwargs.items()}
                output = _through(part.patches, layer, own)(mine, **told)
                if part.patches:
                    who = branches[part.rows.start * len(branches) // len(hidden)].name
                    _check_output(output, mine, part.patches, who)
                    flags = self.to_compare.get(who)
                    if flags is not None and not any(map(_known_false, flags)):
                        flags.append(_equal(output, own(mine, **told)))
                outputs.append(output)
            return _joined(outputs)

        undo.enter_context(replaced(layer, forward))


def _at_once(value: Tensor, check: Callable[[Tensor], None]) -> None:
    check(value)


def _known_false(flag: Tensor) -> bool:
    """Whether a flag says no, as far as it can be read without waiting."""
    return flag.device.type == "cpu" and not bool(flag)


def _check_idle(branch: Branch, idle: Tensor) -> None:
    if bool(idle):
        told = ", ".join(f"{type(p).__name__} on {' '.join(p.layers)}" for p in branch.patches)
        raise SamplingError(
            f"guidance: the patches of branch '{branch.name}' ({told}) change nothing, so that it equals the plain "
            "branch; accepted are patches and layers that make a difference."
        )


@contextmanager
def replaced(layer: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, the layer has another ``forward``; afterwards its own, be it the class's or one set on the instance."""
    before = layer.__dict__.get("forward")
    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del layer.__dict__["forward"]
        else:
            layer.__dict__["forward"] = before


def _through(patches: Sequence[Patch], layer: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A layer's forward with patches around it, the first of them innermost."""
    for patch in patches:
        forward = partial(patch.__call__, layer, forward)
    return forward


def _parts(plan: Sequence[tuple[Patch, ...]], images: int) -> list[_Part]:
    """Rows in their order; branches without a patch that stand side by side are evaluated together."""
    parts: list[_Part] = []
    for place, patches in enumerate(plan):
        if parts and not patches and not parts[-1].patches:
            parts[-1] = _Part(slice(parts[-1].rows.start, (place + 1) * images))
        else:
            parts.append(_Part(slice(place * images, (place + 1) * images), patches))
    return parts


def _cut(value: Any, rows: slice, batch: int) -> Any:
    """What belongs to these rows of the batch, of a layer's argument."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and value.shape[0] == batch else value
    if isinstance(value, Mapping):
        return {key: _cut(entry, rows, batch) for key, entry in value.items()}
    return value


def _check_output(output: Any, hidden: Tensor, patches: Sequence[Patch], branch: str) -> None:
    """A layer gives back what it was given, changed; a layer of two streams a tuple with it."""
    parts = output if isinstance(output, tuple) else (output,)
    if not any(isinstance(part, Tensor) and part.shape == hidden.shape for part in parts):
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise SamplingError(
            f"guidance: the patch {type(patches[-1]).__name__} of branch '{branch}' returned {found}; "
            f"accepted is a tensor of {list(hidden.shape)}."
        )


def _equal(one: Any, other: Any) -> Tensor:
    """Whether two outputs of a layer are bit for bit the same, as a flag on their device."""
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    return torch.stack([(a == b).all() for a, b in pairs]).all()


def _joined(outputs: Sequence[Any]) -> Any:
    """The outputs for several parts of a batch as one; of a layer of two streams, each stream's."""
    if len(outputs) == 1:
        return outputs[0]
    if not isinstance(outputs[0], tuple):
        return torch.cat(list(outputs))
    streams = zip(*outputs, strict=True)
    return tuple(None if stream[0] is None else torch.cat(stream) for stream in streams)


def _tensors(output: Any) -> list[Tensor]:
    parts = output if isinstance(output, tuple) else (output,)
    return [part for part in parts if isinstance(part, Tensor)]


def _alters(branch: Branch) -> bool:
    """Whether any of its patches is there to change something; see `RecordingPatch`."""
    return any(not isinstance(patch, RecordingPatch) or patch.alters for patch in branch.patches)


def _is_plain_twin(one: Branch, patched: Branch) -> bool:
    return not one.patches and one.condition is patched.condition and one.time is patched.time


def has_attention(config: Mapping[str, Any], *, text: bool) -> bool:
    """Whether a UNet of this config has attention layers, told without building it; ``text`` for `UNet2DConditionModel`."""
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn" if text else "UNetMidBlock2D")
    if middle is not None and ("Attn" in middle or (not text and config.get("add_attention", True))):
        return True
    types = [*config.get("down_block_types", ("Attn",)), *config.get("up_block_types", ("Attn",))]
    return any("Attn" in name for name in types)


@lru_cache(maxsize=16)
def outlined_layers(config: str, kind: str, *, text: bool) -> tuple[str, ...]:
    """`layer_names` of a network of this config (JSON), built without memory for its weights.

    Args:
        text: what it is where the config names no class, a UNet that takes texts or one that takes none.

    Raises:
        ModelError: no network can be built of it.
    """
    import diffusers

    known = json.loads(config)
    usual = "UNet2DConditionModel" if text else "UNet2DModel"
    try:
        with torch.device("meta"):
            network = getattr(diffusers, known.get("_class_name", usual)).from_config(known)
    except Exception as error:  # what a broken config makes libraries raise is no closed list
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"model.path: no network can be built of its config: {reason}") from error
    return tuple(layer_names(network, kind))
