"""Drawing the figures with matplotlib, as PNG files and as SVG that takes its colours and letters from the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.drawing import COLOURS, GRID, INK, MARKERS, PAPER, plain_frame
from research.files import write_atomic
from research.labels import value_label
from research.report.advice import where
from research.report.columns import SECONDS
from research.report.plots import Panels, figures, marks_explained
from research.results.axes import Axis
from research.results.read import Row, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 6.0  # inches; such a figure has a line of the page for itself
FACETS_AT_MOST = 4
STYLES_AT_MOST = 21
TITLES_AT_MOST = 300
PANEL = (3.5, 2.9)  # inches


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
    used = [axis for axis in (panels.path, facet) if axis is not None]
    hues = [axis for axis in sweep.axes if axis not in used]
    styled = _styled(sweep.done, hues)
    series = list(dict.fromkeys(_key(row, hues) for row in sweep.done))
    styles = list(dict.fromkeys(_key(row, styled) for row in sweep.done))
    values = facet.values if facet is not None else (None,)
    figure = Figure(figsize=(PANEL[0] * max(len(values), 1.5), PANEL[1] + 0.5), layout="constrained")
    figure.patch.set_alpha(0.0)
    shared = not panels.tradeoff
    grid_of_axes = figure.subplots(1, len(values), sharex=shared, sharey=shared, squeeze=False)[0]
    front, alike = panels.front(sweep.done), set(panels.alike(sweep.done))
    handles: dict[int, Any] = {}
    for number, (axes, value) in enumerate(zip(grid_of_axes, values, strict=True)):
        rows = [r for r in sweep.done if facet is None or r.settings.get(facet.key) == value]
        for key in series:
            own = [r for r in rows if _key(r, hues) == key]
            if own:
                place = styles.index(_key(own[0], styled))
                look = _look(own[0], styled, styles)
                handles.setdefault(place, _draw_series(axes, own, panels, look, alike))
        _draw_front(axes, [r for r in front if r in rows], panels, joined=facet is None)
        plain_frame(axes)
        if facet is not None:
            axes.set_title(f"{facet.label} {value_label(value)}", fontsize=9, color=INK, parse_math=False)
        axes.set_xlabel(panels.x_label, fontsize=9, color=INK)
        _scale_x(axes, [x for r in sweep.done if (x := panels.x(r)) is not None], panels)
        axes.set_gid(f"panel-{number}")
    arrow = {1: " ↑", -1: " ↓", 0: ""}[panels.y.better]
    grid_of_axes[0].set_ylabel(panels.y.label + arrow, fontsize=9, color=INK)
    if 1 < len(styles) <= STYLES_AT_MOST:
        _legend(figure, handles, styles, ", ".join(axis.label for axis in styled))
    return figure


def png(figure: Figure) -> bytes:
    """For papers and slides: on white."""
    return _save(figure, "png")


def svg(figure: Figure, sweep: Sweep, panels: Panels) -> str:
    """To stand in the page: colours are the page's variables, letters its own, and each point says whose it is."""
    figure.set_layout_engine("none")  # laid out once is enough
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


def _draw_series(axes: Any, rows: Sequence[Row], panels: Panels, look: tuple[str, str], alike: Collection[Row]) -> Any:
    points = panels.drawn(rows)
    if panels.path is not None:
        key, order = panels.path.key, panels.path.values
        points.sort(key=lambda r: order.index(r.settings.get(key)))
    colour, marker = look
    xs, ys = [panels.x(r) for r in points], [panels.y.value(r) or 0.0 for r in points]
    if panels.path is not None:
        axes.plot(xs, ys, "-", color=colour, linewidth=1.2, alpha=0.75, zorder=2)
    _draw_intervals(axes, points, panels, colour)
    for inside in (colour, PAPER):
        marked = [r for r in points if (r in alike) == (inside == colour)]
        if marked:
            where_, height = [panels.x(r) for r in marked], [panels.y.value(r) for r in marked]
            style = {"color": colour, "markerfacecolor": inside, "markersize": 5, "clip_on": False, "zorder": 4}
            (marks,) = axes.plot(where_, height, marker, **style)
            marks.set_gid(f"marks:{','.join(r.job_id for r in marked)}")
            marks.set_in_layout(False)
    if panels.tradeoff and panels.path is not None and len(points) <= 12:
        for row, x, y in zip(points, xs, ys, strict=True):
            text = value_label(row.settings.get(panels.path.key))
            axes.annotate(
                *(text, (x, y)),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
                color=INK,
                alpha=0.8,
                parse_math=False,
            )
    return axes.plot(
        [], [], "-" if panels.path is not None else "", marker=marker, color=colour, markersize=5, linewidth=1.2
    )[0]


def _look(row: Row, styled: Sequence[Axis], styles: Sequence[tuple[Any, ...]]) -> tuple[str, str]:
    """Colour and shape: the first axis has the colour, the same one in every figure, and the others the shape."""
    place = styles.index(_key(row, styled))
    if not styled or len(styled[0].values) > len(COLOURS):
        return COLOURS[place % len(COLOURS)], MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]
    first = styled[0].values.index(row.settings.get(styled[0].key))
    if len(styled) == 1:
        return COLOURS[first], MARKERS[first]
    others = list(dict.fromkeys(key[1:] for key in styles))
    return COLOURS[first], MARKERS[others.index(_key(row, styled)[1:]) % len(MARKERS)]


def _draw_intervals(axes: Any, rows: Sequence[Row], panels: Panels, colour: str) -> None:
    style = {"colors": colour, "linewidth": 0.8, "alpha": 0.35, "zorder": 1}
    drawn = []
    found = [(panels.x(r), i) for r in rows if (i := panels.y.interval(r)) is not None]
    if found:
        drawn.append(axes.vlines([x for x, _ in found], [i.low for _, i in found], [i.high for _, i in found], **style))
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


def _scale_x(axes: Any, found: Sequence[float], panels: Panels) -> None:
    """A logarithmic axis for settings and costs, with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if panels.tradeoff or not found or min(found) <= 0:
        return
    if panels.x is SECONDS.value and max(found) < 6 * min(found):
        return  # too narrow for a logarithmic axis to have numbers on it
    axes.set_xscale("log")
    different = sorted(set(found))
    if panels.x is not SECONDS.value and len(different) <= 8:  # the values that were run, not powers of ten
        axes.set_xticks(different, [f"{value:g}" for value in different])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, handles: dict[int, Any], styles: Sequence[tuple[Any, ...]], title: str) -> None:
    places = sorted(handles)
    labels = [", ".join(value_label(v) for v in styles[place])[:40] for place in places]
    legend = figure.legend(
        [handles[place] for place in places],
        labels,
        title=title,
        loc="outside right upper",
        frameon=False,
        fontsize=8,
        title_fontsize=8,
    )
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_color(INK)
        text.set_parse_math(False)  # a prompt with two dollar signs is no formula


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
            figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()
