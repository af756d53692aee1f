"""``report.html``: one self-contained page, readable offline, in light and dark, on a phone, and with scripts off."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from research.files import write_atomic
from research.labels import count, value_label
from research.report.advice import advise, fronts, where
from research.report.columns import measures
from research.report.draw import Plot
from research.report.notes import notes, provenance_notes
from research.report.page_parts import advice_section, figures_section, task_pictures
from research.report.page_sheet import contact_sheet
from research.report.page_table import table
from research.report.payload import payload
from research.report.provenance import fixed_settings, made_with
from research.report.thumbs import Encoded
from research.results.axes import Axis
from research.results.directions import label
from research.results.read import Row, Sweep

TRACEBACKS_AT_MOST = 20
VALUES_AT_MOST = 24
LIVE, PROGRESS = "<!--live-->", "<!--progress-->"  # what a live view fills in, again and again
_SCRIPTS = ("page.js", "page_table.js", "page_view.js", "page_sheet.js", "page_compare.js")


def write_html(sweep: Sweep, path: Path, *, plots: Sequence[Plot], thumbs: Encoded) -> None:
    """Writes the page; everything it needs is inside it, and every text from the sweep is escaped."""
    write_atomic(path, render(sweep, plots=plots, thumbs=thumbs).replace(LIVE, "").replace(PROGRESS, ""))


def render(sweep: Sweep, *, plots: Sequence[Plot], thumbs: Encoded) -> str:
    """The page as text; full-size pictures are linked beside it, with the thumbnails inside to fall back on."""
    columns = measures(sweep.done)
    on_front = fronts(sweep)
    advice = advise(sweep)
    sections = [
        ("advice", "Which setting to use, and why", advice_section(sweep, advice)),
        ("figures", "Figures", figures_section(plots)),
        ("pictures", "Contact sheet", _parts("page_sheet.html", contact_sheet(sweep, thumbs))),
        (
            "compare",
            "Two jobs side by side",
            _parts("page_compare.html", "-") if len(sweep.done) > 1 and thumbs else "",
        ),
        ("jobs", "Jobs", _parts("page_table.html", table(sweep, columns, on_front))),
        ("tasks", "Pictures of the tasks", task_pictures(sweep)),
        ("failed", "What failed", _problems(sweep)),
        ("settings", "Settings that all jobs share", _definitions(fixed_settings(sweep))),
        ("provenance", "What the numbers were made with", _provenance(made_with(sweep))),
    ]
    sections = [s for s in sections if s[2]]
    nav = "".join(f'<a href="#{name}">{_SHORT[name]}</a>' for name, _, _ in sections)
    told = notes(sweep) + provenance_notes(sweep.done, columns)
    body = "\n".join(
        [
            _head(sweep),
            *(f'<p class="note" role="note">{escape(line)}</p>' for line in told),
            *(_section(*s) for s in sections),
            _file("page_view.html"),
            f'<script type="application/json" id="data">{payload(sweep, columns, on_front, advice)}</script>',
        ]
    )
    return frame(sweep.name, nav, body)


def _section(name: str, title: str, content: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n{content}\n</section>'


def frame(title: str, nav: str, body: str) -> str:
    """A whole page around its content."""
    script = "(() => {\n'use strict';\n" + "".join(_file(name) for name in _SCRIPTS) + "})();\n"
    # only this very script runs, and nothing is fetched but pictures beside the page
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src * data:; style-src 'unsafe-inline'; connect-src 'self'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n{LIVE}'
        f"<style>\n{_file('page.css')}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the report</a>\n'
        f'<nav aria-label="Sections"><div>{nav}<button type="button" id="theme" class="js" aria-label="Light or dark">◐</button>'
        "</div></nav>\n"
        f'<main id="main">\n{body}\n</main>\n<script>{script}</script>\n</body>\n</html>\n'
    )


_SHORT = {
    "advice": "Advice",
    "figures": "Figures",
    "pictures": "Pictures",
    "compare": "Compare",
    "jobs": "Jobs",
    "tasks": "Tasks",
    "failed": "Failed",
    "settings": "Settings",
    "provenance": "Provenance",
}


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _parts(name: str, content: str) -> str:
    """Controls, which the script shows, around what stands without it; nothing around nothing."""
    return _file(name).replace("<!--content-->", "" if content == "-" else content) if content else ""


def _head(sweep: Sweep) -> str:
    seconds = sum(row.timings.get("total", 0.0) for row in sweep.rows)
    images = sum(row.n_images for row in sweep.done)
    facts = [f"{count(len(sweep.done), 'job')} done", count(images, "image"), f"{seconds:.0f} s of computing"]
    devices = sorted({str(r.record["device"]) for r in sweep.rows if r.record.get("device")})
    dates = sorted(str(r.record["created"])[:10] for r in sweep.rows if r.record.get("created"))
    facts += [f"on {d}" for d in devices] + list(dict.fromkeys((dates or [""])[:1] + (dates or [""])[-1:]))
    line = " · ".join(escape(f) for f in facts if f)
    if sweep.failed or sweep.damaged:
        line += f' · <a class="bad" href="#failed">✕ {len(sweep.failed) + len(sweep.damaged)} failed</a>'
    swept = "".join(_swept(axis) for axis in sweep.axes)
    varied = f'<h2 class="swept">What was swept</h2>\n<dl>{swept}</dl>' if swept else ""
    model = {str(r.settings.get("model.path")) for r in sweep.rows if r.settings.get("model.path")}
    counts = {(len(r.settings.get("prompts") or ()), r.settings.get("images_per_prompt") or 1) for r in sweep.rows}
    with_what = [f"model {m}" for m in sorted(model)[:3]]
    same = ", the same in every job" if len(sweep.rows) > 1 else ""
    if len(counts) == 1 and (each := counts.pop())[0]:
        with_what.append(f"{count(each[0], 'prompt')} × {count(int(each[1]), 'image')}{same}")
    said = f'<p class="muted">With {escape(", ".join(with_what))}.</p>' if with_what else ""
    name = f"<h1><bdi>{escape(sweep.name)}</bdi></h1>"
    return f'<header>\n{name}\n<p class="muted">{line}</p>\n<div id="progress">{PROGRESS}</div>\n{varied}\n{said}\n</header>'


def _swept(axis: Axis) -> str:
    return f'<dt>{escape(axis.label)}</dt><dd class="chips">{_chips([value_label(v) for v in axis.values])}</dd>'


def _chips(values: Sequence[str]) -> str:
    shown = "".join(f"<bdi class=chip>{escape(v[:80])}</bdi>" for v in values[:VALUES_AT_MOST])
    return shown + (f" <span>and {len(values) - VALUES_AT_MOST} more</span>" if len(values) > VALUES_AT_MOST else "")


def _problems(sweep: Sweep) -> str:
    parts = []
    for place, row in enumerate(sweep.failed):
        at = f" ({where(sweep, row)})" if sweep.axes else ""
        line = f"<code>{escape(row.job_id[:12])}</code>{escape(at)}: {escape(row.error or 'no error was recorded')}"
        stack = _traceback(row) if place < TRACEBACKS_AT_MOST else ""
        parts.append(
            f"<details><summary>{line}</summary><pre>{escape(stack)}</pre></details>" if stack else f"<p>{line}</p>"
        )
    parts += [f"<p>{escape(problem)}</p>" for problem in sweep.damaged]
    return "\n".join(parts)


def _traceback(row: Row) -> str:
    try:
        return (row.folder / "traceback.txt").read_text(encoding="utf-8", errors="replace")[-6000:]
    except OSError:
        return ""


def _provenance(pairs: Sequence[tuple[str, str]]) -> str:
    """What holds for all numbers, then a fold for each metric, open where jobs differ in it."""
    general = [(name, text) for name, text in pairs if ": " not in name]
    metrics: dict[str, list[tuple[str, str]]] = {}
    for name, text in pairs:
        if ": " in name:
            metric, _, key = name.partition(": ")
            metrics.setdefault(metric, []).append((key, text))
    folds = []
    for metric, found in metrics.items():
        defined = next((text for key, text in found if key == "definition"), "")
        state = " open" if any("jobs differ" in text for _, text in found) else ""
        summary = f"<strong>{escape(label(metric))}</strong> {escape(defined)}"
        folds.append(f"<details{state}><summary>{summary}</summary>{_definitions(found)}</details>")
    return _definitions(general) + "\n".join(folds)


def _definitions(pairs: Iterable[tuple[str, Any]]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd><bdi>{escape(str(value))}</bdi></dd>" for name, value in pairs)
    return f"<dl>{items}</dl>" if items else ""
