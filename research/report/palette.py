"""Colours and shapes of the figures."""

from __future__ import annotations

# Okabe and Ito's palette, told apart by colour-blind readers, without its yellow, which is lost on white
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # a shape of its own beside each colour
INK, GRID, PAPER = "#1c1b19", "#d9d6cf", "#fefefe"
