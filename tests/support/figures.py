"""How many figures of a report are drawn: each takes about a third of a second, and the sweeps that tests run have up to 16."""

from __future__ import annotations

from research.report import draw, plots


def draw_at_most(count: int | None) -> None:
    """Of every report that this process builds from now on, the first so many figures are drawn; None is all."""
    draw.figures = lambda sweep: plots.figures(sweep)[:count]
