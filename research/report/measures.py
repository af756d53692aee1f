"""What is shown of a job in numbers: its metrics and its costs, with their names, formats and better direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from research.report.rows import Row

_LABELS = {"clip_score": "CLIP score", "fid": "FID", "kid": "KID", "cmmd": "CMMD"}
_HIGHER = {"clip_score", "precision", "recall", "density", "coverage", "inception_score", "ssim", "psnr"}
_LOWER = {"fid", "kid", "cmmd", "lpips"}


@dataclass(frozen=True)
class Measure:
    """One number of a job.

    Attributes:
        better: +1 if higher is better, -1 if lower is, 0 if neither is said.
    """

    key: str
    label: str
    better: int
    value: Callable[[Row], float | None]
    error: Callable[[Row], float | None] = lambda row: None

    def text(self, row: Row) -> str:
        """The value, with its standard error where there is one; a dash where there is no value."""
        value, error = self.value(row), self.error(row)
        return number(value) + (f" ± {number(error, 2)}" if value is not None and error is not None else "")

    def best(self, rows: Iterable[Row]) -> Row | None:
        """The best job, if there is a choice of at least two."""
        found = [(v, r) for r in rows if (v := self.value(r)) is not None]
        if not self.better or len(found) < 2:
            return None
        return max(found, key=lambda pair: self.better * pair[0])[1]


def metric(key: str) -> Measure:
    """A metric by its name in ``metrics``; ``<name>_se`` is its standard error."""
    better = 1 if key in _HIGHER else -1 if key in _LOWER else 0
    label = _LABELS.get(key, key.replace("_", " "))
    return Measure(
        key,
        label,
        better,
        lambda row: _finite(row.metrics.get(key)),
        lambda row: _finite(row.metrics.get(f"{key}_se")),
    )


NFE = Measure("nfe", "NFE", 0, lambda row: _finite(row.record.get("nfe")))
SECONDS = Measure("seconds_per_image", "s / image", -1, lambda row: _finite(row.seconds_per_image))
TOTAL = Measure("total", "total s", 0, lambda row: _finite(row.timings.get("total")))


def quality(rows: Sequence[Row]) -> list[Measure]:
    """The metrics that any of the jobs has; CLIP score and FID first."""
    keys = {key for row in rows for key in row.metrics}
    keys -= {key for key in keys if key.endswith("_se") and key.removesuffix("_se") in keys}
    first = list(_LABELS)
    return [metric(k) for k in sorted(keys, key=lambda k: (first.index(k) if k in first else len(first), k))]


def measures(rows: Sequence[Row]) -> list[Measure]:
    """Metrics, then costs."""
    costs = [m for m in (NFE, SECONDS, TOTAL) if any(m.value(r) is not None for r in rows)]
    return [*quality(rows), *costs]


def number(value: float | None, digits: int = 3) -> str:
    """At least `digits` significant digits, whole numbers in full; a dash for no value."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}" if 1e-4 < abs(value) < 1e6 else f"{value:.{digits}g}"


def _finite(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]
