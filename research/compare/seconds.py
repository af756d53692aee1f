"""Wall-clock of sides: repeated runs where there are some, else what one run was timed with: runs of a batch, or its batches."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Callable, Iterator, Sequence

from research.compare.jobs import ComparedJob
from research.compare.sides import Cell, Side
from research.results.read import Row
from research.results.timing import Spread, Timing, batch_times
from research.statistics import Estimate, mean, welch

LEAST_BATCHES = 3
RUNS = 5  # that a command asks for


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
    if any(out_of_line(side, cells) for side in (a, b)):
        return None, "runs", "seconds are out of line with their sweep, and are not compared"
    runs = [[_cell(side, cell) for cell in cells] for side in (a, b)]
    counts = [min((len(r) for r in side), default=0) for side in runs]
    if min(counts) >= 2:
        means = [
            [statistics.fmean(r[k] for r in side) for k in range(count)]
            for side, count in zip(runs, counts, strict=True)
        ]
        return (welch(means[0], means[1], level), "runs", f"{counts[0]} and {counts[1]} runs, of independent order")
    repeats = [_repeats(side, cells) for side in (a, b)]
    if min(map(len, repeats)) >= LEAST_BATCHES:
        note = "runs of a batch for its time, one after another: says nothing of how processes differ (--repeats DIR)"
        return welch(repeats[0], repeats[1], level), "repeats", note
    gaps = list(_by_batch(a, b, cells))
    if len(gaps) >= LEAST_BATCHES:
        note = (
            "batches of one run each, pair by pair, the first left out; the difference is their mean, the values are medians; it "
            "says nothing of how runs differ (--repeats DIR)"
        )
        return mean(gaps, level=level), "batches", note
    return (
        None,
        "runs",
        "one run each; research again JOB --time N, --repeats DIR or several batches a job give an interval",
    )


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


def _repeats(side: Side, cells: list[Cell]) -> list[float]:
    """Seconds an image of the runs that were made for their time, averaged over cells; empty where a cell has none."""
    found = []
    for cell in cells:
        jobs = side.jobs_of(cell)
        timed = jobs[0].row.result.timed if len(jobs) == 1 else None
        found.append([run.seconds / run.n_images for run in timed.batch] if timed is not None else [])
    count = min((len(runs) for runs in found), default=0)
    return [statistics.fmean(runs[k] for runs in found) for k in range(count)]


def _by_batch(a: Side, b: Side, cells: list[Cell]) -> Iterator[float]:
    """Differences of seconds an image, batch by batch after the first, where both sides made the same images at a time."""
    for cell in cells:
        one, other = a.jobs_of(cell), b.jobs_of(cell)
        if len(one) != 1 or len(other) != 1 or one[0].keys != other[0].keys:
            continue
        first, second = (batch_times(job.row.folder) for job in (one[0], other[0]))
        if [batch.n_images for batch in first] == [batch.n_images for batch in second]:
            yield from ((y.seconds - x.seconds) / x.n_images for x, y in list(zip(first, second, strict=True))[1:])


# -- of one side


def spread(side: Side, cells: list[Cell], of: Callable[[Timing], Spread | None]) -> Spread | None:
    """A time with its least and most, averaged over the jobs of a side; None if one has none."""
    found = [of(row.timing) for row in _rows(side, cells)]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    median, low, high = (statistics.fmean(getattr(one, name) for one in known) for name in ("median", "low", "high"))
    return Spread(median, low, high, min(one.n for one in known))


def out_of_line(side: Side, cells: list[Cell]) -> str:
    """Why seconds of a side say nothing of its settings; empty where they do."""
    return next((row.out_of_line for row in _rows(side, cells) if row.out_of_line), "")


def remarks(sides: Sequence[Side]) -> list[str]:
    """What the seconds of the table of sides are, and which command measures those again that are out of line."""
    rows = [job.row for side in sides for job in side.jobs]
    timed = list(dict.fromkeys(row.timing.said for row in rows if row.timing.seconds is not None))
    if not timed:
        return []
    notes = [f"s / image: median (least to most) of {'; '.join(timed[:3])}; images / s is the same, the other way up."]
    out = [row for row in rows if row.out_of_line]
    if out:
        trusted = " --trust-plugs" if any(row.result.plug_sources for row in out) else ""
        again = " ".join(shlex.quote(row.folder.as_posix()) for row in out[:RUNS])
        notes.append(
            f"! Seconds of {', '.join(row.job_id for row in out[:RUNS])} are out of line with their sweep "
            f"({out[0].out_of_line}), and of no account; to measure them again: research again {again} --time {RUNS}{trusted}"
        )
    return notes


def _rows(side: Side, cells: list[Cell]) -> list[Row]:
    return list(dict.fromkeys(job.row for cell in cells for job in side.jobs_of(cell)))
