"""A comparison in the terminal, and as JSON, Markdown, CSV and LaTeX."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from research.compare.outcome import BETTER, NO_INTERVAL, TOO_FEW, WORSE, Comparison, Front, Outcome
from research.csv_text import csv_text
from research.directions import label
from research.labels import number

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FORMAT = 1
SHOWN_AT_MOST = 120  # lines in the terminal
PIPE_WIDTH = 220
_STYLES = {BETTER: "bold green", WORSE: "red"}
_LONG = 16
_COSTS = {"nfe": "NFE", "seconds_per_image": "s / image"}
_ARROWS = {1: " ↑", -1: " ↓", 0: ""}
_CSV = (
    *("a", "b", "metric", "better", "value_a", "value_b", "difference", "low", "high", "p", "p_holm", "verdict"),
    *("n", "unit", "paired", "method", "needed", "more", "resolvable", "provenance", "note"),
)


def to_json(found: Comparison) -> str:
    """Everything, full digits; what is not known is null."""
    request = {k: [str(p) for p in v] if k == "repeats" else v for k, v in asdict(found.request).items()}
    told = {
        "format": FORMAT,
        "request": request,
        "sides": [asdict(side) for side in found.sides],
        "outcomes": [asdict(o) for o in found.outcomes],
        "pareto": [asdict(f) for f in found.fronts],
        "notes": list(found.notes),
    }
    return json.dumps(_plain(told), indent=1, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_csv(found: Comparison) -> str:
    """A line for each pair and metric; fields beginning as a formula would get a quote before them."""
    rows: list[Sequence[Any]] = [_CSV]
    for o in found.outcomes:
        flat = {**asdict(o), **(asdict(o.settle) if o.settle is not None else {})}
        rows.append([_cell(flat.get(key)) for key in _CSV])
    return csv_text(rows)


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else value


def tags(found: Comparison) -> dict[str, str]:
    """What sides are called in tables: their names, or numbers where there are several long ones."""
    names = [s.name for s in found.sides]
    if len(names) < 3 or max(len(name) for name in names) <= _LONG:
        return {name: name for name in names}
    return {name: str(place) for place, name in enumerate(names, 1)}


def shown(found: Comparison) -> list[Outcome]:
    """The lines of the table of pairs: with many pairs without those that the table of sides says as well."""
    if len({(o.a, o.b) for o in found.outcomes}) == 1:
        return list(found.outcomes)
    asked = found.request.metrics
    return [o for o in found.outcomes if o.metric in asked or o.p is not None] or list(found.outcomes)


def outcome_header() -> list[str]:
    return ["b against a", "metric", "a", "b", "difference", "p", "verdict", "n", "to settle it"]


def outcome_cells(o: Outcome, names: Mapping[str, str]) -> list[str]:
    """A line of the table of pairs."""
    return [
        f"{names[o.b]} against {names[o.a]}",
        f"{o.label}{_ARROWS[o.better]}",
        _signed(o.value_a),
        _signed(o.value_b),
        difference_text(o),
        p_text(o),
        verdict_text(o),
        f"{o.n} {o.unit}" if o.n and o.p is not None else "",
        settle_text(o),
    ]


def difference_text(o: Outcome) -> str:
    if o.difference is None:
        return "–"
    sign = "+" if o.difference > 0 else "−" if o.difference < 0 else ""
    text = f"{sign}{number(abs(o.difference))}"
    if o.low is None or o.high is None or o.p is None:
        return text
    return f"{text} [{_signed(o.low)}, {_signed(o.high)}]"


def p_text(o: Outcome) -> str:
    return "" if o.p_holm is None else "<0.001" if o.p_holm < 0.001 else f"{o.p_holm:.3f}"


def verdict_text(o: Outcome) -> str:
    return f"{o.verdict}{' †' if o.provenance else ''}{'' if o.paired or o.p is None else ' (unpaired)'}"


def settle_text(o: Outcome) -> str:
    if o.settle is None:
        return ""
    if o.verdict == TOO_FEW:
        return f"+{o.settle.more} {o.unit} at least"
    tells = f"tells {number(o.settle.resolvable, 2)} apart"
    return f"+{o.settle.more} {o.unit}; {tells}" if o.settle.more is not None else f"over 10 million; {tells}"


def _signed(value: float | None) -> str:
    """A number with a minus sign; the hyphen of an exponent stays."""
    return f"−{number(-value)}" if value is not None and value < 0 else number(value)


def side_table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Sides with their costs and numbers; a dot marks those on the front of a number against model evaluations."""
    names, metrics = tags(found), list(dict.fromkeys(m for s in found.sides for m in s.values))
    better = {o.metric: o.better for o in found.outcomes}
    on = {(f.metric, p.side) for f in found.fronts if f.cost == "nfe" for p in f.points if p.on_front}
    alone = any(s.latency is not None for s in found.sides)
    scaled = found.request.effective_scale
    header = [
        "side",
        "jobs",
        "images",
        "NFE",
        "s / image",
        "images / s",
        *(["latency s"] if alone else []),
        *(["effective scale", "beside CFG"] if scaled else []),
        *(f"{label(m)}{_ARROWS[better.get(m, 0)]}" for m in metrics),
    ]
    rows = []
    for s in found.sides:
        name = s.name if names[s.name] == s.name else f"{names[s.name]}: {s.name}"
        numbers = [_signed(s.values.get(m)) + (" •" if (m, s.name) in on else "") for m in metrics]
        out = " !" if s.out_of_line else ""
        times = [s.seconds, s.seconds.inverse if s.seconds is not None else None, *([s.latency] if alone else [])]
        shown = [number(None) if spread is None else f"{spread}{out}" for spread in times]
        scales = [number(s.effective_scale), number(s.beside_cfg)] if scaled else []
        rows.append([name, str(len(s.jobs)), str(s.n_images), number(s.nfe), *shown, *scales, *numbers])
    return header, rows


def front_lines(fronts: Sequence[Front], names: Mapping[str, str]) -> list[str]:
    """A sentence for each front."""
    lines = []
    for f in fronts:
        on = ", ".join(f"{names[p.side]} ({_signed(p.value)} at {number(p.cost)})" for p in f.points if p.on_front)
        off = [p for p in f.points if not p.on_front]
        line = f"{label(f.metric)} against {_COSTS[f.cost]}: on the front {on}."
        if open_ := [names[p.side] for p in off if p.told_apart is False]:
            line += f" Off it, but not told apart from what beats them: {', '.join(open_)}."
        if unknown := [names[p.side] for p in off if p.told_apart is None]:
            line += f" Off it by face value: {', '.join(unknown)}."
        lines.append(line)
    return lines


def why_lines(found: Comparison) -> list[str]:
    """Why there is no interval, and what intervals do not cover."""
    lines: dict[str, None] = {}
    for o in found.outcomes:
        if o.note and (o.verdict == NO_INTERVAL or o.p is not None):
            lines[f"{o.label}: {o.note}."] = None
        if o.provenance and found.request.force:
            lines[f"† {o.label} of {o.a} and {o.b}: {o.provenance}."] = None
    return [line.replace("..", ".") for line in lines]


def to_markdown(found: Comparison) -> str:
    """Two tables and what has to be known of them."""
    header, rows = side_table(found)
    parts = [
        _markdown(header, rows),
        _markdown(outcome_header(), [outcome_cells(o, tags(found)) for o in shown(found)]),
    ]
    remarks = [*front_lines(found.fronts, tags(found)), *why_lines(found), *found.notes]
    return "\n".join([*parts, *(f"- {_escape_markdown(line)}" for line in remarks)]) + "\n"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_escape_markdown(cell) for cell in line) + " |" for line in lines) + "\n"


def _escape_markdown(text: str) -> str:
    return re.sub(r"([|<>*_`\\])", r"\\\1", text.replace("\n", " "))


def to_tex(found: Comparison) -> str:
    """Two tables with booktabs' rules, for a paper; notes as comments."""
    header, rows = side_table(found)
    remarks = [*front_lines(found.fronts, tags(found)), *why_lines(found), *found.notes]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            *(f"% {' '.join(line.split())}" for line in remarks),
            _tabular(header, rows),
            _tabular(outcome_header(), [outcome_cells(o, tags(found)) for o in shown(found)]),
        ]
    )


def _tabular(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", "\\toprule"]
    lines.append(" & ".join(_escape_tex(cell) for cell in header) + " \\\\")
    lines.append("\\midrule")
    lines += [" & ".join(_escape_tex(cell) for cell in row) + " \\\\" for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "↑": "$\\uparrow$",
    "↓": "$\\downarrow$",
    "−": "$-$",
    "–": "--",
    "†": "\\dag{}",
    "•": "$\\bullet$",
    "∞": "$\\infty$",
}


def _escape_tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text.replace("\n", " "))


def to_terminal(found: Comparison, console: Console | None = None) -> None:
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
