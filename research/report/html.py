"""``report.html``: one self-contained page, readable offline, in light and dark, and with scripts off."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from research.files import write_atomic
from research.report.axes import value_label
from research.report.measures import Measure, measures
from research.report.plots import Plot
from research.report.provenance import fixed_settings, made_with
from research.report.rows import Row, Sweep

SHEET_BYTES_AT_MOST = 2_500_000
SHEET_WIDTH_AT_MOST = 1600
PICTURES_BYTES_AT_MOST = 8_000_000
TRACEBACKS_AT_MOST = 20


def write_html(sweep: Sweep, path: Path, *, sheet: Path | None, plots: Sequence[Plot]) -> None:
    """Writes the page; everything it shows is inside it, and every text from the sweep is escaped."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    body = "\n".join(
        part
        for part in (
            _head(sweep),
            _section("Figures", _figures(plots)),
            _section("Contact sheet", _contact_sheet(sheet)),
            _section("Pictures of the tasks", _pictures(sweep)),
            _section("Jobs", _table(sweep)),
            _section("What failed", _problems(sweep)),
            _section("Settings that all jobs share", _definitions(fixed_settings(sweep))),
            _section("What the numbers were made with", _definitions(made_with(sweep))),
        )
        if part
    )
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(sweep.name)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )
    write_atomic(path, page)


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>" if content else ""


def _head(sweep: Sweep) -> str:
    seconds = sum(row.timings.get("total", 0.0) for row in sweep.rows)
    images = sum(row.n_images for row in sweep.done)
    facts = [f"{len(sweep.done)} jobs done", f"{images} images", f"{seconds:.0f} s of computing"]
    devices = sorted({str(r.record["device"]) for r in sweep.rows if r.record.get("device")})
    dates = sorted(str(r.record["created"])[:10] for r in sweep.rows if r.record.get("created"))
    facts += devices + list(dict.fromkeys((dates or [""])[:1] + (dates or [""])[-1:]))
    line = " · ".join(escape(f) for f in facts if f)
    if sweep.failed or sweep.damaged:
        line += f' · <span class="bad">{len(sweep.failed) + len(sweep.damaged)} failed</span>'
    swept = [(axis.label, ", ".join(value_label(v) for v in axis.values)) for axis in sweep.axes]
    varied = f"<h2>What was varied</h2>\n{_definitions(swept)}" if swept else ""
    return f'<header>\n<h1>{escape(sweep.name)}</h1>\n<p class="muted">{line}</p>\n{_best(sweep)}\n{varied}\n</header>'


def _best(sweep: Sweep) -> str:
    cards = []
    for measure in [m for m in measures(sweep.done) if m.better]:
        row = measure.best(sweep.done)
        if row is not None:
            direction = "highest" if measure.better > 0 else "lowest"
            cards.append(
                f'<div><div class="label">{direction} {escape(measure.label)}</div>'
                f'<div class="value">{escape(measure.text(row))}</div><div>{escape(_where(sweep, row))}</div></div>'
            )
    return f'<div class="best">\n{"".join(cards)}\n</div>' if cards else ""


def _where(sweep: Sweep, row: Row) -> str:
    return ", ".join(f"{axis.label} {value_label(row.settings.get(axis.key))}" for axis in sweep.axes)


def _figures(plots: Sequence[Plot]) -> str:
    shown = []
    for plot in plots:
        images = "".join(
            f'<img class="{theme}" alt="{escape(plot.caption)}" src="{_data_uri("image/svg+xml", svg.encode())}">'
            for theme, svg in plot.svg.items()
        )
        shown.append(f"<figure>{images}<figcaption>{escape(plot.caption)}</figcaption></figure>")
    return f'<div class="figures">\n{"".join(shown)}\n</div>' if shown else ""


def _contact_sheet(sheet: Path | None) -> str:
    if sheet is None:
        return ""
    content, kind = sheet.read_bytes(), "image/png"
    from PIL import Image

    if len(content) > SHEET_BYTES_AT_MOST:
        content, kind = _smaller(sheet), "image/webp"
    caption = "The same prompts and seeds under every setting; the best value of each score is green."
    image = f'<img alt="{caption}" src="{_data_uri(kind, content)}">'
    with Image.open(sheet) as opened:
        wide = " wide" if opened.width > SHEET_WIDTH_AT_MOST else ""  # scrolls; what is a little wide shrinks
    return f'<figure class="sheet{wide}">{image}<figcaption>{caption}</figcaption></figure>'


def _pictures(sweep: Sweep) -> str:
    """What tasks made of all images of a job: before and after, strips, animations."""
    shown: list[str] = []
    left = PICTURES_BYTES_AT_MOST
    for row in sweep.done:
        for name, file in row.pictures.items():
            if not file.is_file() or (left := left - file.stat().st_size) < 0:
                continue
            caption = escape(f"{_where(sweep, row) or row.job_id}: {name.replace('_', ' ')}")
            kind = "image/gif" if file.suffix == ".gif" else "image/png"
            source = _data_uri(kind, file.read_bytes())
            shown.append(
                f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'
            )
    more = "<p>Further pictures are in the jobs' folders.</p>" if left < 0 else ""
    return f'<div class="figures pictures">\n{"".join(shown)}\n</div>{more}' if shown else ""


def _smaller(sheet: Path) -> bytes:
    from PIL import Image

    with Image.open(sheet) as opened:
        image = opened.convert("RGB")
    longest = 16_000  # the format ends at 16383
    if max(image.size) > longest:
        scale = longest / max(image.size)
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def _table(sweep: Sweep) -> str:
    columns = measures(sweep.done)
    best = {m.key: m.best(sweep.done) for m in columns}
    heads = [(axis.label, axis.numeric) for axis in sweep.axes]
    heads += [(m.label + {1: " ↑", -1: " ↓", 0: ""}[m.better], True) for m in columns]
    heads += [("images", True), ("status", False), ("job", False)]
    head = "".join(
        f'<th scope="col"{_numeric(n)}><button type="button">{escape(label)}</button></th>'
        for label, n in heads
    )
    rows = "\n".join(_table_row(sweep, row, columns, best) for row in sweep.rows)
    return (
        f'<div class="scroll"><table class="sortable">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _table_row(sweep: Sweep, row: Row, columns: Sequence[Measure], best: dict[str, Row | None]) -> str:
    cells = []
    for axis in sweep.axes:
        value = row.settings.get(axis.key)
        exact = "" if value is None else str(value)
        sort = f' data-v="{escape(exact)}"' if axis.numeric else f' title="{escape(exact)}"'
        cells.append(f"<td{_numeric(axis.numeric)}{sort}>{escape(value_label(value))}</td>")
    for measure in columns:
        number = measure.value(row) if row.done else None
        kind = "n top" if best[measure.key] is row else "n"
        exact = "" if number is None else repr(number)
        text = measure.text(row) if row.done else ""
        cells.append(f'<td class="{kind}" data-v="{exact}">{escape(text)}</td>')
    status = "done" if row.done else '<span class="bad">failed</span>'
    cells.append(f'<td class="n" data-v="{row.n_images}">{row.n_images}</td><td>{status}</td>')
    cells.append(f"<td><code>{escape(row.job_id[:12])}</code></td>")
    return f"<tr>{''.join(cells)}</tr>"


def _problems(sweep: Sweep) -> str:
    parts = []
    for place, row in enumerate(sweep.failed):
        where = f" ({where})" if (where := _where(sweep, row)) else ""
        line = f"<code>{escape(row.job_id[:12])}</code>{escape(where)}: {escape(row.error or 'no error was recorded')}"
        stack = _traceback(row) if place < TRACEBACKS_AT_MOST else ""
        parts.append(
            f"<details><summary>{line}</summary><pre>{escape(stack)}</pre></details>"
            if stack
            else f"<p>{line}</p>"
        )
    parts += [f"<p>{escape(problem)}</p>" for problem in sweep.damaged]
    return "\n".join(parts)


def _traceback(row: Row) -> str:
    try:
        return (row.folder / "traceback.txt").read_text(encoding="utf-8", errors="replace")[-6000:]
    except OSError:
        return ""


def _definitions(pairs: Iterable[tuple[str, Any]]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs)
    return f"<dl>{items}</dl>" if items else ""


def _numeric(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
