"""Seconds in words: what they are of, which are left out of account, and which command measures them (again)."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from research.labels import count, value_label
from research.report.columns import LATENCY, SECONDS
from research.results.read import Row, Sweep
from research.results.timing import FACTOR, LEAST_AWAY

RUNS = 5  # that a command asks for
SHOWN_AT_MOST = 5


def times_in_words(sweep: Sweep) -> str:
    """What the seconds of a sweep are of; empty where no job has any."""
    rows = _timed(sweep)
    if not rows:
        return ""
    kinds = Counter(row.timing.said for row in rows)
    shown = "; ".join(said if len(kinds) == 1 else f"{said} in {count(n, 'job')}" for said, n in kinds.most_common(3))
    text = f"s / image: median (least–most) of {shown}."
    if any(row.timing.shared for row in rows):
        text += " Some jobs shared batches: theirs are shares (runtime.vectorise=off)."
    text += " images / s: the same, the other way up. latency s: of one image made alone."
    return f"{text} The range is of what was timed in a row, and says nothing of a machine that was busy all the while."


def how_to_time(sweep: Sweep) -> str:
    """How to get what no seconds say yet, spread or latency; empty where nothing is missing."""
    rows = _timed(sweep)
    once, lacking = measured_once(rows), [row for row in rows if LATENCY.value(row) is None]
    text = ""
    if lacking:
        text += f"Latency was not measured in {count(len(lacking), 'job')}. "
    if once:
        text += f"In {count(len(once), 'job')} seconds were measured once, and have no spread. "
    if not text:
        return ""
    again = command([sweep.directory.as_posix()], trusted=_trusted(rows))
    return f"{text}To measure them: {again} (or, from the start, runtime.repeats={RUNS} runtime.latency={RUNS})."


def warm_up(sweep: Sweep) -> str:
    """How much longer the first batch took than the others, where it stands apart; empty where it does nowhere."""
    found = [
        row.timing.first / row.timing.seconds.median
        for row in sweep.done
        if row.timing.first is not None and row.timing.seconds is not None
    ]
    if not found:
        return ""
    return f"The first batch of a job, which is not counted, took {max(found):.2g} times as long an image at most."


def out_of_line_notes(sweep: Sweep) -> list[str]:
    """A line for each job whose seconds are left out of account, and the command that measures them again."""
    rows = [row for row in sweep.done if row.out_of_line]
    if not rows:
        return []
    shown = rows[:SHOWN_AT_MOST]
    lines = [f"Seconds of {_settings(sweep, r)} (job {r.job_id}) are out of line: {r.out_of_line}." for r in shown]
    if len(rows) > SHOWN_AT_MOST:
        lines.append(f"So are those of {count(len(rows) - SHOWN_AT_MOST, 'more job')}.")
    again = command([row.folder.as_posix() for row in shown], trusted=_trusted(rows))
    lines.append(
        f"They are left out of ranks, fronts and advice by seconds (beyond {FACTOR:g} scaled median absolute deviations and "
        f"{LEAST_AWAY:g} times). To measure them again: {again}"
    )
    return lines


def command(places: Sequence[str], *, trusted: bool) -> str:
    """What times jobs again, and nothing else."""
    words = [
        "research",
        "again",
        *map(shlex.quote, places),
        "--time",
        str(RUNS),
        *(["--trust-plugs"] if trusted else []),
    ]
    return " ".join(words)


def measured_once(rows: Sequence[Row]) -> list[Row]:
    """Jobs of which there is one measurement of seconds, and so no spread."""
    return [row for row in rows if row.timing.seconds is not None and row.timing.seconds.n < 2]


def _timed(sweep: Sweep) -> list[Row]:
    return [row for row in sweep.done if SECONDS.value(row) is not None]


def _trusted(rows: Sequence[Row]) -> bool:
    return any(row.result.plug_sources for row in rows)


def _settings(sweep: Sweep, row: Row) -> str:
    return ", ".join(f"{a.label} {value_label(row.settings.get(a.key))}" for a in sweep.axes) or "its settings"
