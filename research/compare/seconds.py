"""Wall-clock of sides: repeated runs where there are some, the batches of one run otherwise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping

from research.compare.jobs import ComparedJob
from research.compare.sides import Cell, Side
from research.jobs.record import DamagedRecord, NoRecord, read_trace
from research.labels import is_number
from research.results.read import Row
from research.statistics import Estimate, mean, welch

LEAST_BATCHES = 3
_PARTS = ("encode", "denoise", "decode")


def per_image(side: Side, cells: list[Cell]) -> float | None:
    """Seconds of sampling an image: the mean over cells of the mean over runs; None if a record has none."""
    found = [_cell(side, cell) for cell in cells]
    if not found or any(not runs for runs in found):
        return None
    return statistics.fmean(statistics.fmean(runs) for runs in found)


def difference(a: Side, b: Side, cells: list[Cell], level: float) -> tuple[Estimate | None, str, str]:
    """`b` less `a` in seconds an image, what its units are, and what to know of it."""
    shared = [
        row
        for side in (a, b)
        for cell in cells
        for job in side.jobs_of(cell)
        for row in _runs(job)
        if _shared_batches(row)
    ]
    if shared:
        return (
            None,
            "runs",
            "jobs shared batches with others: their seconds are shares, not times measured alone (runtime.vectorise=off)",
        )
    runs = [[_cell(side, cell) for cell in cells] for side in (a, b)]
    counts = [min((len(r) for r in side), default=0) for side in runs]
    if min(counts) >= 2:
        means = [
            [statistics.fmean(r[k] for r in side) for k in range(count)]
            for side, count in zip(runs, counts, strict=True)
        ]
        return (welch(means[0], means[1], level), "runs", f"{counts[0]} and {counts[1]} runs, of independent order")
    gaps = list(_by_batch(a, b, cells))
    if len(gaps) >= LEAST_BATCHES:
        note = "batches of one run each, pair by pair: says nothing of how runs differ (--repeats DIR)"
        return mean(gaps, level=level), "batches", note
    return (None, "runs", "one run each; --repeats DIR with further runs, or several batches a job, give an interval")


def _cell(side: Side, cell: Cell) -> list[float]:
    """Seconds an image of each run of a cell's images."""
    jobs = side.jobs_of(cell)
    if len(jobs) == 1:
        return [s for row in _runs(jobs[0]) if (s := row.seconds_per_image) is not None]
    parts = [(s, job.row.n_images) for job in jobs if (s := job.row.seconds_per_image) is not None]
    if len(parts) < len(jobs):
        return []
    return [sum(s * n for s, n in parts) / sum(n for _, n in parts)]


def _runs(job: ComparedJob) -> list[Row]:
    return [job.row, *job.repeats]


def _shared_batches(row: Row) -> bool:
    return len(row.result.together) > 1


def _by_batch(a: Side, b: Side, cells: list[Cell]) -> Iterator[float]:
    """Differences of seconds an image, batch by batch, where both sides made the same images at a time."""
    for cell in cells:
        one, other = a.jobs_of(cell), b.jobs_of(cell)
        if len(one) != 1 or len(other) != 1 or one[0].keys != other[0].keys:
            continue
        first, second = batches(one[0].row), batches(other[0].row)
        if [n for n, _ in first] == [n for n, _ in second]:
            yield from (y - x for (_, x), (_, y) in zip(first, second, strict=True))


def batches(row: Row) -> list[tuple[int, float]]:
    """Images, and seconds an image, of each batch of a job; empty where its trace does not say."""
    try:
        trace = read_trace(row.folder)
    except (NoRecord, DamagedRecord):
        return []
    found = [_batch(timings) for timings in (trace.timings, *(batch.get("timings") for batch in trace.batches))]
    return [] if any(one is None for one in found) else [one for one in found if one is not None]


def _batch(timings: object) -> tuple[int, float] | None:
    if not isinstance(timings, Mapping):
        return None
    count, seconds = timings.get("n_images"), [timings.get(part, 0.0) for part in _PARTS]
    if not isinstance(count, int) or count < 1 or not all(is_number(s) and math.isfinite(s) for s in seconds):
        return None
    return count, sum(seconds) / count
