"""Colours, shapes and the plain frame of the project's figures, drawn with matplotlib."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by colour-blind readers, without its yellow, which is lost on white
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # a shape of its own beside each colour
LINES = ("-", "--", ":", "-.")
INK, GRID, PAPER = "#1c1b19", "#d9d6cf", "#fefefe"


def plain_frame(axes: Axes) -> None:
    """A grid behind what is drawn, no ticks, lines at the left and below alone, and the paper of whatever it stands on."""
    axes.patch.set_alpha(0.0)
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
    axes.tick_params(which="both", colors=INK, labelsize=8, length=0)


def png_bytes(figure: Figure, *, dpi: int) -> bytes:
    """The figure as PNG on white, for papers and slides."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()
