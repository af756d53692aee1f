"""How settings and numbers are written in tables, on figures and on pages."""

from __future__ import annotations

import math
from typing import Any

_LABELS = {
    "model.path": "model",
    "scheduler.name": "scheduler",
    "sigmas.name": "sigmas",
    "sampler.name": "sampler",
    "guidance._target_": "guidance",
    "guidance.scale": "guidance scale",
    "task._target_": "task",
    "task.strength": "strength",
}


def axis_label(key: str) -> str:
    """A config key in words: ``guidance.scale`` is "guidance scale"."""
    bare = key.removesuffix("._target_").removeprefix("guidance.modifiers.")
    return _LABELS.get(key) or bare.replace(".", " ").replace("_", " ").strip()


def value_label(value: Any) -> str:
    """A setting's value in a table: classes by their bare name, long lists by their length and first entry."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple) and 0 < len(value) <= 4 and all(is_number(v) for v in value):
        return ", ".join(f"{v:g}" for v in value)
    if isinstance(value, tuple):
        first = str(value[0]) if value else ""
        return f"{len(value)}: {first}{'…' if len(value) > 1 else ''}"
    return str(value)


def number(value: float | None, digits: int = 3) -> str:
    """At least `digits` significant digits, whole numbers in full; a dash for no value."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}" if 1e-4 < abs(value) < 1e6 else f"{value:.{digits}g}"


def count(n: int, word: str) -> str:
    """A number of things: "1 job", "2 jobs"."""
    return f"{n} {word}{'' if n == 1 else 's'}"


def is_number(value: Any) -> bool:
    """Whether a setting is a number; a switch is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
