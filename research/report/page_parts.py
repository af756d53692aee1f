"""The advice, the cards and the figures' frames of the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from research.labels import number
from research.report.advice import Advice, where
from research.report.columns import TOTAL, measures
from research.report.draw import Plot
from research.results.read import Row, Sweep

PICTURES_BYTES_AT_MOST = 500_000


def advice_section(sweep: Sweep, advice: Advice | None) -> str:
    """Which setting to use, the reasons, what is not known, and what more evaluations buy."""
    if advice is None:
        said = "fewer than two settings are done"
        if len(sweep.done) > 1:
            said = "no metric here says which is better, or too few of its numbers are of one provenance"
        return f'<p class="muted">Nothing to choose by: {said}.</p>'
    reasons = "".join(f"<li>{escape(r)}</li>" for r in advice.reasons)
    doubts = "".join(f"<li>{escape(d)}</li>" for d in advice.doubts)
    unsure = f"<h3>What these numbers do not carry</h3><ul class=muted>{doubts}</ul>" if doubts else ""
    cards = "".join(_card(sweep, title, row) for title, row in advice.cards)
    return (
        f'<p class="headline"><bdi>{escape(advice.headline)}</bdi></p>\n<ul>{reasons}</ul>\n'
        f'<div class="best">{cards}</div>\n{_ladder(sweep, advice)}\n{unsure}'
    )


def figures_section(plots: Sequence[Plot]) -> str:
    """Every figure as SVG, with its caption."""
    shown = "".join(
        f'<figure id="fig-{plot.name}"{" class=wide" if plot.wide else ""}><div>{plot.svg}</div>'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in plots
    )
    return f'<div class="figures">\n{shown}\n</div>' if shown else ""


def task_pictures(sweep: Sweep) -> str:
    """What tasks made of all images of a job: before and after, strips, animations; inside while there is room, else beside."""
    shown: list[str] = []
    left = PICTURES_BYTES_AT_MOST
    for row in sweep.done:
        for name, file in row.pictures.items():
            if not file.is_file() or not file.is_relative_to(row.folder):
                continue
            caption = escape(f"{where(sweep, row)}: {name.replace('_', ' ')}")
            source = quote(f"{row.folder.name}/{file.relative_to(row.folder).as_posix()}")
            left -= file.stat().st_size
            when = ' loading="lazy"'
            if left >= 0:
                when = ""
                kind = "image/gif" if file.suffix == ".gif" else "image/png"
                source = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
            image = f'<img{when} alt="{caption}" src="{source}">'
            shown.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="figures">\n{"".join(shown)}\n</div>' if shown else ""


def _card(sweep: Sweep, title: str, row: Row) -> str:
    shown = [m for m in measures(sweep.done) if m is not TOTAL and m.value(row) is not None]
    numbers = "".join(f"<dt>{escape(m.label)}</dt><dd>{escape(number(m.value(row)))}</dd>" for m in shown)
    return (
        f'<div><div class="label">{escape(title)}</div><a class="open value" data-job="{escape(row.job_id)}" '
        f'href="{quote(row.folder.name)}/result.json"><bdi>{escape(where(sweep, row))}</bdi></a><dl>{numbers}</dl></div>'
    )


def _ladder(sweep: Sweep, advice: Advice) -> str:
    by = advice.ladder_by
    if by is None or len(advice.ladder) < 2:
        return ""
    lines = "".join(
        f'<tr><td class="n">{number(rung.row.record.get("nfe"))}</td><td><bdi>{escape(where(sweep, rung.row))}</bdi></td>'
        f'<td class="n">{escape(number(by.value(rung.row)))}</td><td>{escape(rung.gain)}</td></tr>'
        for rung in advice.ladder
    )
    label = escape(by.label)
    return (
        "<h3>What more evaluations buy</h3>\n<div class=scroll><table><thead><tr><th class=n>NFE at most</th>"
        f"<th>best measured by {label}</th><th class=n>{label}</th><th>than the line above</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )
