"""``report.html``: one self-contained page, readable offline, in light and dark, on a phone, and with scripts off.

What it shows is gathered here as plain data; how it is shown stands in ``templates/``, where every value is escaped.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from research.directions import label
from research.files import plain_file, write_atomic
from research.labels import count, number, value_label
from research.report.advice import Advice, advise, fronts, near_fronts, where
from research.report.columns import TIMES, TOTAL, measures
from research.report.draw import Plot
from research.report.notes import notes
from research.report.page_tables import contact_sheet, file_link, jobs_table
from research.report.progress import Progress
from research.report.provenance import fixed_settings, made_with, provenance_notes
from research.report.script_data import script_data
from research.report.thumbs import Encoded
from research.results.axes import Axis
from research.results.read import Row, Sweep

TRACEBACKS_AT_MOST, TRACEBACK_AT_MOST = 20, 6000
VALUES_AT_MOST = 24
RUNNING_AT_MOST = 12
TASK_PICTURES_BYTES_AT_MOST = 500_000
SILENT = 90.0  # seconds without a sign of life, of which running jobs give several a minute
LIVE, PROGRESS = "<!--live-->", "<!--progress-->"  # what a live view fills in, again and again
_SCRIPTS = ("page.js", "jobs.js", "view.js", "pictures.js", "compare.js")


def write_page(sweep: Sweep, path: Path, *, plots: Sequence[Plot], thumbs: Encoded) -> None:
    """Writes the page; everything it needs is inside it, and every text from the sweep is escaped."""
    write_atomic(path, render(sweep, plots=plots, thumbs=thumbs).replace(LIVE, "").replace(PROGRESS, ""))


def render(sweep: Sweep, *, plots: Sequence[Plot], thumbs: Encoded) -> str:
    """The page as text; full-size pictures are linked beside it, with the thumbnails inside to fall back on.

    It has the places `LIVE` and `PROGRESS`, which a live view fills in and a finished page leaves empty.
    """
    columns = measures(sweep.done)
    on_front = fronts(sweep)
    advice = advise(sweep)
    tasks = _task_pictures(sweep)
    settings = fixed_settings(sweep)
    provenance = _provenance(made_with(sweep))
    present = {
        "advice": True,
        "figures": bool(plots),
        "pictures": bool(thumbs),
        "compare": bool(thumbs) and len(sweep.done) > 1,
        "jobs": True,
        "tasks": bool(tasks),
        "failed": bool(sweep.failed or sweep.damaged),
        "settings": bool(settings),
        "provenance": bool(provenance.of_all or provenance.of_metrics),
    }
    return _page(
        "report.html",
        sweep.name,
        sections=[name for name, found in present.items() if found],
        header=_header(sweep),
        notes=notes(sweep) + provenance_notes(sweep.done, columns),
        advice=advice,
        no_advice=_why_no_advice(sweep),
        cards=[_card(sweep, title, row) for title, row in advice.cards] if advice is not None else [],
        ladder=_ladder(sweep, advice) if advice is not None else [],
        plots=plots,
        sheet=contact_sheet(sweep, thumbs) if thumbs else None,
        table=jobs_table(sweep, columns, on_front, near_fronts(sweep)),
        task_pictures=tasks,
        failures=_failures(sweep),
        damaged=sweep.damaged,
        settings=settings,
        provenance=provenance,
        data=Markup(script_data(sweep, columns, on_front, advice)),
    )


def render_waiting(name: str) -> str:
    """The page of a sweep none of whose jobs is done yet."""
    return _page("waiting.html", name)


def render_progress(now: Progress) -> str:
    """The bar and the running jobs, to stand at the head of the page."""
    return _clean(_templates().get_template("progress.html").render(now=now, shown=RUNNING_AT_MOST, silent=SILENT))


def _page(template: str, title: str, **content: object) -> str:
    script = "(() => {\n'use strict';\n" + "".join(_source(name) for name in _SCRIPTS) + "})();\n"
    # only this very script runs, and nothing is fetched but pictures beside the page
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = (
        _templates()
        .get_template(template)
        .render(
            title=title,
            script=Markup(script),
            script_sha256=digest,
            style=Markup(_source("page.css")),
            live=Markup(LIVE),
            progress=Markup(PROGRESS),
            **content,
        )
    )
    return _clean(text)


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("research.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )


def _source(name: str) -> str:
    """A file of the templates as it stands."""
    environment = _templates()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _clean(text: str) -> str:
    """Text that can be written as UTF-8: halves of characters (lone surrogates), as file names may have, are replaced."""
    try:
        text.encode()  # quicker than looking for them in the megabytes of a large page
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text


# -- the head of the page, and the advice


@dataclass(frozen=True)
class SweptSetting:
    """A setting that the sweep varies; `more` is how many of its values are not shown."""

    label: str
    values: list[str]
    more: int


@dataclass(frozen=True)
class Header:
    """What was done, where and when; `failed` counts jobs that failed or cannot be read."""

    facts: list[str]
    failed: int
    swept: list[SweptSetting]
    made_of: list[str]


def _header(sweep: Sweep) -> Header:
    seconds = sum(row.timings.get("total", 0.0) for row in sweep.rows)
    images = sum(row.n_images for row in sweep.done)
    facts = [f"{count(len(sweep.done), 'job')} done", count(images, "image"), f"{seconds:.0f} s of computing"]
    devices = sorted({r.result.device for r in sweep.rows if r.result.device})
    dates = sorted(r.result.created[:10] for r in sweep.rows if r.result.created)
    facts += [f"on {d}" for d in devices] + list(dict.fromkeys((dates or [""])[:1] + (dates or [""])[-1:]))
    model = {str(r.settings.get("model.path")) for r in sweep.rows if r.settings.get("model.path")}
    counts = {(len(r.settings.get("prompts") or ()), r.settings.get("images_per_prompt") or 1) for r in sweep.rows}
    made_of = [f"model {m}" for m in sorted(model)[:3]]
    same = ", the same in every job" if len(sweep.rows) > 1 else ""
    if len(counts) == 1 and (each := counts.pop())[0]:
        made_of.append(f"{count(each[0], 'prompt')} × {count(int(each[1]), 'image')}{same}")
    failed = len(sweep.failed) + len(sweep.damaged)
    return Header([f for f in facts if f], failed, [_swept(axis) for axis in sweep.axes], made_of)


def _swept(axis: Axis) -> SweptSetting:
    shown = [value_label(v)[:80] for v in axis.values[:VALUES_AT_MOST]]
    return SweptSetting(axis.label, shown, len(axis.values) - len(shown))


@dataclass(frozen=True)
class Card:
    """A setting worth a look, with its numbers."""

    title: str
    job: str
    record: str
    settings: str
    numbers: list[tuple[str, str]]


@dataclass(frozen=True)
class LadderLine:
    """The best measured setting of so many evaluations and fewer, and what it gains over the line above."""

    nfe: str
    settings: str
    value: str
    gain: str


def _why_no_advice(sweep: Sweep) -> str:
    if len(sweep.done) > 1:
        return "no metric here says which is better, or too few of its numbers are of one provenance"
    return "fewer than two settings are done"


def _card(sweep: Sweep, title: str, row: Row) -> Card:
    shown = [m for m in measures(sweep.done) if m is not TOTAL and m.value(row) is not None]
    numbers = [(m.label, m.text(row) if m in TIMES else number(m.value(row))) for m in shown]
    return Card(title, row.job_id, file_link(row.folder.name, "result.json"), where(sweep, row), numbers)


def _ladder(sweep: Sweep, advice: Advice) -> list[LadderLine]:
    by = advice.ladder_by
    if by is None or len(advice.ladder) < 2:
        return []
    return [
        LadderLine(number(rung.row.result.nfe), where(sweep, rung.row), number(by.value(rung.row)), rung.gain)
        for rung in advice.ladder
    ]


# -- pictures of tasks, failures, provenance


@dataclass(frozen=True)
class TaskPicture:
    """A picture that a task made of all images of a job; `beside` if it is linked and not inside the page."""

    caption: str
    source: str
    beside: bool


@dataclass(frozen=True)
class Failure:
    """A job that failed; `settings` is empty where the sweep varies none."""

    job: str
    settings: str
    error: str
    traceback: str


@dataclass(frozen=True)
class MetricFacts:
    """What a metric was computed with."""

    label: str
    definition: str
    jobs_differ: bool
    facts: list[tuple[str, str]]


@dataclass(frozen=True)
class Provenance:
    """What holds for all numbers, and for those of each metric."""

    of_all: list[tuple[str, str]]
    of_metrics: list[MetricFacts]


def _task_pictures(sweep: Sweep) -> list[TaskPicture]:
    """Before and after, strips, animations; inside the page while there is room, else beside it."""
    shown: list[TaskPicture] = []
    left = TASK_PICTURES_BYTES_AT_MOST
    for row in sweep.done:
        for name, file in row.pictures.items():
            try:
                plain_file(row.folder, name_inside := file.relative_to(row.folder).as_posix())
            except OSError:
                continue
            source = file_link(row.folder.name, name_inside)
            left -= file.stat().st_size
            if left >= 0:
                kind = "image/gif" if file.suffix == ".gif" else "image/png"
                source = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
            shown.append(TaskPicture(f"{where(sweep, row)}: {name.replace('_', ' ')}", source, left < 0))
    return shown


def _failures(sweep: Sweep) -> list[Failure]:
    return [
        Failure(
            row.job_id,
            where(sweep, row) if sweep.axes else "",
            row.error or "no error was recorded",
            _traceback(row) if place < TRACEBACKS_AT_MOST else "",
        )
        for place, row in enumerate(sweep.failed)
    ]


def _traceback(row: Row) -> str:
    try:
        text = (row.folder / "traceback.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text[-TRACEBACK_AT_MOST:]


def _provenance(pairs: Sequence[tuple[str, str]]) -> Provenance:
    of_metrics: dict[str, list[tuple[str, str]]] = {}
    for name, text in pairs:
        metric, colon, key = name.partition(": ")
        if colon:
            of_metrics.setdefault(metric, []).append((key, text))
    return Provenance(
        [(name, text) for name, text in pairs if ": " not in name],
        [
            MetricFacts(
                label(metric),
                next((text for key, text in facts if key == "definition"), ""),
                any("jobs differ" in text for _, text in facts),
                facts,
            )
            for metric, facts in of_metrics.items()
        ],
    )
