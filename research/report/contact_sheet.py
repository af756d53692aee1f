"""The contact sheet: the same images (same prompts, same seeds) under every setting of a sweep, with labelled axes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.drawing import INK
from research.files import write_atomic
from research.labels import number, value_label
from research.report.columns import quality
from research.report.thumbs import Chosen, choose_images, load_thumb, thumb_size
from research.results.axes import Axis
from research.results.read import Row, Sweep

if TYPE_CHECKING:
    from PIL import Image

COLUMNS_AT_MOST = 12
MUTED, LINE, PAPER = "#75716a", "#d8d4cc", "#ffffff"
GOOD, BAD, BAD_PAPER = "#0b6e4f", "#b3261e", "#fbefee"
MARGIN, GAP, TILE_GAP = 36, 22, 3
TITLE, LABEL, SMALL = 26, 17, 13
NOTE_HEIGHT = 22


@dataclass(frozen=True)
class Layout:
    """Which axes run along the columns and which down the rows, with every combination that occurs."""

    column_axes: list[Axis]
    row_axes: list[Axis]
    columns: list[tuple[Any, ...]]
    rows: list[tuple[Any, ...]]
    cells: dict[tuple[tuple[Any, ...], tuple[Any, ...]], Row]


def write_contact_sheet(sweep: Sweep, path: Path) -> Path | None:
    """Writes the sheet; returns None, and removes an older sheet, if no job has images."""
    sheet = draw_contact_sheet(sweep)
    if sheet is None:
        path.unlink(missing_ok=True)
        return None
    buffer = io.BytesIO()
    # of very large sheets the last percent of size takes most of the time
    sheet.save(buffer, "PNG", compress_level=6 if sheet.width * sheet.height < 8_000_000 else 2)
    write_atomic(path, buffer.getvalue())
    return path


def lay_out(sweep: Sweep) -> Layout:
    """Steps (or the last axis) run along the columns, all other axes down the rows.

    A single axis with more values than fit side by side runs down the rows.
    """
    axes = sweep.axes
    column_axes = axes[-1:]
    if column_axes and len(column_axes[0].values) > COLUMNS_AT_MOST:
        column_axes = []
    row_axes = [axis for axis in axes if axis not in column_axes]
    cells: dict[tuple[tuple[Any, ...], tuple[Any, ...]], Row] = {}
    for row in sweep.rows:
        place = (_values(row, row_axes), _values(row, column_axes))
        if place not in cells or row.done:  # a job that was done counts more than one that failed
            cells[place] = row
    columns = sorted({c for _, c in cells}, key=lambda values: _order(values, column_axes))
    rows = sorted({r for r, _ in cells}, key=lambda values: _order(values, row_axes))
    return Layout(column_axes, row_axes, columns, rows, cells)


def draw_contact_sheet(sweep: Sweep) -> Image.Image | None:
    """The sheet as an RGB image, or None if no job has images."""
    from PIL import Image, ImageDraw

    layout = lay_out(sweep)
    chosen = choose_images(sweep.done)
    if not chosen.images:
        return None
    tile = thumb_size(chosen, len(layout.columns) * len(layout.rows))
    cell_width = chosen.columns * (tile + TILE_GAP) - TILE_GAP
    tiles_height = chosen.rows * (tile + TILE_GAP) - TILE_GAP
    metrics = quality(sweep.done)
    notes = _notes_layout(sweep, metrics, cell_width)
    cell_height = tiles_height + 6 + NOTE_HEIGHT * len(notes)
    label_widths = [
        max(text_width(t, LABEL) for t in [axis.label, *(_shorten(value_label(v)) for v in axis.values)]) + 24
        for axis in layout.row_axes
    ]
    left = MARGIN + sum(label_widths)
    grid_width = len(layout.columns) * (cell_width + GAP) - GAP
    width = max(left + grid_width + MARGIN, 900)
    legend = _legend_lines(chosen, width - 2 * MARGIN)
    header = MARGIN + TITLE + 16 + 22 * len(legend) + 26
    top = header + (30 if layout.column_axes else 0) + 30
    height = top + len(layout.rows) * (cell_height + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)

    draw.text((MARGIN, MARGIN - 6), sweep.name, INK, font(sweep.name, TITLE))
    for i, line in enumerate(legend):
        draw.text((MARGIN, MARGIN + TITLE + 12 + 22 * i), line, MUTED, font(line, LABEL - 2))
    _draw_column_labels(draw, layout, left, header, cell_width)
    x = MARGIN
    for axis, label_width in zip(layout.row_axes, label_widths, strict=True):
        draw.text((x, top - 28), axis.label, MUTED, font(axis.label, SMALL + 1))
        x += label_width
    best = {m.key: m.best(sweep.done) for m in metrics}
    previous: tuple[Any, ...] = ()
    for r, values in enumerate(layout.rows):
        y = top + r * (cell_height + GAP)
        _draw_row_labels(draw, layout, values, previous, label_widths, y, tiles_height, left + grid_width)
        previous = values
        for c, column in enumerate(layout.columns):
            row = layout.cells.get((values, column))
            x = left + c * (cell_width + GAP)
            if row is None:
                _draw_message(draw, (x, y, cell_width, tiles_height), "not run", LINE, PAPER)
            elif not row.done:
                _draw_message(draw, (x, y, cell_width, tiles_height), f"failed: {row.error}", BAD, BAD_PAPER)
            else:
                _draw_images(sheet, row, chosen, tile, x, y)
                for i, line_metrics in enumerate(notes):
                    _draw_notes(draw, row, line_metrics, best, x, y + tiles_height + 6 + NOTE_HEIGHT * i)
    return sheet


def _draw_column_labels(draw: Any, layout: Layout, left: int, y: int, cell_width: int) -> None:
    for axis in layout.column_axes:
        draw.text((left, y), axis.label, MUTED, font(axis.label, SMALL + 1))
    for c, values in enumerate(layout.columns):
        label = ", ".join(value_label(v) for v in values)
        label = ellipsis(label, LABEL, cell_width)
        draw.text((left + c * (cell_width + GAP), y + 22), label, INK, font(label, LABEL))


def _draw_row_labels(
    draw: Any,
    layout: Layout,
    values: tuple[Any, ...],
    previous: tuple[Any, ...],
    widths: Sequence[int],
    y: int,
    tiles_height: int,
    right: int,
) -> None:
    changed = next((i for i, pair in enumerate(zip(values, previous, strict=False)) if pair[0] != pair[1]), 0)
    if previous and changed < len(values) - 1:  # a new value of an outer axis begins
        draw.line((MARGIN, y - GAP // 2, right, y - GAP // 2), LINE, 1)
    x = MARGIN
    for i, (value, width) in enumerate(zip(values, widths, strict=True)):
        if i >= changed:
            text = _shorten(value_label(value))
            draw.text((x, y + tiles_height // 2), text, INK, font(text, LABEL), anchor="lm")
        x += width


def _draw_images(sheet: Any, row: Row, chosen: Chosen, tile: int, x: int, y: int) -> None:
    for i, image in enumerate(chosen.of(row)):
        thumb = load_thumb(row, image, tile) if image is not None else None
        at = (x + i % chosen.columns * (tile + TILE_GAP), y + i // chosen.columns * (tile + TILE_GAP))
        if thumb is not None:
            sheet.paste(thumb, (at[0] + (tile - thumb.width) // 2, at[1] + (tile - thumb.height) // 2))
        else:
            from PIL import ImageDraw

            ImageDraw.Draw(sheet).rectangle((*at, at[0] + tile - 1, at[1] + tile - 1), "#f3f1ed")


def _notes_layout(sweep: Sweep, metrics: Sequence[Any], cell_width: int) -> list[list[Any]]:
    """Metrics on as few lines as fit the narrowest cell."""
    lines: list[list[Any]] = []
    used = 0
    for measure in metrics[:6]:
        widest = max((text_width(_note(measure, row), SMALL + 1) for row in sweep.done), default=0) + 14
        if not lines or used + widest > cell_width:
            lines.append([])
            used = 0
        lines[-1].append(measure)
        used += widest
    return lines


def _draw_notes(draw: Any, row: Row, metrics: Sequence[Any], best: dict[str, Row | None], x: int, y: int) -> None:
    for measure in metrics:
        text = _note(measure, row)
        is_best = best[measure.key] is row
        draw.text((x, y), text, GOOD if is_best else MUTED, font(text, SMALL + 1), stroke_width=0.3 if is_best else 0)
        x += text_width(text, SMALL + 1) + 14


def _note(measure: Any, row: Row) -> str:
    return f"{measure.label} {number(measure.value(row))}"


def _draw_message(draw: Any, box: tuple[int, int, int, int], text: str, ink: str, paper: str) -> None:
    x, y, width, height = box
    draw.rectangle((x, y, x + width - 1, y + height - 1), paper, LINE)
    lines = wrap(text, SMALL + 1, width - 20)
    fit = max(1, (height - 16) // 18)
    lines = lines if len(lines) <= fit else [*lines[: fit - 1], lines[fit - 1] + " …"]
    for i, line in enumerate(lines):
        draw.text((x + 10, y + 8 + 18 * i), line, ink if ink != LINE else MUTED, font(line, SMALL + 1))


def _legend_lines(chosen: Chosen, width: int) -> list[str]:
    parts = [f"{i + 1} {prompt or 'no prompt'} (seed {seed})" for i, (prompt, seed) in enumerate(chosen.images)]
    order = "In each cell: " if len(parts) == 1 else "In each cell, row by row: "
    return wrap(order + "  ·  ".join(parts), LABEL - 2, width)[:8]


def _shorten(text: str, limit: int = 28) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _values(row: Row, axes: Sequence[Axis]) -> tuple[Any, ...]:
    return tuple(row.settings.get(axis.key) for axis in axes)


def _order(values: tuple[Any, ...], axes: Sequence[Axis]) -> list[int]:
    return [axis.values.index(value) for axis, value in zip(axes, values, strict=True)]


# -- text on it: fonts that come with the libraries, measuring, wrapping


def font(text: str, size: int) -> Any:
    """Pillow's own font, which has little beyond ASCII, or for other text matplotlib's, which covers more scripts."""
    return _font(size, all(c.isascii() or c in "…±·" for c in text))


@lru_cache(maxsize=32)
def _font(size: int, plain: bool) -> Any:
    from PIL import ImageFont

    if plain:
        return ImageFont.load_default(size=size)
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size - 1)


def text_width(text: str, size: int) -> int:
    """Width in pixels, rounded up."""
    return int(font(text, size).getlength(text)) + 1


def ellipsis(text: str, size: int, width: int) -> str:
    """The text, cut to `width` pixels with an ellipsis."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def wrap(text: str, size: int, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces; a word too long for a line is cut."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if text_width(longer, size) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [ellipsis(line.strip(), size, width) for line in lines]
