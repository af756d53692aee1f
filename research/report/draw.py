"""Drawing the figures with matplotlib, as PNG files and as SVG that takes its colours and letters from the page."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.drawing import (
    COLOURS,
    FROM_LOG,
    GRID,
    INK,
    PAPER,
    Look,
    flattened,
    lay_out,
    log_values,
    look,
    looks,
    place_labels,
    plain_frame,
    said_better,
    value_ticks,
)
from research.files import write_atomic
from research.labels import value_label
from research.report.advice import where
from research.report.plots import Panels, figures, marks_explained
from research.results.axes import Axis
from research.results.read import Row, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 6.0  # inches; such a figure has a line of the page for itself
FACETS_AT_MOST = 4
STYLES_AT_MOST = 24  # lines that a legend names
VALUES_AT_MOST = 12  # of a setting, that are written below the axis
TITLES_AT_MOST = 300
PANEL = (3.5, 2.9)  # inches
DPI = 160  # of PNG files


@dataclass(frozen=True)
class Plot:
    """A figure: the file it was written to, and the same as SVG to stand in a page, whose style colours it."""

    name: str
    caption: str
    file: Path
    svg: str
    wide: bool = False


def draw_plots(sweep: Sweep, directory: Path) -> list[Plot]:
    """Writes ``<name>.png`` for every figure that the sweep has the numbers for; older ones are removed."""
    plots = []
    for panels in figures(sweep):
        file = directory / f"{panels.name}.png"
        figure = draw(sweep, panels)
        write_atomic(file, png(figure))
        caption = panels.caption + marks_explained(sweep.done, panels)
        wide = figure.get_figwidth() > WIDE
        plots.append(Plot(panels.name, caption, file, svg(figure, sweep, panels), wide))
    written = {plot.file for plot in plots}
    for stale in directory.glob("*.png"):
        if stale not in written:
            stale.unlink(missing_ok=True)
    return plots


def draw(sweep: Sweep, panels: Panels) -> Figure:
    """The figure, laid out."""
    from matplotlib.figure import Figure

    facet = panels.facet if panels.facet is not None and len(panels.facet.values) <= FACETS_AT_MOST else None
    used = [axis for axis in (panels.path, facet, panels.axis) if axis is not None]
    hues = [axis for axis in sweep.axes if axis not in used]
    styled = _styled(sweep.done, hues)
    series = list(dict.fromkeys(_key(row, hues) for row in sweep.done))
    order = [{value: place for place, value in enumerate(axis.values)} for axis in styled]
    styles = sorted(
        dict.fromkeys(_key(row, styled) for row in sweep.done),
        key=lambda key: [places.get(value, -1) for places, value in zip(order, key, strict=True)],
    )
    seen = dict(zip(styles, _looks(styled, styles), strict=True))
    values = facet.values if facet is not None else (None,)
    figure = Figure(figsize=(PANEL[0] * len(values), PANEL[1] + 0.5), layout="constrained")
    figure.patch.set_alpha(0.0)
    # one scale for all panels: what is beside another can be compared by eye
    grid_of_axes = figure.subplots(1, len(values), sharex=True, sharey=True, squeeze=False)[0]
    front, alike = panels.front(sweep.done), set(panels.alike(sweep.done))
    handles: dict[int, Any] = {}
    labels: list[Any] = []
    for number, (axes, value) in enumerate(zip(grid_of_axes, values, strict=True)):
        rows = [r for r in sweep.done if facet is None or r.settings.get(facet.key) == value]
        for key in series:
            own = [r for r in rows if _key(r, hues) == key]
            if own:
                place = styles.index(_key(own[0], styled))
                aside = _aside(figure, axes, place, len(styles)) if panels.axis is not None else axes.transData
                handles.setdefault(place, _draw_series(axes, own, panels, seen[styles[place]], alike, aside, labels))
        _draw_front(axes, [r for r in front if r in rows], panels, joined=facet is None)
        plain_frame(axes)
        if facet is not None:
            title = _short(f"{facet.label} {value_label(value)}", 44)
            axes.set_title(title, fontsize=9, color=INK, parse_math=False)
        axes.set_gid(f"panel-{number}")
    logs = _scales(grid_of_axes[0], sweep.done, panels)
    across = panels.x_better if panels.x_measure is not None or panels.tradeoff else 0
    for axes in grid_of_axes:
        axes.set_xlabel(said_better(panels.x_label, across) + logs[0], fontsize=9, color=INK)
    grid_of_axes[0].set_ylabel(said_better(panels.y.label, panels.y.better) + logs[1], fontsize=9, color=INK)
    if 1 < len(styles) <= STYLES_AT_MOST:
        _legend(figure, handles, styles, ", ".join(axis.label for axis in styled))
    lay_out(figure, dpi=DPI)
    if labels:
        place_labels(figure, labels, dpi=DPI)
    return figure


def _looks(styled: Sequence[Axis], styles: Sequence[tuple[Any, ...]]) -> list[Look]:
    """Of the lines of a figure, that a single axis tells apart the same in every figure of the page."""
    if len(styled) != 1:
        return looks(styles)
    return [look(styled[0].values.index(key[0])) for key in styles]


def _aside(figure: Figure, axes: Any, place: int, count: int) -> Any:
    """Where a line is drawn: a little to the side of the others, in points, so that bars do not lie on each other."""
    from matplotlib.transforms import ScaledTranslation

    apart = min(3.0, 15.0 / count)
    shift = (place - (count - 1) / 2) * apart / 72
    return axes.transData + ScaledTranslation(shift, 0, figure.dpi_scale_trans)


def png(figure: Figure) -> bytes:
    """For papers and slides: on white."""
    return _save(figure, "png")


def svg(figure: Figure, sweep: Sweep, panels: Panels) -> str:
    """To stand in the page: colours are the page's variables, letters its own, and each point says whose it is."""
    text = _save(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    rows = {row.job_id: row for row in sweep.done}
    text = re.sub(
        r'<g id="marks:([^"]+)">.*?(?=<g id=|</svg>)', lambda m: _named(m, rows, sweep, panels), text, flags=re.DOTALL
    )
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    name = panels.name
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text).replace("url(#", f"url(#{name}-")
    for colour, variable in ((INK, "--ink"), (GRID, "--grid"), (PAPER, "--card")):
        text = text.replace(colour, f"var({variable})")
    for place, colour in enumerate(COLOURS):
        text = text.replace(colour, f"var(--s{place})")
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", text)
    text = re.sub(r"<style.*?</style>|<g id=\"[^\"]*\"/>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*\n\s*", " ", text)
    label = escape(panels.caption)
    width = figure.get_figwidth() * 72
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" style="--w: {width:.0f}" ', 1)


def _named(match: re.Match[str], rows: dict[str, Row], sweep: Sweep, panels: Panels) -> str:
    """The marks of a line, each in a group that says whose it is."""
    jobs = iter(match[1].split(","))

    def one(mark: re.Match[str]) -> str:
        row = rows.get(next(jobs, ""))
        if row is None:
            return mark[0]
        said = f"<title>{escape(f'{where(sweep, row)}: {panels.y.label} {panels.y.text(row)}')}</title>"
        said = said if len(rows) <= TITLES_AT_MOST else ""  # the script says it then
        return f'<g class="pt" data-job="{escape(row.job_id)}">{said}{mark[0]}</g>'

    return re.sub(r"<use [^>]*/>", one, match[0])


def _set_aside(artists: Sequence[Any], aside: Any) -> None:
    for artist in artists:  # afterwards: limits are found where the data are
        artist.set_transform(aside)


def _draw_series(
    axes: Any, rows: Sequence[Row], panels: Panels, look: Look, alike: Collection[Row], aside: Any, labels: list[Any]
) -> Any:
    points = panels.drawn(rows)
    if panels.path is not None:
        key, order = panels.path.key, panels.path.values
        points.sort(key=lambda r: order.index(r.settings.get(key)))
    colour = look.colour
    xs, ys = [panels.x(r) for r in points], [panels.y.value(r) or 0.0 for r in points]
    if panels.path is not None:
        line = {"linestyle": look.line, "color": colour, "linewidth": 1.2, "alpha": 0.75, "zorder": 2}
        _set_aside(axes.plot(xs, ys, **line), aside)
    _draw_intervals(axes, points, panels, colour, aside)
    for inside in (colour, PAPER):
        marked = [r for r in points if (r in alike) == (inside == colour)]
        if marked:
            where_, height = [panels.x(r) for r in marked], [panels.y.value(r) for r in marked]
            style = {"color": colour, "markerfacecolor": inside, "markersize": 5, "clip_on": False, "zorder": 4}
            (marks,) = axes.plot(where_, height, look.marker, **style)
            _set_aside([marks], aside)
            marks.set_gid(f"marks:{','.join(r.job_id for r in marked)}")
            marks.set_in_layout(False)
    if panels.tradeoff and panels.path is not None and len(points) <= 12:
        for row, x, y in zip(points, xs, ys, strict=True):
            text = value_label(row.settings.get(panels.path.key))
            offset = {"xytext": (4, 4), "textcoords": "offset points"}
            label = axes.annotate(text, (x, y), fontsize=7, color=INK, alpha=0.8, parse_math=False, **offset)
            label.set_in_layout(False)
            labels.append(label)
    shown = {"marker": look.marker, "color": colour, "markersize": 5, "linewidth": 1.2}
    return axes.plot([], [], look.line if panels.path is not None else "", **shown)[0]


def _draw_intervals(axes: Any, rows: Sequence[Row], panels: Panels, colour: str, aside: Any) -> None:
    style = {"colors": colour, "linewidth": 0.8, "alpha": 0.35, "zorder": 1}
    drawn = []
    found = [(panels.x(r), i) for r in rows if (i := panels.y.interval(r)) is not None]
    if found:
        ends = [i.low for _, i in found], [i.high for _, i in found]
        drawn.append(axes.vlines([x for x, _ in found], *ends, **style))
        _set_aside(drawn, aside)
    across = panels.x_measure
    if across is not None:
        pairs = [(panels.y.value(r), i) for r in rows if (i := across.interval(r)) is not None]
        if pairs:
            drawn.append(
                axes.hlines([y for y, _ in pairs], [i.low for _, i in pairs], [i.high for _, i in pairs], **style)
            )
    for lines in drawn:
        lines.set_in_layout(False)


def _draw_front(axes: Any, rows: Sequence[Row], panels: Panels, *, joined: bool) -> None:
    xs, ys = [panels.x(r) for r in rows], [panels.y.value(r) for r in rows]
    if joined and len(rows) > 1:
        axes.plot(xs, ys, "--", color=INK, linewidth=1, alpha=0.6, zorder=3)
    if rows:
        axes.scatter(xs, ys, s=85, facecolors="none", edgecolors=INK, linewidths=1.1, clip_on=False, zorder=5)


def _scales(axes: Any, rows: Sequence[Row], panels: Panels) -> tuple[str, str]:
    """Scales and ticks of the axes that all panels share; what is said of each: that it is logarithmic."""
    drawn = panels.drawn(rows)
    xs, ys = [panels.x(r) for r in drawn], [panels.y.value(r) or 0.0 for r in drawn]
    said = ", log axis"
    up = flattened(ys)
    if up:
        log_values(axes.yaxis)
    if panels.axis is not None and not panels.axis.numeric:
        _named_ticks(axes, panels.axis)
        return "", said * up
    if not xs:
        return "", ""
    wide = flattened(xs) if panels.tradeoff else min(xs) > 0 and max(xs) >= FROM_LOG * min(xs)
    if panels.x_measure is None and len(set(xs)) <= VALUES_AT_MOST:  # the values that were run, not powers of ten
        value_ticks(axes, xs, log=wide)
    elif wide:
        log_values(axes.xaxis)
    return said * wide, said * up


def _named_ticks(axes: Any, axis: Axis) -> None:
    """Names at the places of an axis whose values are no numbers, turned where they would not fit beside each other."""
    names = [_short(value_label(value), 24) for value in axis.values]
    turned = 5.0 * sum(len(name) + 2 for name in names) > 190
    axes.set_xticks(range(len(names)), names, parse_math=False)
    if turned:
        for figure_axes in axes.figure.axes:  # a panel's letters are its own
            figure_axes.tick_params(axis="x", rotation=30)
            for text in figure_axes.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(names) - 0.5)


def _legend(figure: Figure, handles: dict[int, Any], styles: Sequence[tuple[Any, ...]], title: str) -> None:
    """To the right of the panels; the figure grows by what it takes, so that they keep their size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    places = sorted(handles)
    legend = figure.legend(
        [handles[place] for place in places],
        [_short(", ".join(value_label(v) for v in styles[place]), 40) for place in places],
        title=textwrap.fill(title, 30),
        loc="outside right upper",
        frameon=False,
        fontsize=8,
        title_fontsize=8,
        handlelength=2.8,  # so that a dashed line is seen to be one
    )
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_color(INK)
        text.set_parse_math(False)  # a prompt with two dollar signs is no formula
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    box = legend.get_window_extent(renderer)
    width, height = box.width / figure.dpi + 0.2, box.height / figure.dpi + 0.2
    figure.set_size_inches(figure.get_figwidth() + width, max(figure.get_figheight(), height))


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _styled(rows: Sequence[Row], hues: Sequence[Axis]) -> list[Axis]:
    """As many axes, the first ones, as there are colours and shapes for."""
    chosen: list[Axis] = []
    for axis in hues:
        if len({_key(r, [*chosen, axis]) for r in rows}) <= STYLES_AT_MOST:
            chosen.append(axis)
    return chosen


def _key(row: Row, axes: Sequence[Axis]) -> tuple[Any, ...]:
    return tuple(row.settings.get(axis.key) for axis in axes)


def _save(figure: Figure, kind: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # a fixed salt and no date: the same sweep gives the same bytes
    settings: Any = {"svg.hashsalt": "research", "svg.fonttype": "none"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a prompt in a script the font lacks
        if kind == "svg":
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        else:
            figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()
