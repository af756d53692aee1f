"""Checks of arguments: whole numbers, numbers in a range, choices. A message names the key, what was found and is accepted."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeVar

from research.errors import ConfigError, nearest

C = TypeVar("C")

_MOST_WHOLE = 2**63 - 1  # what torch's generators and tensors take


def check_whole_number(
    key: str,
    value: Any,
    *,
    least: int | None = 0,
    most: int | None = None,
    integral_float: bool = False,
    otherwise: str = "",
    accepted: str = "",
) -> int:
    """``value`` as an int, be it Python's, numpy's or an integer tensor's; no bool and no fraction.

    Args:
        key: how the message calls it.
        least, most: both are accepted themselves; None is no limit but that of 64 bits.
        integral_float: take a float without fraction too, as ``2.0`` of a YAML or JSON file.
        otherwise: what else the caller accepts, for the message: "null", "auto".
        accepted: what the message says is accepted, in the place of the range.

    Raises:
        ConfigError: anything else.
    """
    found = int(value) if integral_float and isinstance(value, float) and value.is_integer() else value
    try:
        number = None if isinstance(found, bool) else operator.index(found)
    except TypeError:
        number = None
    low = -_MOST_WHOLE - 1 if least is None else least
    high = _MOST_WHOLE if most is None else most
    if number is None or not low <= number <= high:
        if not accepted:
            accepted = "a whole number" + ("" if least is None else f" from {least}")
            if most is not None:
                accepted += f" to {most}"
            elif number is not None and number > high:
                accepted += ", below 2**63"
        raise ConfigError(f"{key}: found {value!r}; accepted is {accepted}{f' or {otherwise}' if otherwise else ''}.")
    return number


def check_number(
    key: str,
    value: Any,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    below: float | None = None,
    infinite: bool = False,
    noun: str = "a number",
    otherwise: str = "",
) -> float:
    """``value`` as a float, be it Python's or numpy's: finite and in a range. No bool, no text, no NaN.

    Args:
        key: how the message calls it.
        least, most: both are accepted themselves.
        above, below: limits that are not accepted themselves.
        infinite: take infinity too, where the range has it.
        noun: what the message calls the number: "a number of seconds".
        otherwise: what else the caller accepts, for the message.

    Raises:
        ConfigError: anything else.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an int that no float holds
        number = math.nan
    good = math.isfinite(number) or (infinite and not math.isnan(number))
    good = good and least <= number <= most and (above is None or number > above) and (below is None or number < below)
    if not good:
        accepted = _range(noun, least, most, above, below)
        if accepted == "a number" and not infinite:
            accepted = "a finite number"
        raise ConfigError(f"{key}: found {value!r}; accepted is {accepted}{f' or {otherwise}' if otherwise else ''}.")
    return number


def check_choice(key: str, value: Any, choices: Iterable[C]) -> C:
    """The one of ``choices`` that ``value`` is. True and 1 are two things, as in YAML.

    Raises:
        ConfigError: it is none of them.
    """
    accepted = list(choices)
    for choice in accepted:
        if type(choice) is type(value) and choice == value:
            return choice
    names = ", ".join(_as_yaml(choice) for choice in accepted)
    words = [choice for choice in accepted if isinstance(choice, str)]
    hint = nearest(value, words) if isinstance(value, str) else ""
    raise ConfigError(f"{key}: found {value!r}; accepted: {names}.{hint}")


def check_fractions(key: str, value: Any) -> tuple[float, float]:
    """A part of the steps as two fractions ``(lo, hi)``; equal ones are no step at all.

    Raises:
        ConfigError: not two numbers, or out of order or of the range from 0 to 1.
    """
    try:
        low, high = (float(bound) for bound in value)
        good = 0.0 <= low <= high <= 1.0
    except (TypeError, ValueError):
        good = False
    if not good:
        found = list(value) if isinstance(value, list | tuple) else value
        raise ConfigError(f"{key}: found {found!r}; accepted are 0 <= lo <= hi <= 1.")
    return low, high


def _range(noun: str, least: float, most: float, above: float | None, below: float | None) -> str:
    if above is not None and below is not None:
        return f"{noun} between {above:g} and {below:g}"
    low = f" above {above:g}," if above is not None else f" from {least:g}" if math.isfinite(least) else ""
    high = f" below {below:g}" if below is not None else f" to {most:g}" if math.isfinite(most) else ""
    return f"{noun}{low}{high}".removesuffix(",")


def _as_yaml(choice: object) -> str:
    """A choice as one writes it in a config."""
    if choice is None:
        return "null"
    return str(choice).lower() if isinstance(choice, bool) else str(choice)
