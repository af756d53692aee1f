"""The two grids of the page as plain data: the contact sheet, and the table of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from research.labels import number, value_label
from research.report.advice import level
from research.report.columns import Measure, quality
from research.report.contact_sheet import lay_out
from research.report.thumbs import Encoded, Thumb
from research.report.times import how_to_time, times_in_words, warm_up
from research.results.axes import Axis
from research.results.intervals import unit_in_words
from research.results.read import Row, Sweep

ARROWS = {1: " ↑", -1: " ↓", 0: ""}
SCORES_AT_MOST = 3  # beneath the pictures of a job


def file_link(folder: str, file: object) -> str:
    """A file of a job, beside the page."""
    return quote(f"{folder}/{file}", errors="replace")


# -- the contact sheet: one grid without the script; with it, any axis runs along any side


@dataclass(frozen=True)
class Tile:
    """A picture in small; `pixels` if it is so small that its own pixels are to be seen."""

    link: str
    place: int
    label: str
    source: str
    width: int
    height: int
    pixels: bool


@dataclass(frozen=True)
class Score:
    """A number beneath a job's pictures."""

    text: str
    best: bool


@dataclass(frozen=True)
class SheetCell:
    """A job's pictures and scores; `failure` is None where it did not fail."""

    job: str
    failure: str | None
    tiles: list[Tile]
    notes: list[Score]


@dataclass(frozen=True)
class SheetLine:
    """A row of the contact sheet: its settings, and a cell a column, None where no such job was run."""

    values: list[str]
    cells: list[SheetCell | None]


@dataclass(frozen=True)
class ContactSheet:
    """Steps (or the last axis) along the columns, all other axes down the rows."""

    row_labels: list[str]
    column_label: str
    columns: list[str]
    lines: list[SheetLine]


def contact_sheet(sweep: Sweep, thumbs: Encoded) -> ContactSheet:
    layout = lay_out(sweep)
    by_job: dict[str, list[tuple[int, Thumb]]] = {}
    for (job, place), thumb in thumbs.items():
        by_job.setdefault(job, []).append((place, thumb))
    scores = [m for m in quality(sweep.done) if m.better][:SCORES_AT_MOST]
    best = {m.key: m.best(sweep.done) for m in scores}

    def cell(row: Row | None) -> SheetCell | None:
        if row is None:
            return None
        if not row.done:
            return SheetCell(row.job_id, row.error[:120], [], [])
        tiles = [_tile(row, place, thumb) for place, thumb in by_job.get(row.job_id, [])]
        numbers = [Score(f"{m.label} {number(m.value(row))}", best[m.key] is row) for m in scores]
        return SheetCell(row.job_id, None, tiles, numbers)

    lines = [
        SheetLine(
            [value_label(v)[:60] for v in values],
            [cell(layout.cells.get((values, column))) for column in layout.columns],
        )
        for values in layout.rows
    ]
    columns = [", ".join(value_label(v) for v in values)[:60] for values in layout.columns]
    over = " × ".join(axis.label for axis in layout.column_axes)
    return ContactSheet([axis.label for axis in layout.row_axes], over, columns, lines)


def _tile(row: Row, place: int, thumb: Thumb) -> Tile:
    image = row.images[place]
    source, width, height = thumb
    text = f"{(image.prompt or 'no prompt')[:90]}, seed {image.seed}"
    link = file_link(row.folder.name, image.file)
    return Tile(link, place, text, source, width, height, max(width, height) <= 40)


# -- the table of jobs, whole without the script: the script only sorts and filters it


@dataclass(frozen=True)
class Head:
    """The head of a column."""

    label: str
    numeric: bool


@dataclass(frozen=True)
class SettingCell:
    """A setting of a job: as it is shown, and in full."""

    text: str
    exact: str
    numeric: bool


@dataclass(frozen=True)
class NumberCell:
    """A number of a job.

    Attributes:
        exact: what the script sorts by; empty where there is no number.
        mark: "best", "level" (not told apart from the best), "apart" (left out of all ranking), or empty.
        why: of a number that is left out: what it is that speaks against it.
        letter: of its provenance, where the column has several.
    """

    text: str
    exact: str
    mark: str = ""
    letter: str = ""
    interval: str = ""
    why: str = ""


@dataclass(frozen=True)
class JobLine:
    """A job in the table; `front` is "on" it, "near" (off it, but not told apart from those that beat it), or empty."""

    job: str
    record: str
    settings: list[SettingCell]
    numbers: list[NumberCell]
    front: str
    images: int
    done: bool


@dataclass(frozen=True)
class JobsTable:
    """All jobs, the best values starred, and those that are not told apart from them marked so."""

    heads: list[Head]
    lines: list[JobLine]
    several_kinds: bool
    over: str = ""  # what the intervals are over
    times: str = ""  # what the seconds are of


def jobs_table(sweep: Sweep, columns: Sequence[Measure], on_front: set[str], near_front: set[str]) -> JobsTable:
    marks = [_marks(sweep, m) for m in columns]
    kinds = [m.kinds(sweep.done) for m in columns]
    heads = [Head(axis.label, axis.numeric) for axis in sweep.axes]
    heads += [Head(m.label + ARROWS[m.better], True) for m in columns]
    heads += [Head("front", False), Head("images", True), Head("status", False), Head("job", False)]
    lines = [
        JobLine(
            row.job_id,
            file_link(row.folder.name, "result.json"),
            [_setting_cell(axis, row) for axis in sweep.axes],
            [_number_cell(row, *column) for column in zip(columns, marks, kinds, strict=True)],
            "on" if row.job_id in on_front else "near" if row.job_id in near_front else "",
            row.n_images,
            row.done,
        )
        for row in sweep.rows
    ]
    over = {unit_in_words(row) for row in sweep.done}
    several = any(len(k) > 1 for k in kinds)
    times = " ".join(filter(None, (times_in_words(sweep), warm_up(sweep), how_to_time(sweep))))
    return JobsTable(heads, lines, several, over.pop() if len(over) == 1 else "", times)


def _marks(sweep: Sweep, measure: Measure) -> dict[str, str]:
    """``best`` and ``level`` (with the best) by job; nothing where the metric cannot rank."""
    found = measure.alike(sweep.done) if measure.better else []
    best = measure.best(found)
    if best is None:
        return {}
    if (
        top := measure.spread(best)
    ) is not None:  # nothing but what was measured: a time whose range meets that of the best
        spreads = {r.job_id: s for r in found if (s := measure.spread(r)) is not None}
        near = {job: "level" for job, s in spreads.items() if s.low <= top.high and top.low <= s.high}
        return {**near, best.job_id: "best"}
    return {**{r.job_id: "level" for r in level(sweep, measure, found)}, best.job_id: "best"}


def _setting_cell(axis: Axis, row: Row) -> SettingCell:
    value = row.settings.get(axis.key)
    exact = "" if value is None else str(value)
    return SettingCell(value_label(value), exact if axis.numeric else exact[:500], axis.numeric)


def _number_cell(row: Row, measure: Measure, marks: Mapping[str, str], kinds: Mapping[str, str]) -> NumberCell:
    value = measure.value(row) if row.done else None
    if value is None:
        return NumberCell("–" if row.done else "", "")
    sure, spread, why = measure.interval(row), measure.spread(row), measure.apart(row)
    interval = f"[{number(sure.low)}, {number(sure.high)}]" if sure is not None else ""
    return NumberCell(
        number(value),
        repr(value),
        "apart" if why else marks.get(row.job_id, ""),
        kinds.get(measure.provenance(row), "") if len(kinds) > 1 else "",
        f"({spread.range})" if spread is not None else interval,
        why,
    )
