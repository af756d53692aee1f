"""The contact sheet on the page: one grid without the script; with it, any axis runs along any side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from research.labels import number, value_label
from research.report.columns import Measure, quality
from research.report.sheet import lay_out
from research.report.thumbs import Encoded
from research.results.read import Row, Sweep

_ALT_AT_MOST = 90
_NOTES_AT_MOST = 3


def contact_sheet(sweep: Sweep, thumbs: Encoded) -> str:
    """Steps (or the last axis) along the columns, all other axes down the rows; empty if no job has a picture."""
    if not thumbs:
        return ""
    layout = lay_out(sweep)
    by_job: dict[str, list[tuple[int, tuple[str, int, int]]]] = {}
    for (job, place), thumb in thumbs.items():
        by_job.setdefault(job, []).append((place, thumb))
    measures = [m for m in quality(sweep.done) if m.better][:_NOTES_AT_MOST]
    best = {m.key: m.best(sweep.done) for m in measures}
    corner = "".join(f'<th scope="col">{escape(axis.label)}</th>' for axis in layout.row_axes)
    over = " × ".join(axis.label for axis in layout.column_axes)
    muted = f'<span class="muted">{escape(over)}</span>'
    heads = "".join(f'<th scope="col">{muted} <bdi>{_values(values)}</bdi></th>' for values in layout.columns)
    lines = []
    for values in layout.rows:
        labels = "".join(f'<th scope="row"><bdi>{escape(value_label(v)[:60])}</bdi></th>' for v in values)
        cells = "".join(_cell(layout.cells.get((values, column)), by_job, measures, best) for column in layout.columns)
        lines.append(f"<tr>{labels}{cells}</tr>")
    body = "\n".join(lines)
    return (
        '<div class="scroll sheet" id="sheet" tabindex="0" role="region" aria-label="Contact sheet">'
        f"<table class=grid><thead><tr>{corner}{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def image_link(row: Row, image: dict[str, object]) -> str:
    """The image's own file, beside the page."""
    return quote(f"{row.folder.name}/{image['file']}")


def _cell(
    row: Row | None,
    by_job: dict[str, list[tuple[int, tuple[str, int, int]]]],
    measures: Sequence[Measure],
    best: dict[str, Row | None],
) -> str:
    if row is None:
        return '<td class="none">not run</td>'
    job = escape(row.job_id)
    if not row.done:
        return f'<td class="none bad" data-job="{job}">✕ failed: {escape(row.error[:120])}</td>'
    tiles = "".join(_tile(row, place, thumb) for place, thumb in by_job.get(row.job_id, []))
    tiles = tiles or '<span class="none">no picture</span>'
    notes = " ".join(
        f"<span{' class=top' if best[m.key] is row else ''}>{escape(m.label)} {number(m.value(row))}</span>"
        for m in measures
    )
    return f'<td data-job="{job}"><div class="tiles">{tiles}</div><div class="notes">{notes}</div></td>'


def _tile(row: Row, place: int, thumb: tuple[str, int, int]) -> str:
    image = row.images[place]
    source, width, height = thumb
    said = f"{str(image.get('prompt') or 'no prompt')[:_ALT_AT_MOST]}, seed {image.get('seed')}"
    small = " class=px" if max(width, height) <= 40 else ""
    return (
        f'<a class="tile" href="{image_link(row, image)}" data-job="{escape(row.job_id)}" data-k="{place}" '
        f'title="{escape(said)}">'
        f'<img{small} alt="{escape(said)}" width="{width}" height="{height}" src="{source}"></a>'
    )


def _values(values: Sequence[object]) -> str:
    return escape(", ".join(value_label(v) for v in values)[:60])
