"""The command line of ``research-schedule``: Hydra-like ``key=value`` words, every key of which may have several values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, QuotedString
from hydra.errors import HydraException

from research.errors import ConfigError, nearest

Values = list[Any]
_LISTS = ("sigmas", "sigmas.sigmas", "sigmas.timesteps")
OPTIONS, LEVELS = "scheduler.options.", "sigmas."


def read(
    words: Sequence[str], defaults: Mapping[str, Values], *, prefixes: Sequence[str] = (OPTIONS, LEVELS)
) -> dict[str, Values]:
    """Keys with their values, in the order of ``defaults``, then of the words.

    Args:
        words: ``key=value``, ``key=a,b`` or ``key=[a,b]``.
        defaults: the keys there are, with the values of those that are not given.
        prefixes: keys that begin so are accepted whatever follows.

    Raises:
        ConfigError: no such key, or a word that is none.
    """
    found = dict(defaults)
    for word in words:
        key, values = _parse(word)
        if key not in defaults and not any(key.startswith(prefix) and key != prefix for prefix in prefixes):
            raise ConfigError(
                f"{key}: unknown key.{nearest(key, defaults)} Accepted: {', '.join(defaults)}"
                + "".join(f", {prefix}NAME" for prefix in prefixes)
                + "."
            )
        if not values:
            raise ConfigError(f"{key}: found no value; accepted is {key}=VALUE, or {key}=A,B for several.")
        found[key] = values
    return found


def _parse(word: str) -> tuple[str, Values]:
    if "=" not in word:
        raise ConfigError(f"command line: {word!r} is no setting; accepted is key=value, as in steps=20.")
    try:
        override = OverridesParser.create().parse_override(word.lstrip("+"))
    except HydraException as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"command line: {word!r} cannot be read: {reason}") from error
    value = override.value()
    if isinstance(value, ChoiceSweep):
        values: Values = list(value.list)
    elif override.is_sweep_override():
        raise ConfigError(f"{override.key_or_group}: found {word!r}; accepted are values with commas: a,b,c.")
    else:
        # of levels a list is one value
        whole = override.key_or_group in _LISTS
        values = list(value) if isinstance(value, list) and not whole else [value]
    return override.key_or_group, [_plain(entry) for entry in values]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, QuotedString):
        return value.text
    return value


def product(values: Mapping[str, Values], keys: Iterable[str]) -> list[dict[str, Any]]:
    """Every combination of the values of some keys, the first key slowest."""
    keys = list(keys)
    return [dict(zip(keys, row, strict=True)) for row in itertools.product(*(values[key] for key in keys))]


def several(values: Mapping[str, Values]) -> list[str]:
    """The keys that tell the combinations apart."""
    return [key for key, found in values.items() if len(found) > 1]


def number(least: float, most: float = math.inf, *, whole: bool = False) -> Callable[[str, Any], Any]:
    """A reader of numbers in a range, both ends included."""
    kind = "a whole number" if whole else "a number"
    limits = f"from {least:g} to {most:g}" if math.isfinite(most) else f"from {least:g}"

    def check(key: str, value: Any) -> Any:
        good = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
        if not good or (whole and value != int(value)):
            raise ConfigError(f"{key}: found {value!r}; accepted is {kind} {limits}.")
        return int(value) if whole else value

    return check


def one(key: str, values: Values) -> Any:
    """The single value of a key that takes no list."""
    if len(values) != 1:
        raise ConfigError(f"{key}: found {len(values)} values; accepted is one.")
    return values[0]


def text(key: str, value: Any) -> str:
    """A value as text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key}: found {value!r}; accepted is a name.")
    return value
