"""What a setting may cost to be of use: model evaluations, seconds an image, latency of one image.

Evaluations are counted and exact. Seconds and latency hold if the most that was measured is within the limit. They are not known
of a job whose seconds are out of line with its sweep, nor the latency of one that never made an image alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from research.errors import UserError, nearest
from research.labels import is_number, number

if TYPE_CHECKING:
    from research.results.timing import Timing

_UNITS = {"nfe": "NFE", "seconds": "s an image", "latency": "s latency"}
INSIDE, OVER, UNKNOWN = "inside", "over", "unknown"


@dataclass(frozen=True)
class Budget:
    """Upper limits; None for none.

    Attributes:
        nfe: model evaluations an image.
        seconds: of sampling an image, at the batch size that was used.
        latency: seconds of one image made alone.
    """

    nfe: float | None = None
    seconds: float | None = None
    latency: float | None = None

    @property
    def limits(self) -> dict[str, float]:
        """Those that are set, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: limit for name, limit in found.items() if limit is not None}

    def __bool__(self) -> bool:
        return bool(self.limits)

    def __str__(self) -> str:
        parts = [f"{number(limit)} {_UNITS[name]}" for name, limit in self.limits.items()]
        return "at most " + (" and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}")

    def judge(self, nfe: float | None, timed: Timing, out_of_line: str = "") -> dict[str, str]:
        """For each limit whether a job with these costs is `INSIDE` it, `OVER` it, or whether that is `UNKNOWN`."""
        seconds, latency = (None if spread is None else spread.high for spread in (timed.seconds, timed.latency))
        if out_of_line:
            seconds, latency = None, latency if timed.made_alone else None
        costs = {"nfe": nfe, "seconds": seconds, "latency": latency}
        return {
            name: UNKNOWN if (cost := costs[name]) is None else INSIDE if cost <= limit else OVER
            for name, limit in self.limits.items()
        }


def read_budget(where: str, given: object) -> Budget:
    """``budget`` as it was written: a mapping of what is limited to its limit, null for none.

    Raises:
        UserError: one line with the key, what was found and what is accepted.
    """
    if given is None:
        return Budget()
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: found {given!r}; accepted are limits: {{nfe: 20, seconds: 1.5, latency: 0.8}}.")
    names = list(_UNITS)
    for name in map(str, given):
        if name not in names:
            raise UserError(f"{where}.{name}: unknown key.{nearest(name, names)} Accepted: {', '.join(names)}.")
    return Budget(**{str(k): read_limit(f"{where}.{k}", v) for k, v in given.items() if v is not None})


def read_limit(where: str, value: object) -> float:
    """A limit.

    Raises:
        UserError: it is no number above 0.
    """
    try:
        limit = float(value) if is_number(value) or isinstance(value, str) else math.nan  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        limit = math.nan
    if not 0 < limit < math.inf:
        raise UserError(f"{where}: found {value!r}; accepted is a number above 0.")
    return limit
