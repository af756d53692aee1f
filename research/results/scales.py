"""What the numbers of a metric can be, and which difference between two of them is of account: its bounds and its margin.

A metric's own info says it first (``bounds: [low, high]``, null for none; ``margin: 0.5`` or ``"5%"``); names are looked up here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.errors import UserError
from research.labels import is_number, number

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Margin:
    """How much worse than the best still counts as good as it.

    Attributes:
        size: in the metric's unit, or a share (0.05 is 5 %) of the number that is better.
        relative: which of the two.
    """

    size: float
    relative: bool = False

    def __str__(self) -> str:
        return f"{number(100 * self.size)} %" if self.relative else number(self.size)


_BOUNDS: dict[str, Bounds] = {
    "clip_score": (0.0, 100.0),
    "clip_directional": (-1.0, 1.0),
    "ssim": (-1.0, 1.0),
    "lpips": (0.0, math.inf),
    "perceptual": (0.0, 4.0),
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "coverage": (0.0, 1.0),
    "density": (0.0, math.inf),
    "inception_score": (1.0, math.inf),
    "solver_error": (0.0, math.inf),
    "fid": (0.0, math.inf),
    "fd": (0.0, math.inf),
}
_MARGINS = {
    "clip_score": Margin(1.0),
    "clip_directional": Margin(0.01),
    "ssim": Margin(0.01),
    "psnr": Margin(0.5),
    "lpips": Margin(0.01),
    "perceptual": Margin(0.02),
    "aesthetic": Margin(0.1),
    **dict.fromkeys(("precision", "recall", "density", "coverage"), Margin(0.02)),
}
_OTHERS = Margin(0.05, relative=True)


def bounds(key: str, info: Mapping[str, Any] | None = None) -> Bounds | None:
    """What no number of this metric passes; None where nothing is known."""
    said = (info or {}).get("bounds")
    if isinstance(said, Sequence) and not isinstance(said, str) and len(said) == 2:
        low, high = (math.nan if v is not None and not is_number(v) else v for v in said)
        ends = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
        return ends if ends[0] < ends[1] else None
    return _named(_BOUNDS, key)


def margin(key: str, info: Mapping[str, Any] | None = None, given: Mapping[str, Margin] | None = None) -> Margin:
    """The margin of a metric: what the user has set, what the metric says, or the default of its name; 5 % of the better
    number for others.

    Args:
        given: by metric, from `read_margins`.
    """
    if given and key in given:
        return given[key]
    said = (info or {}).get("margin")
    if said is not None:
        try:
            return read_margin(key, said)
        except UserError:
            pass  # a record is no place to refuse
    return _named(_MARGINS, key) or _OTHERS


def read_margins(where: str, given: object) -> dict[str, Margin]:
    """``report.margin`` as it was written: a mapping of metrics to sizes, or null.

    Raises:
        UserError: one line with the key, what was found and what is accepted.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: found {given!r}; accepted is a margin a metric: {{clip_score: 2, fid: 10%}}.")
    return {str(key): read_margin(f"{where}.{key}", value) for key, value in given.items()}


def read_margin(where: str, value: object) -> Margin:
    """A number in the metric's unit, or a share such as ``5%``.

    Raises:
        UserError: it is neither, or not above 0.
    """
    text = str(value).strip()
    share = text.endswith("%")
    plain = text.removesuffix("%").strip()
    if not isinstance(value, bool) and re.fullmatch(r"\d*\.?\d+(e[+-]?\d+)?", plain, re.I):
        size = float(plain) / (100 if share else 1)
        if 0 < size < math.inf and not (share and size >= 1):
            return Margin(size, share)
    raise UserError(
        f"{where}: found {value!r}; accepted is a number above 0, in the metric's unit, or a share of the better number "
        "below 100 %, as in 5%."
    )


def _named(table: Mapping[str, Any], key: str) -> Any:
    """The entry of a name, or of the longest name that begins or ends it (``ssim_kept``, ``mine_precision``)."""
    fits = [name for name in table if key == name or key.startswith(f"{name}_") or key.endswith(f"_{name}")]
    return table[max(fits, key=len)] if fits else None
