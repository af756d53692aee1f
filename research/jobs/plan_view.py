"""The plan of a sweep as a person or a program reads it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from research.jobs.changed_plugs import changed_lines, changed_since
from research.jobs.estimate import Estimate, Times, estimate
from research.jobs.job import Job
from research.jobs.job_images import image_count
from research.jobs.job_status import statuses, with_ids_of_their_own
from research.jobs.overrides import as_written, parse
from research.jobs.planning import Plan

_WIDEST = 32  # characters of a cell
_OVER_SHOWN = 20  # jobs over the budget
QUICK = "whether the plugs fit the model is checked when the sweep starts; --plan=full checks it now"


@dataclass
class Line:
    """A job of a plan: what tells it apart, how it stands, what it will cost."""

    job: Job
    state: str  # done, failed or waiting
    images: int
    nfe: Estimate
    seconds: float | None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "job_id": self.job.id,
            "state": self.state,
            "overrides": self.job.overrides,
            "n_images": self.images,
            "nfe": self.nfe.nfe,
            "nfe_exact": self.nfe.exact,
            "evaluations": self.nfe.nfe * self.images,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "folder": str(self.job.folder.path),
            **({"error": self.error} if self.error else {}),
        }


def lines_of(made: Plan) -> list[Line]:
    """The jobs of a plan, in the order in which they run."""
    jobs = with_ids_of_their_own(made.jobs)
    found_on_disk, times = statuses(jobs), Times(jobs)
    found = []
    for job in jobs:
        status = found_on_disk[job.folder.path]
        state = "done" if status.done else "failed" if status.result is not None else "waiting"
        error = str(status.result.error) if state == "failed" and status.result else None
        found.append(Line(job, state, image_count(job.config), estimate(job.config), times.of(job), error))
    return found


def as_json(made: Plan, *, full: bool) -> str:
    """The plan for a program: jobs, points that cannot run, and sums."""
    lines = lines_of(made)
    left = [line for line in lines if line.state != "done"]
    content = {
        "jobs": [line.as_dict() for line in lines],
        "impossible": [{"overrides": each.overrides, "error": str(each.error)} for each in made.impossible],
        "over_budget": [{"overrides": each.job.overrides, "nfe": each.nfe} for each in made.over_budget],
        "points": made.points,
        "duplicates": made.duplicates,
        "excluded": made.left_out,
        "states": {state: sum(line.state == state for line in lines) for state in ("waiting", "done", "failed")},
        "evaluations_left": sum(line.nfe.nfe * line.images for line in left),
        "seconds_left": _seconds(left)[0],
        "changed_since": [
            {"job_id": each.job_id, "plugs": list(each.plugs)} for each in changed_since([line.job for line in lines])
        ],
        "checked": "full" if full else "quick",
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


def as_text(made: Plan, *, full: bool) -> str:
    """The plan for a person: a row a job, the points that cannot run, and a summary."""
    lines = lines_of(made)
    keys = _telling(made)
    rows = [["job", "state", *keys, "images", "NFE", "time"]]
    rows += [
        [
            line.job.id,
            line.state,
            *_cells(line.job.point, keys),
            str(line.images),
            str(line.nfe),
            "" if line.seconds is None else duration(line.seconds),
        ]
        for line in lines
    ]
    if all(line.seconds is None for line in lines):
        rows = [row[:-1] for row in rows]
    out = _table(rows) if lines else []
    if failed := [line for line in lines if line.error]:
        out += ["", *(f"failed: {line.job.id}: {line.error}" for line in failed)]
    if made.impossible:
        out += ["", *(f"cannot run: {' '.join(each.overrides)}: {each.error}" for each in made.impossible)]
    if made.over_budget:
        over = [f"over the budget: {' '.join(each.job.overrides)}: {each.nfe} NFE" for each in made.over_budget]
        out += [
            "",
            *over[:_OVER_SHOWN],
            *([f"... and {len(over) - _OVER_SHOWN} more"] if len(over) > _OVER_SHOWN else []),
        ]
    return "\n".join([*out, "", *_summary(made, lines, full=full)])


def _summary(made: Plan, lines: Sequence[Line], *, full: bool) -> list[str]:
    left = [line for line in lines if line.state != "done"]
    counted = [
        f"{sum(x.state == s for x in lines)} {s}"
        for s in ("done", "failed", "waiting")
        if any(x.state == s for x in lines)
    ]
    said = [f"{len(lines)} job{'s' * (len(lines) != 1)}: {', '.join(counted)}" if lines else "no jobs"]
    if left:
        exact = all(line.nfe.exact for line in left)
        images, evaluations = (sum(line.images for line in left), sum(line.images * line.nfe.nfe for line in left))
        cost = f"to run: {images:,} images, {'' if exact else 'about '}{evaluations:,} model evaluations"
        seconds, unknown = _seconds(left)
        if seconds is not None:
            cost += f", about {duration(seconds)} by the timings of earlier jobs"
            cost += f" ({unknown} jobs without)" if unknown else ""
        said.append(cost)
    said += changed_lines(changed_since([line.job for line in lines]))
    notes = duplicates_note(made)
    if made.left_out:
        said.append(f"sweep.exclude leaves out {made.left_out} points")
    if notes:
        said.append(notes)
    if note := budget_note(made):
        said.append(note)
    if made.impossible:
        does = "the sweep does without them" if made.skips and made.jobs else "the sweep does not start with them"
        said.append(f"{len(made.impossible)} of {made.points} points cannot run, and {does}")
    if not full:
        said.append(QUICK)
    return said


def duplicates_note(made: Plan) -> str | None:
    """Points that come to a job which is there already, and the axes to blame; None without any."""
    if not made.duplicates:
        return None
    idle = made.idle_axes()
    blame = f"; {' and '.join(idle)} make{'s' * (len(idle) == 1)} no difference" if idle else ""
    return f"{made.duplicates} of {made.points} points are jobs that others are already{blame}"


def budget_note(made: Plan) -> str | None:
    """What the budget leaves out; None for nothing."""
    if not made.over_budget:
        return None
    n = len(made.over_budget)
    said = f"{n} job over budget.nfe is" if n == 1 else f"{n} jobs over budget.nfe are"
    return f"{said} left out (with budget.over=run they are run, and not advised)"


def _seconds(lines: Sequence[Line]) -> tuple[float | None, int]:
    """Their sum, and of how many lines it is not known."""
    known = [line.seconds for line in lines if line.seconds is not None]
    return (round(sum(known), 3) if known else None), len(lines) - len(known)


def _telling(made: Plan) -> list[str]:
    """The keys in which jobs differ."""
    seen: dict[str, set[str]] = {}
    for job in made.jobs:
        for line in job.point:
            seen.setdefault(_key(line), set()).add(line)
    count = {key: sum(_key(line) == key for job in made.jobs for line in job.point) for key in seen}
    return [key for key, lines in seen.items() if len(lines) > 1 or count[key] < len(made.jobs)]


def _cells(point: Sequence[str], keys: Sequence[str]) -> list[str]:
    values = {_key(line): as_written(line).partition("=")[2] for line in point}
    return [textwrap.shorten(values.get(key, "-"), _WIDEST, placeholder="...") for key in keys]


def _key(line: str) -> str:
    return parse(line).get_key_element().lstrip("+")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min, 2.5 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
