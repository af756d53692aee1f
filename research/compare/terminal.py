"""A comparison in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from research.compare.outcome import BETTER, WORSE, Comparison, Outcome
from research.compare.write import front_lines, outcome_cells, outcome_header, shown, side_table, tags, why_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHOWN_AT_MOST = 120
PIPE_WIDTH = 220
_STYLES = {BETTER: "bold green", WORSE: "red"}


def show(found: Comparison, console: Console | None = None) -> None:
    """Prints the sides, the pairs, the fronts and the notes; as wide as it needs in a pipe."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=PIPE_WIDTH)
    header, rows = side_table(found)
    console.print(_table(header, rows))
    lines, names = shown(found), tags(found)
    first = lines[:SHOWN_AT_MOST]
    one_pair = len({(o.a, o.b) for o in found.outcomes}) == 1
    if one_pair:
        console.print(Text(f"{first[0].b} against {first[0].a}", style="bold"), soft_wrap=True)
    cells = [outcome_cells(o, names)[one_pair:] for o in first]
    console.print(_table(outcome_header()[one_pair:], cells, first))
    if len(lines) > len(first):
        console.print(f"… and {len(lines) - len(first)} more lines with --csv or --json", style="dim")
    sure = {o.metric for o in found.outcomes if o.p is not None}  # fronts of other metrics are in the files
    fronts = [f for f in found.fronts if f.metric in sure] or found.fronts
    for line in (*front_lines(fronts, names), *why_lines(found)):
        console.print(Text(line), soft_wrap=True)
    for line in found.notes:
        console.print(Text(line, style="dim"), soft_wrap=True)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], outcomes: Sequence[Outcome] = ()) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for place, name in enumerate(header):
        wordy = place == 0 or name in ("metric", "verdict", "to settle it")
        table.add_column(Text(name), justify="left" if wordy else "right", overflow="fold")
    for place, row in enumerate(rows):
        styles = [""] * len(row)
        if outcomes:
            styles[list(header).index("verdict")] = _STYLES.get(outcomes[place].verdict, "")
        # Text and not str: prompts with [brackets] are no markup
        table.add_row(*(Text(cell, style=style) for cell, style in zip(row, styles, strict=True)))
    return table
