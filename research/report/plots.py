"""The figures of a sweep: what more steps, more guidance and more time do to the scores."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.files import write_atomic
from research.report.axes import Axis, value_label
from research.report.measures import SECONDS, Measure, quality
from research.report.rows import Row, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers, without its yellow, which is lost on white
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FACETS_AT_MOST = 4
PANEL = (3.5, 2.9)  # inches
INK, GRID = "#1c1b19", "#d9d6cf"
DARK = {INK: "#e8e6e1", GRID: "#45433f"}

Value = Callable[[Row], Any]


@dataclass(frozen=True)
class Plot:
    """A figure: the file it was written to, and the same as SVG for light and dark pages."""

    name: str
    caption: str
    file: Path
    svg: dict[str, str]


@dataclass(frozen=True)
class Panels:
    """What is drawn: `y` against `x`, a colour for each value of one axis, a panel for each of another."""

    name: str
    caption: str
    x: Value
    x_label: str
    y: Measure
    path: Axis | None  # points are joined along this axis, all others being equal
    facet: Axis | None
    tradeoff: bool = False  # two scores: values of the path are written in, and each panel has its own scales


def draw_plots(sweep: Sweep, directory: Path) -> list[Plot]:
    """Writes ``<name>.png`` for every figure that the sweep has the numbers for; older ones are removed."""
    for stale in directory.glob("*.png"):
        stale.unlink()
    plots = []
    for panels in _figures(sweep):
        file = directory / f"{panels.name}.png"
        figure = _draw(sweep, panels)
        write_atomic(file, _save(figure, "png"))
        figure.set_layout_engine("none")  # laid out once is enough
        light = dark = _save(figure, "svg").decode()
        for colour, other in DARK.items():
            dark = dark.replace(colour, other)
        svg = {"light": light, "dark": dark}
        plots.append(Plot(panels.name, panels.caption, file, svg))
    return plots


def _figures(sweep: Sweep) -> list[Panels]:
    rows = sweep.done
    axes = {axis.key: axis for axis in sweep.axes}
    steps, scale = axes.get("steps"), axes.get("guidance.scale")
    scores = {m.key: m for m in quality(rows)}
    if not scores:
        return []
    first = next(iter(scores.values()))
    fid, clip = scores.get("fid", first), scores.get("clip_score", first)
    found: list[Panels] = []
    if steps is not None and steps.numeric:
        caption = f"{fid.label} against the number of steps."
        found.append(Panels(f"{fid.key}_vs_steps", caption, _setting(steps), "steps", fid, steps, scale))
    if scale is not None and scale.numeric:
        caption = f"{clip.label} against guidance scale."
        found.append(
            Panels(f"{clip.key}_vs_guidance", caption, _setting(scale), scale.label, clip, scale, steps)
        )
    if clip is not fid:
        path = scale or steps or (sweep.axes[-1] if sweep.axes else None)
        caption = f"{fid.label} against {clip.label}: best is the lower right, close to real images and to the prompts."
        if path is not None:
            caption += f" Points are joined along {path.label}, whose values stand beside them."
        facet = steps if path is scale else None
        found.append(
            Panels(
                f"{fid.key}_vs_{clip.key}", caption, clip.value, clip.label, fid, path, facet, tradeoff=True
            )
        )
    caption = f"{fid.label} against seconds of sampling an image, without loading and scoring."
    found.append(
        Panels(f"{fid.key}_vs_seconds", caption, SECONDS.value, "seconds an image", fid, steps, scale)
    )
    return [p for p in found if _points(rows, p) >= 2]


def _setting(axis: Axis) -> Value:
    return lambda row: row.settings.get(axis.key)


def _points(rows: Sequence[Row], panels: Panels) -> int:
    return sum(panels.x(r) is not None and panels.y.value(r) is not None for r in rows)


def _draw(sweep: Sweep, panels: Panels) -> Figure:
    from matplotlib.figure import Figure

    facet = panels.facet if panels.facet is not None and len(panels.facet.values) <= FACETS_AT_MOST else None
    used = [axis for axis in (panels.path, facet) if axis is not None]
    hues = [axis for axis in sweep.axes if axis not in used]
    series = list(dict.fromkeys(_key(row, hues) for row in sweep.done))
    values = facet.values if facet is not None else (None,)
    figure = Figure(figsize=(PANEL[0] * max(len(values), 1.3), PANEL[1] + 0.5), layout="constrained")
    figure.patch.set_alpha(0.0)
    shared = not panels.tradeoff
    grid_of_axes = figure.subplots(1, len(values), sharex=shared, sharey=shared, squeeze=False)[0]
    for axes, value in zip(grid_of_axes, values, strict=True):
        rows = [r for r in sweep.done if facet is None or r.settings.get(facet.key) == value]
        for i, key in enumerate(series):
            _draw_line(axes, [r for r in rows if _key(r, hues) == key], panels, i)
        _style(axes)
        if facet is not None:
            axes.set_title(f"{facet.label} {value_label(value)}", fontsize=9, color=INK)
        axes.set_xlabel(panels.x_label, fontsize=9, color=INK)
        _scale_x(axes, [x for r in sweep.done if (x := panels.x(r)) is not None], panels)
    arrow = {1: " ↑", -1: " ↓", 0: ""}[panels.y.better]
    grid_of_axes[0].set_ylabel(panels.y.label + arrow, fontsize=9, color=INK)
    if len(series) > 1 and len(series) <= 24:
        title = ", ".join(axis.label for axis in hues)
        _legend(figure, grid_of_axes[0], series, title)
    return figure


def _draw_line(axes: Any, rows: Sequence[Row], panels: Panels, place: int) -> None:
    points = [
        (r, x, y) for r in rows if (x := panels.x(r)) is not None and (y := panels.y.value(r)) is not None
    ]
    if panels.path is not None:
        key = panels.path.key
        points.sort(key=lambda p: panels.path.values.index(p[0].settings.get(key)))  # type: ignore[union-attr]
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place // len(COLOURS) % len(MARKERS)]
    xs, ys = [p[1] for p in points], [p[2] for p in points]
    style = "-" if panels.path is not None else ""
    axes.plot(
        xs,
        ys,
        style,
        marker=marker,
        color=colour,
        markersize=4.5,
        linewidth=1.3,
        label=str(place),
        clip_on=False,
    )
    errors = [panels.y.error(p[0]) for p in points]
    if points and all(e is not None for e in errors):
        axes.errorbar(xs, ys, yerr=errors, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.6)
    if panels.tradeoff and panels.path is not None and len(points) <= 12:
        for row, x, y in points:
            text = value_label(row.settings.get(panels.path.key))
            axes.annotate(
                text, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7, color=INK, alpha=0.8
            )


def _scale_x(axes: Any, found: Sequence[float], panels: Panels) -> None:
    """A logarithmic axis for settings and seconds, with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if panels.tradeoff or not found or min(found) <= 0:
        return
    axes.set_xscale("log")
    different = sorted(set(found))
    if panels.x is not SECONDS.value and len(different) <= 8:  # the values that were run, not powers of ten
        axes.set_xticks(different, [f"{value:g}" for value in different])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _style(axes: Any) -> None:
    axes.patch.set_alpha(0.0)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    axes.tick_params(colors=INK, labelsize=8, length=0)


def _legend(figure: Figure, axes: Any, series: Sequence[tuple[Any, ...]], title: str) -> None:
    handles = axes.get_legend_handles_labels()[0]
    labels = [", ".join(value_label(v) for v in key)[:40] for key in series]
    legend = figure.legend(
        handles[: len(labels)],
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


def _key(row: Row, axes: Sequence[Axis]) -> tuple[Any, ...]:
    return tuple(row.settings.get(axis.key) for axis in axes)


def _save(figure: Figure, kind: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # a fixed salt and no date: the same sweep gives the same bytes
    settings: Any = {"svg.hashsalt": "research", "svg.fonttype": "path"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a prompt in a script the font lacks
        if kind == "svg":
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        else:
            figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()
