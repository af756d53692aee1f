"""Who is set against whom: folders, jobs of a sweep, or values of an axis, each with its jobs by the settings that they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.compare.jobs import (
    DATA,
    ComparedJob,
    Key,
    gather,
    has_value,
    matching,
    read_place,
    setting_key,
    setting_text,
)
from research.compare.outcome import Request
from research.errors import UserError, nearest
from research.jobs.changed_plugs import changed_lines, made_before
from research.labels import axis_label, value_label
from research.results.axes import find_axes
from research.results.read import Row

Cell = tuple[Any, ...]  # values of the settings that vary within the sides
MOST = 16  # sides that are all set against each other


@dataclass(eq=False)
class Side:
    """One of what is compared.

    Attributes:
        name: in tables.
        jobs: its jobs.
        cells: its images by the settings that vary within the sides: ``{cell: {image: (job, place)}}``.
        aliases: other words by which it may be named: its folder, its job's id, the value of the axis.
    """

    name: str
    jobs: list[ComparedJob]
    aliases: set[str] = field(default_factory=set)
    cells: dict[Cell, dict[Key, tuple[ComparedJob, int]]] = field(default_factory=dict)

    @property
    def n_images(self) -> int:
        return sum(len(rows) for rows in self.cells.values())

    def jobs_of(self, cell: Cell) -> list[ComparedJob]:
        return list(dict.fromkeys(job for job, _ in self.cells[cell].values()))


@dataclass(frozen=True)
class Sides:
    """All of them, the settings that vary within them, what to say of the reading, and the unit that all their sweeps were
    run with (`Row.unit`), if it is one."""

    sides: list[Side]
    within: list[str]
    notes: list[str]
    unit: str = ""


def find_sides(request: Request) -> Sides:
    """Read the folders and make the sides.

    Raises:
        UserError: one line: no such folder, no done job, fewer than two sides, an unknown axis.
    """
    places = [_place(word) for word in request.places]
    notes: list[str] = []
    read: list[list[Row]] = []
    for _, path in places:
        rows, remarks = read_place(path)
        read.append(rows)
        notes += remarks
    everything = [row for rows in read for row in rows]
    notes += [f"{line} than the others." for line in changed_lines(made_before([row.result for row in everything]))]
    if request.where:
        chosen = set(matching(everything, request.where))
        read = [[row for row in rows if row in chosen] for rows in read]
        for (_, path), rows in zip(places, read, strict=True):
            if not rows:
                raise UserError(
                    f"{path}: found no job with {' and '.join(request.where)}; accepted are sides with one at least."
                )
    if request.axis is not None:
        sides, within = _by_axis([r for rows in read for r in rows], request.axis)
    elif request.each or len(places) == 1:
        sides, within = _each(gather([r for rows in read for r in rows]), places)
    else:
        sides, within = _by_place(places, read)
    _add_repeats(sides, request.repeats, notes)
    for side in sides:
        notes += _fill(side, within)
    named = _named(sides)
    notes += _asked_by_models(named)
    units = {row.unit for row in everything}
    return Sides(named, within, notes, units.pop() if len(units) == 1 else "")


_BY_MODEL = "the model's config turns it on"  # of the linter's warning


def _asked_by_models(sides: Sequence[Side]) -> list[str]:
    """What a model's config turned on for some of the sides and not for others: their schedulers' names mean different things."""
    said: dict[str, list[str]] = {}
    for side in sides:
        found = {text for job in side.jobs for text in job.row.result.warnings if _BY_MODEL in text}
        for text in sorted(found):
            said.setdefault(text, []).append(side.name)
    return [f"{', '.join(names)}: {text}" for text, names in said.items() if len(names) < len(sides)]


def _place(word: str) -> tuple[str, Path]:
    """A side's name, empty where none is given, and its folder."""
    name, equals, rest = word.partition("=")
    if equals and rest and not Path(word).exists():
        return name.strip(), Path(rest).expanduser()
    return "", Path(word).expanduser()


def _by_axis(rows: list[Row], axis: str) -> tuple[list[Side], list[str]]:
    jobs = gather(rows)
    settings = [job.settings for job in jobs]
    key = setting_key(axis, settings, "--axis")
    values = list(dict.fromkeys(s.get(key) for s in settings))
    if len(values) < 2:
        varied = [a.key for a in find_axes(settings)]
        raise UserError(
            f"--axis {key}: found one value ({setting_text(values[0])}) in {len(jobs)} jobs; "
            f"accepted are axes that vary: {', '.join(varied) or 'none'}."
        )
    values.sort(key=lambda v: (not isinstance(v, int | float), v if isinstance(v, int | float) else 0))
    group = key.split(".")[0]
    # of its own group, what follows from the axis (a scheduler's class and options from its name) sets nothing else apart
    within = [
        a.key
        for a in find_axes(settings)
        if a.key not in (key, *DATA) and not (a.key.split(".")[0] == group and _follows(a.key, key, settings))
    ]
    sides = []
    for value in values:
        word = value_label(value)
        side = Side(
            f"{axis_label(key)} {word}", [j for j in jobs if j.settings.get(key) == value], {word, setting_text(value)}
        )
        sides.append(side)
    return sides, within


def _follows(key: str, other: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    seen: dict[Any, Any] = {}
    return all(seen.setdefault(s.get(other), s.get(key)) == s.get(key) for s in settings)


def _each(jobs: list[ComparedJob], places: Sequence[tuple[str, Path]]) -> tuple[list[Side], list[str]]:
    if len(jobs) < 2:
        where = ", ".join(str(path) for _, path in places)
        raise UserError(f"{where}: found one job; accepted are two jobs or more, two folders, or a sweep.")
    varied = find_axes([job.settings for job in jobs])
    # jobs that differ in their seeds or prompts alone are more images of one side, unless nothing else differs
    axes = [axis for axis in varied if axis.key not in DATA] or varied
    alike: dict[Cell, list[ComparedJob]] = {}
    for job in jobs:
        alike.setdefault(tuple(job.settings.get(a.key) for a in axes) if axes else (job.id,), []).append(job)
    sides = []
    for values, group in alike.items():
        name = ", ".join(f"{a.label} {value_label(v)}" for a, v in zip(axes, values, strict=False)) or group[0].id
        aliases = {word for job in group for word in (job.id, str(job.row.folder))}
        sides.append(Side(name, group, aliases))
    return sides, []


def _by_place(places: Sequence[tuple[str, Path]], read: Sequence[list[Row]]) -> tuple[list[Side], list[str]]:
    sides, within = [], []
    gathered = [gather(rows) for rows in read]
    singles = [jobs[0] for jobs in gathered if len(jobs) == 1]
    axes = find_axes([job.settings for job in singles]) if len(singles) == len(gathered) else []
    for (name, path), jobs in zip(places, gathered, strict=True):
        within += [a.key for a in find_axes([j.settings for j in jobs]) if a.key not in DATA]
        resolved = path.resolve()
        if not name and axes and (path / "result.json").is_file():  # jobs by what sets them apart
            name = ", ".join(f"{a.label} {value_label(jobs[0].settings.get(a.key))}" for a in axes)
        sides.append(
            Side(
                name or resolved.name,
                jobs,
                {str(path), resolved.name, str(resolved), *([jobs[0].id] if len(jobs) == 1 else [])},
            )
        )
    if len({path.resolve() for _, path in places}) < len(places):
        twice = next(str(p) for _, p in places if sum(p.resolve() == q.resolve() for _, q in places) > 1)
        raise UserError(f"{twice}: found twice; accepted are different folders.")
    return sides, list(dict.fromkeys(within))


def _add_repeats(sides: Sequence[Side], folders: Sequence[Path], notes: list[str]) -> None:
    by_id: dict[str, list[ComparedJob]] = {}
    for side in sides:
        for job in side.jobs:
            for row in job.rows:
                by_id.setdefault(row.job_id, []).append(job)
    for folder in folders:
        rows, remarks = read_place(folder)
        notes += remarks
        known = [row for row in rows if row.job_id in by_id]
        if not known:
            raise UserError(
                f"--repeats {folder}: found no run of a job that is compared; accepted are folders with the same job ids."
            )
        for row in known:
            jobs = by_id[row.job_id]
            if len(jobs) > 1:
                raise UserError(
                    f"--repeats {folder}: found job {row.job_id}, which is on {len(jobs)} sides; accepted are jobs of one side."
                )
            if row.folder.resolve() not in {r.folder.resolve() for r in (*jobs[0].rows, *jobs[0].repeats)}:
                jobs[0].repeats.append(row)


def _fill(side: Side, within: Sequence[str]) -> Iterator[str]:
    """Sort a side's images into cells; yields what to say of jobs that nothing sets apart."""
    for job in side.jobs:
        cell = side.cells.setdefault(tuple(job.settings.get(key) for key in within), {})
        twice = 0
        for place, key in enumerate(job.keys):
            twice += key in cell
            cell.setdefault(key, (job, place))
        if twice:
            yield f"{side.name}: {twice} images of job {job.id} have prompt, seed and settings of others, which are taken."


def _named(sides: list[Side]) -> list[Side]:
    """With names of their own."""
    counts = Counter(side.name for side in sides)
    for side in sides:
        if counts[side.name] > 1:
            longest = max(side.aliases, key=len, default="") if len(side.jobs) != 1 else side.jobs[0].id
            side.name = f"{side.name} ({longest})" if longest else side.name
    counts = Counter(side.name for side in sides)
    for place, side in enumerate(sides):
        if counts[side.name] > 1:
            side.name = f"{side.name} #{place + 1}"
    return sides


def find_pairs(sides: Sequence[Side], baseline: str | None) -> list[tuple[Side, Side]]:
    """Who is judged against whom: all against the baseline, or each against those before it.

    Raises:
        UserError: an unknown baseline, or too many sides without one.
    """
    if baseline is not None:
        base = _find(sides, baseline)
        return [(base, side) for side in sides if side is not base]
    if len(sides) > MOST:
        raise UserError(
            f"found {len(sides)} sides, {len(sides) * (len(sides) - 1) // 2} pairs; accepted are {MOST} sides, or "
            "--baseline NAME (a job's id), --axis KEY, --where KEY=VALUE."
        )
    return [(a, b) for i, a in enumerate(sides) for b in sides[i + 1 :]]


def _find(sides: Sequence[Side], word: str) -> Side:
    """A side by its name, its folder, its job's id or the beginning of it, or the value of the axis."""
    exact = [s for s in sides if word == s.name or word in s.aliases]
    close = exact or [s for s in sides if any(has_value(_number(alias), word) for alias in s.aliases)]
    close = close or [
        s for s in sides for path in s.aliases if "/" in path and Path(path).resolve() == Path(word).resolve()
    ]
    close = close or [s for s in sides if len(word) >= 4 and any(job.id.startswith(word) for job in s.jobs)]
    if len(set(close)) == 1:
        return close[0]
    names = [s.name for s in sides]
    found = f"found {word!r}, which names {len(set(close))} sides" if close else f"found {word!r}"
    raise UserError(f"--baseline: {found}.{nearest(word, names)} Accepted: {'; '.join(names[:8])}, or a job's id.")


def _number(alias: str) -> float | str:
    try:
        return float(alias)
    except ValueError:
        return alias
