"""What plugs keep from stage to stage, so that a trajectory can be copied, saved, gone on with, and its images put in another
order."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from research.errors import SamplingError

OWNER = "_of_trajectory"  # the attribute of a plug that says whose memory it holds
_PLAIN = (str, bytes, bool, int, float, type(None))


class Remembering:
    """A plug that says what it keeps from stage to stage.

    Attributes:
        keeps: names of the attributes that one stage leaves to the next: tensors [N, ...] with a row an image, numbers, words,
            and lists and dicts of them. What is the same in the whole run, and what a stage makes for itself, is none.
    """

    keeps: tuple[str, ...] = ()

    def memory(self) -> Mapping[str, Any]:
        """What is kept, by name."""
        return {name: getattr(self, name) for name in self.keeps if hasattr(self, name)}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Go on with what `memory` gave in a run over the same images."""
        for name, value in memory.items():
            setattr(self, name, value)


def within(roots: Sequence[object]) -> list[Any]:
    """Plugs and those that they hold (a guidance inside a modifier, a loss, a denoiser around another), each once."""
    found: dict[int, Any] = {}
    left = list(roots)[::-1]
    while left:
        plug = left.pop()
        if id(plug) in found or not _is_plug(plug):
            continue
        found[id(plug)] = plug
        inner: list[Any] = []
        for name, value in vars(plug).items():
            if name != OWNER:
                inner += value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        left += inner[::-1]
    return list(found.values())


def _is_plug(value: Any) -> bool:
    if isinstance(value, Tensor | torch.nn.Module | type) or not hasattr(value, "__dict__"):
        return False
    if hasattr(value, "denoiser") and hasattr(value, "solvers"):
        return False  # a model
    return isinstance(value, Remembering) or any(
        callable(getattr(value, name, None)) for name in ("memory", "predict", "start", "on_start")
    )


def memories(plugs: Sequence[Any]) -> list[dict[str, Any]]:
    """What each of them keeps; empty for one that keeps nothing."""
    return [dict(plug.memory()) if hasattr(plug, "memory") else {} for plug in plugs]


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A memory with each tensor changed; its lists and dicts are new ones."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Counter):
        return Counter({key: changed(inner, change) for key, inner in value.items()})
    if isinstance(value, dict):
        return {key: changed(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [changed(inner, change) for inner in value]
    if type(value) is tuple:
        return tuple(changed(inner, change) for inner in value)
    return value if isinstance(value, _PLAIN) else copy.copy(value)


def gathered(parts: Sequence[Any], own: int, counts: Sequence[int], chosen: Tensor) -> Any:
    """The memory of one of several batches that are alike, with other rows: those ``chosen`` among all of them, one batch after
    the other.

    Args:
        parts: the memories.
        own: which of them it is that gets other rows.
        counts: images of each batch.
        chosen: [N], long.
    """
    first = parts[own]
    if isinstance(first, Tensor):
        rows = all(isinstance(t, Tensor) and t.ndim and len(t) == n for t, n in zip(parts, counts, strict=True))
        return torch.cat(list(parts))[chosen.to(first.device)] if rows else first
    if isinstance(first, dict):
        return {key: gathered([part[key] for part in parts], own, counts, chosen) for key in first}
    if isinstance(first, list | tuple):
        found = [gathered(inner, own, counts, chosen) for inner in zip(*parts, strict=True)]
        return tuple(found) if isinstance(first, tuple) else found
    return first


def check_plain(value: Any, where: str) -> None:
    """See that a memory can stand in a file.

    Raises:
        SamplingError: it holds something else than tensors, numbers, words, lists and dicts.
    """
    for place, inner in _leaves(value, where):
        if not isinstance(inner, (Tensor, *_PLAIN)):
            raise SamplingError(
                f"{place}: found {type(inner).__name__}; accepted in a saved trajectory are tensors, numbers, words, lists and "
                "dicts."
            )


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{where}[{place}]")
    else:
        yield where, value
