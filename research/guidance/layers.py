"""Which layers of a network a patch is for: patterns for their names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from research.errors import ConfigError

_SHORT = {"mid": "mid_block", "down": "down_blocks", "up": "up_blocks"}
_ACCEPTED = "a name, the beginning of one up to a dot, shell wildcards, mid, down, up, down.1, all"
_SHOWN = 12  # names in a message; a large network has hundreds


def checked_layers(layers: Any, key: str = "guidance.layers") -> tuple[str, ...]:
    """Patterns as a tuple, of one or a list of them.

    Raises:
        ConfigError: not text, an empty pattern, or none at all.
    """
    listed = (layers,) if isinstance(layers, str) else layers
    if (
        not isinstance(listed, Sequence)
        or not listed
        or not all(isinstance(entry, str) and entry.strip() for entry in listed)
    ):
        raise ConfigError(f"{key}: found {layers!r}; accepted is one or a list of: {_ACCEPTED}.")
    return tuple(entry.strip() for entry in listed)


def matching(
    patterns: Sequence[str],
    names: Sequence[str],
    *,
    kind: str = "",
    key: str = "guidance.layers",
    middle: Sequence[str] = (),
) -> list[str]:
    """Those of ``names`` that any of the patterns fits, in the order of ``names``.

    A pattern is "all", a name, the beginning of a name up to a dot, or has shell wildcards (``*`` also takes dots). Its first
    part may be short: ``mid``, ``down`` and ``up`` stand for mid_block, down_blocks and up_blocks.

    Args:
        middle: patterns that ``mid`` stands for in a network without a middle block; by default the block in the middle.

    Raises:
        ConfigError: a pattern fits nothing; the message lists what there is.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        first, dot, rest = pattern.partition(".")
        full = _SHORT.get(first, first) + dot + rest
        if full == "mid_block" and not any(name.startswith("mid_block") for name in names):
            found = [name for each in middle for name in _fitting(each, names)] or _in_the_middle(names)
        else:
            found = _fitting(full, names)
        if not found:
            there = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            raise ConfigError(
                f"{key}: {pattern!r} fits no {kind + ' ' if kind else ''}layer of this network; "
                f"it has {there or 'none'}. Accepted: {_ACCEPTED}."
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def _fitting(pattern: str, names: Sequence[str]) -> list[str]:
    return [
        name
        for name in names
        if pattern == "all" or name == pattern or name.startswith(pattern + ".") or fnmatchcase(name, pattern)
    ]


def _in_the_middle(names: Sequence[str]) -> list[str]:
    """The layers of the block in the middle of a transformer, whose blocks are a numbered list."""
    blocks = list(dict.fromkeys(name.rpartition(".")[0] and ".".join(name.split(".")[:2]) for name in names))
    numbered = [block for block in blocks if block.rpartition(".")[2].isdigit()]
    return _fitting(numbered[len(numbered) // 2], names) if numbered else []
