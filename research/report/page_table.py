"""The table of jobs on the page, whole without the script: the script only sorts and filters it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from research.labels import number, value_label
from research.report.advice import level
from research.report.columns import Measure
from research.results.read import Row, Sweep


def table(sweep: Sweep, columns: Sequence[Measure], fronts: set[str]) -> str:
    """All jobs, a line each; the best values starred, and those that are not told apart from them marked so."""
    marks = {m.key: _marks(m, sweep.done) for m in columns}
    kinds = {m.key: m.kinds(sweep.done) for m in columns}
    heads = [(axis.label, axis.numeric) for axis in sweep.axes]
    heads += [(m.label + {1: " ↑", -1: " ↓", 0: ""}[m.better], True) for m in columns]
    heads += [("front", False), ("images", True), ("status", False), ("job", False)]
    head = "".join(
        f'<th scope="col"{_numeric(n)}><button type="button">{escape(label)}</button></th>' for label, n in heads
    )
    rows = "\n".join(_line(sweep, row, columns, marks, kinds, fronts) for row in sweep.rows)
    legend = (
        "★ best measured · ≈ not told apart from it: the 95 % interval of the difference, over the prompts and seeds that both"
        " have, holds 0 · [ ] 95 % interval · ◆ on the Pareto front of the main metrics and NFE"
    )
    if any(len(k) > 1 for k in kinds.values()):
        legend += " · letters: numbers with different letters were computed with different things"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="All jobs"><table class="sortable" id="jobs-table">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>\n"
        f'<p class="muted small">{legend}</p>'
    )


def _marks(measure: Measure, rows: Sequence[Row]) -> dict[str, str]:
    """``best`` and ``level`` (with the best) by job; nothing where the metric cannot rank."""
    found = measure.alike(rows) if measure.better else []
    best = measure.best(found)
    if best is None:
        return {}
    return {**{r.job_id: "level" for r in level(measure, found)}, best.job_id: "best"}


def _line(
    sweep: Sweep,
    row: Row,
    columns: Sequence[Measure],
    marks: dict[str, dict[str, str]],
    kinds: dict[str, dict[str, str]],
    fronts: set[str],
) -> str:
    cells = []
    for axis in sweep.axes:
        value = row.settings.get(axis.key)
        exact = "" if value is None else str(value)
        sort = f' data-v="{escape(exact)}"' if axis.numeric else f' title="{escape(exact[:500])}"'
        cells.append(f"<td{_numeric(axis.numeric)}{sort}><bdi>{escape(value_label(value))}</bdi></td>")
    for measure in columns:
        cells.append(_number(row, measure, marks[measure.key], kinds[measure.key]))
    on_front = "◆" if row.job_id in fronts else ""
    status = "done" if row.done else '<a class="bad" href="#failed">✕ failed</a>'
    record = f"{quote(row.folder.name)}/result.json"
    cells.append(
        f'<td class="c">{on_front}</td><td class="n" data-v="{row.n_images}">{row.n_images}</td><td>{status}</td>'
    )
    cells.append(
        f'<td><a class="open" data-job="{escape(row.job_id)}" href="{record}"><code>{escape(row.job_id[:12])}</code></a></td>'
    )
    return f'<tr data-job="{escape(row.job_id)}">{"".join(cells)}</tr>'


def _number(row: Row, measure: Measure, marks: dict[str, str], kinds: dict[str, str]) -> str:
    value = measure.value(row) if row.done else None
    if value is None:
        return '<td class="n" data-v="">–</td>' if row.done else '<td class="n" data-v=""></td>'
    sure = measure.interval(row)
    spread = f' <span class="ci">[{number(sure.low)}, {number(sure.high)}]</span>' if sure is not None else ""
    mark = marks.get(row.job_id)
    sign = {
        "best": '<span title="best measured">★</span> ',
        "level": '<span title="not told apart from the best">≈</span> ',
    }
    letter = f"<sup>{kinds.get(measure.provenance(row), '')}</sup>" if len(kinds) > 1 else ""
    kind = "n top" if mark == "best" else "n"
    return f'<td class="{kind}" data-v="{value!r}">{sign.get(mark or "", "")}{number(value)}{letter}{spread}</td>'


def _numeric(numeric: bool) -> str:
    return ' class="n"' if numeric else ""
