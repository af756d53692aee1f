"""What is shown of a job in numbers: its metrics and its costs, with their names, formats and better direction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from research.directions import LABELS, direction, is_companion, label
from research.labels import number
from research.results import comparable
from research.results.intervals import interval, unit
from research.results.pairs import Pairs
from research.results.read import Row, Sweep
from research.results.timing import Spread
from research.statistics import IMAGES, Estimate


@dataclass(frozen=True)
class Measure:
    """One number of a job.

    Attributes:
        better: +1 if higher is better, -1 if lower is, 0 if neither is said.
        provenance: a word for what the number was computed with; only numbers of one provenance are ranked.
        spread: of a time, what was measured; one that was measured once is ranked by nobody.
        apart: why a job's number is left out of all ranking; empty where it is not.
    """

    key: str
    label: str
    better: int
    value: Callable[[Row], float | None]
    error: Callable[[Row], float | None] = lambda row: None
    interval: Callable[[Row], Estimate | None] = lambda row: None
    provenance: Callable[[Row], str] = lambda row: ""
    spread: Callable[[Row], Spread | None] = lambda row: None
    apart: Callable[[Row], str] = lambda row: ""

    def text(self, row: Row) -> str:
        """The value, with its standard error where there is one; a dash where there is no value."""
        value, error = self.value(row), self.error(row)
        if (spread := self.spread(row)) is not None:
            return f"{spread}{' !' if self.apart(row) else ''}"
        return number(value) + (f" ± {number(error, 2)}" if value is not None and error is not None else "")

    def best(self, rows: Iterable[Row]) -> Row | None:
        """The best job of the commonest provenance, if there is a choice of at least two."""
        found = self.alike(rows)
        if not self.better or len(found) < 2:
            return None
        best = max(found, key=lambda row: self.better * (self.value(row) or 0.0))
        spread = self.spread(best)
        return best if spread is None or spread.n > 1 else None

    def alike(self, rows: Iterable[Row]) -> list[Row]:
        """The jobs that have this number, computed with what most of them were."""
        found = [r for r in rows if self.value(r) is not None and not self.apart(r)]
        words = Counter(self.provenance(r) for r in found)
        return [r for r in found if self.provenance(r) == words.most_common(1)[0][0]]

    def kinds(self, rows: Iterable[Row]) -> dict[str, str]:
        """A letter for each provenance that occurs, the commonest first."""
        return comparable.kinds([self.provenance(r) for r in rows if self.value(r) is not None])


def metric(key: str, better: int | None = None) -> Measure:
    """A metric by its name in ``metrics``; where it says a standard error (``<name>_se``), one stands beside it."""
    return Measure(
        key,
        label(key),
        direction(key) if better is None else better,
        lambda row: _finite(row.metrics.get(key)),
        lambda row: _error(row, key),
        lambda row: interval(row, key),
        lambda row: comparable.fingerprint(row, key),
    )


NFE = Measure("nfe", "NFE", 0, lambda row: _finite(row.result.nfe))


def _time(
    key: str, label: str, better: int, spread: Callable[[Row], Spread | None], apart: Callable[[Row], str]
) -> Measure:
    """A number of seconds, or of something a second: the median of what was measured."""

    def value(row: Row) -> float | None:
        return None if (found := spread(row)) is None else found.median

    return Measure(key, label, better, value, provenance=comparable.device, spread=spread, apart=apart)


def _images_a_second(row: Row) -> Spread | None:
    return None if row.timing.seconds is None else row.timing.seconds.inverse


SECONDS = _time("seconds_per_image", "s / image", -1, lambda row: row.timing.seconds, lambda row: row.out_of_line)
THROUGHPUT = _time("images_per_second", "images / s", 1, _images_a_second, lambda row: row.out_of_line)
LATENCY = _time(
    "latency",
    "latency s",
    -1,
    lambda row: row.timing.latency,
    lambda row: "" if row.timing.made_alone else row.out_of_line,
)
TIMES = (SECONDS, THROUGHPUT, LATENCY)
TOTAL = Measure("total", "total s", 0, lambda row: _finite(row.timings.get("total")))


def quality(rows: Sequence[Row]) -> list[Measure]:
    """The metrics that any of the jobs has; CLIP score and FID first."""
    keys = {key for row in rows for key in row.metrics}
    keys -= {key for key in keys if is_companion(key, keys)}
    first = list(LABELS)
    ordered = sorted(keys, key=lambda k: (first.index(k) if k in first else len(first), k))
    return [metric(k, direction(k, next((i for r in rows if (i := r.info(k))), None))) for k in ordered]


def measures(rows: Sequence[Row]) -> list[Measure]:
    """Metrics, then costs. Latency has a column where seconds have one: where it is empty, a reader is told how to get it."""
    costs = [m for m in (NFE, SECONDS, THROUGHPUT, LATENCY, TOTAL) if any(m.value(r) is not None for r in rows)]
    if SECONDS in costs and LATENCY not in costs:
        costs.insert(costs.index(THROUGHPUT) + 1, LATENCY)
    return [*quality(rows), *costs]


def pairs_of(sweep: Sweep, measure: Measure) -> Pairs:
    """The verdicts on all pairs of a sweep's jobs that have a number of the commonest provenance: one family, made once."""
    kept = sweep.derived
    if ("pairs", measure.key) not in kept:
        rows = measure.alike(sweep.done)
        kept["pairs", measure.key] = Pairs(
            rows, measure.key, measure.better, [measure.value(row) or 0.0 for row in rows]
        )
    found: Pairs = kept["pairs", measure.key]
    return found


VERDICTS_AT_MOST = 400  # jobs


def verdicts(sweep: Sweep, measure: Measure) -> str:
    """For the page's script: of each pair of the done jobs, in order, ``1`` told apart, ``0`` not, ``-`` not known. Empty for too
    many jobs, or where nothing is known."""
    rows = sweep.done
    if not measure.better or measure in TIMES or len(rows) > VERDICTS_AT_MOST:
        return ""
    pairs = pairs_of(sweep, measure)
    known = set(pairs.rows)
    found = "".join(
        {True: "1", False: "0", None: "-"}[pairs.told_apart(a, b) if a in known and b in known else None]
        for place, a in enumerate(rows)
        for b in rows[place + 1 :]
    )
    return found if found.strip("-") else ""


def _error(row: Row, key: str) -> float | None:
    """The standard error of a number that says its own, over what its interval is over."""
    said = _finite(row.metrics.get(f"{key}_se"))
    if said is None or unit(row) == IMAGES:
        return said
    found = interval(row, key)
    return None if found is None else _finite(found.se)


def _finite(value: object) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None  # type: ignore[arg-type]
