"""Colours, shapes, scales and the plain frame of the project's figures, drawn with matplotlib."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow and black, lost on white and among letters; then six that were searched for, each as
# far as can be (CIELAB) from all before it for the least favourable of normal, deuteranopic and protanopic sight: 17 at least
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    *("#7f0000", "#6666ff", "#662851", "#e5004c", "#003299", "#0000ff"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")  # a shape of its own beside each colour
LINES = ("-", "--", ":", "-.")
INK, GRID, PAPER = "#1c1b19", "#d9d6cf", "#fefefe"
FROM_LOG = 6  # times the smallest value: an axis of settings or costs that reaches so far is logarithmic
APART = 1.0  # points between two labels
FLAT = 1 / 4  # of an axis: where the middle half of values lies within less, outliers flatten it


@dataclass(frozen=True)
class Look:
    """How a line is told from the others."""

    colour: str
    marker: str
    line: str


def look(place: int) -> Look:
    """Of the n-th line: colours first, then lines, so that neighbours differ most. No two of the first 48 are alike."""
    turn, colour = divmod(place, len(COLOURS))
    return Look(COLOURS[colour], MARKERS[(colour + turn) % len(MARKERS)], LINES[turn % len(LINES)])


def looks(keys: Sequence[tuple[Hashable, ...]]) -> list[Look]:
    """Of lines that differ in several settings, `keys`, of which the first counts most.

    Up to twelve have a colour each, and those that share all but the first setting a shape and a way the line is drawn. Of more,
    the colour is that of the first setting.
    """
    firsts = list(dict.fromkeys(key[:1] for key in keys))
    others = list(dict.fromkeys(key[1:] for key in keys))
    if len(others) == 1 or len(firsts) > len(COLOURS):
        return [look(place) for place in range(len(keys))]
    each = len(firsts) * len(others) <= len(COLOURS)
    found = []
    for key in keys:
        first, other = firsts.index(key[:1]), others.index(key[1:])
        colour = COLOURS[other * len(firsts) + first if each else first]
        found.append(Look(colour, MARKERS[other % len(MARKERS)], LINES[other % len(LINES)]))
    return found


def said_better(label: str, better: int) -> str:
    """The name of an axis, with which end of it is better."""
    return label + {1: " (higher is better)", -1: " (lower is better)", 0: ""}[better]


def flattened(values: Sequence[float]) -> bool:
    """Whether outliers press the rest of some values together, and a logarithmic axis would help: all are above zero, and their
    middle half fills less than a quarter of the axis, and at least twice as much of a logarithmic one."""
    if len(values) < 4 or min(values) <= 0 or min(values) == max(values):
        return False
    share = _middle_half(values)
    return share < FLAT and _middle_half([math.log(value) for value in values]) >= 2 * share


def _middle_half(values: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / (max(values) - min(values))


def log_values(axis: Any) -> None:
    """A logarithmic axis (``axes.xaxis`` or ``axes.yaxis``) with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log", nonpositive="clip")
    low, high = sorted(axis.get_view_interval())
    subs = (1.0, 2.0, 5.0) if low <= 0 or high / low < 1000 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def value_ticks(axes: Axes, values: Sequence[float], *, log: bool, width: float = 190.0) -> None:
    """The values that were run as ticks of the x axis, as many as have room beside each other; the first and last always.

    Args:
        width: of the axis, in points.
    """
    from matplotlib.ticker import NullLocator

    different = sorted(set(values))
    if log:
        axes.set_xscale("log")
    places = [math.log(value) if log else value for value in different]
    span = (places[-1] - places[0]) or 1.0
    at = [(place - places[0]) / span * width for place in places]
    needs = [5.0 * len(f"{value:g}") + 4.0 for value in different]
    kept: list[int] = []
    for i in range(len(different)):
        free = not kept or at[i] - at[kept[-1]] >= (needs[i] + needs[kept[-1]]) / 2
        last = len(different) - 1
        if i == last or (free and (i == 0 or at[last] - at[i] >= (needs[i] + needs[last]) / 2)):
            kept.append(i)
    axes.set_xticks([different[i] for i in kept], [f"{different[i]:g}" for i in kept])
    axes.xaxis.set_minor_locator(NullLocator())


def place_labels(figure: Figure, labels: Sequence[Any], *, dpi: int) -> None:
    """Give each annotation of a point a place beside it where it covers none before; those that find none are not shown.

    Args:
        figure: laid out (`lay_out`) for good: points move in another layout, and labels with them.
        dpi: dots an inch of the picture that is saved. Labels are kept a point apart, as letters are a little wider or narrower
            at other dots an inch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    before, figure.dpi = figure.dpi, dpi
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    margin = APART * dpi / 72 / 2
    taken: list[Any] = []
    for label in labels:
        for x, y in ((4, 4), (-4, 4), (4, -4), (-4, -4)):
            label.set_position((x, y))
            label.set_horizontalalignment("left" if x > 0 else "right")
            label.set_verticalalignment("bottom" if y > 0 else "top")
            box = label.get_window_extent(renderer).padded(margin)
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
        else:
            label.set_visible(False)
    figure.dpi = before


def plain_frame(axes: Axes) -> None:
    """A grid behind what is drawn, no ticks, lines at the left and below alone, and the paper of whatever it stands on."""
    axes.patch.set_alpha(0.0)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    axes.tick_params(which="both", colors=INK, labelsize=8, length=0)


def lay_out(figure: Figure, *, dpi: int) -> None:
    """Let a figure's layout engine do its work and leave: `savefig`, which draws twice for one that stays, draws once.

    Args:
        figure: changed in place; one without an engine stays as it is.
        dpi: dots an inch of the picture that is saved; letters are measured in these.
    """
    engine = figure.get_layout_engine()
    if engine is not None:
        before, figure.dpi = figure.dpi, dpi
        engine.execute(figure)
        figure.set_layout_engine(None)
        figure.dpi = before


def png_bytes(figure: Figure, *, dpi: int) -> bytes:
    """The figure as PNG on white, for papers and slides."""
    buffer = io.BytesIO()
    lay_out(figure, dpi=dpi)
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()
