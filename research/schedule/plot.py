"""The figure of schedules side by side: levels over training time and over steps, and where each scheduler's steps are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from research import drawing
from research.drawing import INK, plain_frame
from research.schedule.curves import Curve, Level
from research.schedule.points import Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKED_AT_MOST = 3  # schedulers whose points are marked on the training curve: more hide one another
Quantity = tuple[str, Callable[[Level], float], str]

QUANTITIES: tuple[Quantity, ...] = (
    ("alphas_cumprod", lambda level: level.alphas_cumprod, "linear"),
    ("sigma", lambda level: level.sigma, "log"),
    ("log-SNR", lambda level: level.log_snr, "linear"),
)


def schedule_figure(series: Sequence[Series]) -> Figure:
    """Three quantities in rows; in columns training time, with the curve of the model, and the steps of each scheduler.

    Below them, a row a scheduler shows on the axis of log-SNR, where schedulers and step counts compare, which levels its
    model is evaluated at.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = [one for one in series if one.points and not math.isnan(one.points[0].level.log_snr)]
    strip = 0.5 + 0.24 * max(len(drawn), 1)
    rows = -(-len(drawn) // 3)  # of the legend, about
    height = 3 * 2.3 + strip + 0.25 * rows + 0.5
    figure = Figure(figsize=(10.0, height), layout="constrained")
    grid = figure.add_gridspec(4, 2, height_ratios=[2.3, 2.3, 2.3, strip])
    curves = _curves(drawn)
    share = len({one.steps for one in drawn}) > 1
    for row, (title, value, scale) in enumerate(QUANTITIES):
        left = figure.add_subplot(grid[row, 0])
        right = figure.add_subplot(grid[row, 1], sharey=left)
        _training(left, curves, drawn, value)
        for place, one in enumerate(drawn):
            # those below are broader, so that the ones that coincide are seen
            _steps(right, one, place, value, share, (len(drawn) - 1 - place) * min(0.8, 2.4 / len(drawn)))
        for axes in (left, right):
            plain_frame(axes)
            if scale == "log":
                axes.set_yscale("log")
        right.tick_params(labelleft=False)
        flow = ", flow time of flows" if title == "sigma" and any(one.flow for one in drawn) else ""
        left.set_ylabel(title + flow, fontsize=9, color=INK)
        if row == 2:
            left.set_xlabel("timestep the model is told", fontsize=9, color=INK)
            right.set_xlabel("share of the steps" if share else "step", fontsize=9, color=INK)
        if not share:
            right.xaxis.set_major_locator(MaxNLocator(integer=True))
        if row == 0:
            if len(curves) > 1:
                left.legend(frameon=False, fontsize=7.5, labelcolor=INK)
            left.set_title("over training time", fontsize=10, color=INK)
            right.set_title("over the steps", fontsize=10, color=INK)
    _strip(figure.add_subplot(grid[3, :]), drawn)
    _legend(figure, drawn)
    return figure


def look(place: int) -> dict[str, Any]:
    """Colour, line and marker of the n-th scheduler."""
    found = drawing.look(place)
    return {"color": found.colour, "linestyle": found.line, "marker": found.marker}


def shown(value: float) -> float:
    """A value as it can be drawn: what is infinite or beyond any axis leaves a gap."""
    return value if math.isfinite(value) and abs(value) < 1e6 else math.nan


def _curves(series: Sequence[Series]) -> list[tuple[Curve, list[int]]]:
    """The different training curves, with the places of the schedulers on each."""
    found: list[tuple[Curve, list[int]]] = []
    for place, one in enumerate(series):
        if one.curve is None:
            continue
        for curve, places in found:
            if curve == one.curve:
                places.append(place)
                break
        else:
            found.append((one.curve, [place]))
    return found


def _training(axes: Any, curves: Sequence[tuple[Curve, list[int]]], series: Sequence[Series], value: Any) -> None:
    for curve, places in curves:
        on_its_own = len(curves) > 1 and len(places) == 1
        colour = look(places[0])["color"] if on_its_own else "#7f7f7f"
        line = look(places[0])["linestyle"] if on_its_own else "-"
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        heights = [shown(value(level)) for level in curve.levels]
        axes.plot(
            curve.times,
            heights,
            color=colour,
            linestyle=line,
            linewidth=1.4,
            alpha=0.9,
            label=f"model of {_short(series[places[0]].label, 30)}{more}",
        )
    if len(series) <= _MARKED_AT_MOST:
        for place, one in enumerate(series):
            kind = look(place)
            axes.plot(
                [p.t for p in one.points if p.run],
                [shown(value(p.level)) for p in one.points if p.run],
                linestyle="",
                marker=kind["marker"],
                color=kind["color"],
                markersize=3.6,
                alpha=0.75,
            )


def _steps(axes: Any, one: Series, place: int, value: Any, share: bool, broader: float) -> None:
    evaluations: dict[int, int] = {}
    for p in one.points:
        evaluations[p.step] = evaluations.get(p.step, 0) + 1
    seen: dict[int, int] = {}
    xs, ys = [], []
    for p in one.points:
        x = p.step + seen.get(p.step, 0) / evaluations[p.step]  # a second evaluation stands between two steps
        seen[p.step] = seen.get(p.step, 0) + 1
        xs.append(x / one.steps if share else x)
        ys.append(shown(value(p.level)))
    kind, start = look(place), one.start
    width = 1.2 + broader
    size = 2.2 + width if len(one.points) <= 60 else 0.0
    if start:
        ends = slice(0, start + 1)
        axes.plot(xs[ends], ys[ends], color=kind["color"], linestyle=kind["linestyle"], linewidth=1.0, alpha=0.25)
        if start < len(xs):
            axes.axvline(xs[start], color=kind["color"], linewidth=0.9, linestyle=":")
    axes.plot(xs[start:], ys[start:], linewidth=width, markersize=size, alpha=0.8, markeredgewidth=0, **kind)


def _strip(axes: Any, series: Sequence[Series]) -> None:
    for place, one in enumerate(series):
        kind = look(place)
        for run, alpha in ((True, 0.95), (False, 0.2)):
            xs = [shown(p.level.log_snr) for p in one.points if p.run is run]
            heights = [place] * len(xs)
            axes.plot(xs, heights, linestyle="", marker="|", markersize=11, color=kind["color"], alpha=alpha)
    plain_frame(axes)
    axes.set_yticks(range(len(series)), [_short(one.label, 40) for one in series])
    axes.set_ylim(len(series) - 0.4, -0.6)
    axes.set_xlabel("log-SNR at which the model is evaluated (left: noise, right: picture)", fontsize=9, color=INK)


def _legend(figure: Figure, series: Sequence[Series]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linewidth=1.3, markersize=4.5, **look(place)) for place in range(len(series))]
    labels = [_short(_described(one), 80) for one in series]
    columns = max(1, min(4, 110 // (max(map(len, labels), default=0) + 8)))
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_color(INK)
        text.set_parse_math(False)


def _described(one: Series) -> str:
    strength = f", strength {one.strength:g}" if one.strength < 1.0 and "strength" not in one.label else ""
    steps = "" if " steps" in one.label else f", {one.steps} steps"
    return f"{one.label}{steps}{strength}"


def _short(label: str, most: int) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
