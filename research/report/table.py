"""The table of a sweep: in the terminal, and as ``results.csv``, one flat line a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from research.csv_text import csv_text
from research.files import write_atomic
from research.labels import value_label
from research.report.columns import measures
from research.report.times import out_of_line_notes, times_in_words
from research.results.axes import PREFERRED
from research.results.read import Row, Sweep

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SHOWN_AT_MOST = 120
PIPE_WIDTH = 200
# columns that a narrow terminal does without, in this order
_DISPENSABLE = ("total", "images", "images_per_second", "job")
_TIMINGS = ("load", "encode", "denoise", "decode", "metrics", "total")
_COUNTS = (
    "nfe",
    "score_evaluations",
    "decoder_calls",
    "gradient_evaluations",
    "n_images",
    "images_per_second",
    "peak_memory_bytes",
)
_TIMES = (
    *(
        "seconds_per_image",
        "seconds_per_image_low",
        "seconds_per_image_high",
        "seconds_per_image_n",
        "seconds_per_image_by",
    ),
    *("latency", "latency_low", "latency_high", "latency_n", "seconds_out_of_line"),
)
_TEXTS = ("device", "created", "weights_sha256", "error")


def print_table(sweep: Sweep, *, console: Console | None = None) -> None:
    """Prints a row a job with its varied settings, metrics and costs, then what failed and why.

    In a pipe the table takes the width it needs, up to 200 columns; in a terminal it keeps to the terminal's.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = console or Console()
    width = console.width if console.is_terminal else PIPE_WIDTH
    options = console.options.update(max_width=PIPE_WIDTH, width=PIPE_WIDTH)
    for left_out in range(len(_DISPENSABLE) + 1):
        table = _table(sweep, sweep.rows[:SHOWN_AT_MOST], set(_DISPENSABLE[:left_out]))
        if Measurement.get(console, options, table).maximum <= width:
            break
    if console.is_terminal:
        console.print(table)
    else:  # a pipe has no width of its own, and rich would squeeze the table into 80 columns
        Console(file=console.file, width=PIPE_WIDTH, force_terminal=False, force_jupyter=False).print(table)
    if len(sweep.rows) > SHOWN_AT_MOST:
        console.print(f"… and {len(sweep.rows) - SHOWN_AT_MOST} more in results.csv", style="dim")
    _print_problems(sweep, console)


def print_row(row: Row, *, console: Console | None = None) -> None:
    """Prints one job's numbers on a line, or why it failed."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    line = Text(row.job_id, style="dim").append("  ")
    if not row.done:
        line.append("failed: ", style="bold red").append(row.error or "no error was recorded", style="default")
    else:
        parts = [f"{m.label} {m.text(row)}" for m in measures([row]) if m.value(row) is not None]
        line.append("  ·  ".join([f"{row.n_images} image{'s' * (row.n_images != 1)}", *parts]), style="default")
    console.print(line, soft_wrap=True)


def _table(sweep: Sweep, rows: Sequence[Row], left_out: set[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = [
        m for m in measures(sweep.done) if m.key not in left_out and any(m.value(r) is not None for r in sweep.done)
    ]
    best = {m.key: m.best(sweep.done) for m in columns}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for axis in sweep.axes:
        justify: Literal["left", "right"] = "right" if axis.numeric else "left"
        table.add_column(Text(axis.label), justify=justify, no_wrap=True, overflow="ellipsis", max_width=40)
    for measure in columns:
        arrow = {1: " ↑", -1: " ↓", 0: ""}[measure.better]
        table.add_column(f"{measure.label}{arrow}", justify="right", no_wrap=True)
    table.add_column("" if "images" in left_out else "images", justify="right", no_wrap=True)
    if "job" not in left_out:
        table.add_column("job", style="dim", no_wrap=True)
    for row in rows:
        # Text and not str: prompts with [brackets] are no markup
        cells = [Text(value_label(row.settings.get(axis.key))) for axis in sweep.axes]
        for measure in columns:
            is_best = best[measure.key] is row
            cells.append(Text(measure.text(row) if row.done else "", style="bold green" if is_best else ""))
        count = "" if "images" in left_out else str(row.n_images)
        cells.append(Text(count) if row.done else Text("failed", style="bold red"))
        if "job" not in left_out:
            cells.append(Text(row.job_id[:10]))
        table.add_row(*cells)
    return table


def _print_problems(sweep: Sweep, console: Console) -> None:
    from rich.text import Text

    for row in sweep.failed:
        where = ", ".join(f"{axis.label} {value_label(row.settings.get(axis.key))}" for axis in sweep.axes)
        line = Text("failed ", style="bold red").append(row.job_id[:10], style="dim")
        line.append(f" {where}: " if where else ": ", style="default").append(row.error or "no error was recorded")
        console.print(line, soft_wrap=True)
    if times := times_in_words(sweep):
        console.print(Text(times, style="dim"))
    for note in out_of_line_notes(sweep):
        console.print(Text("! ", style="bold yellow").append(note, style="default"), soft_wrap=True)
    for changed in sweep.changed:
        console.print(Text(f"{changed} and left out here", style="default"), soft_wrap=True)
    for problem in sweep.damaged:
        console.print(Text("damaged ", style="bold yellow").append(problem, style="default"), soft_wrap=True)


def write_csv(sweep: Sweep, path: Path) -> None:
    """Writes job id and status, the varied settings, the usual settings, metrics, seconds, counts and provenance.

    Jobs made with an earlier version of a plug come last; where there are any, ``changed_since`` says it of each job.
    """
    rows = [*sweep.rows, *sweep.before]
    settings = [axis.key for axis in sweep.axes]
    settings += [k for k in (*PREFERRED, "seed") if k not in settings and any(k in r.settings for r in rows)]
    metrics = sorted({key for row in rows for key in row.metrics})
    timings = sorted(
        {key for row in rows for key in row.timings},
        key=lambda k: (_TIMINGS.index(k) if k in _TIMINGS else len(_TIMINGS), k),
    )
    header = [
        "job_id",
        "status",
        *settings,
        *metrics,
        *(f"seconds_{t}" for t in timings),
        *_COUNTS,
        *_TEXTS,
        "overrides",
        *_TIMES,
        *(["changed_since"] if sweep.before else []),
    ]
    lines: list[list[Any]] = [header]
    for row in rows:
        values = _values(row, settings, metrics, timings)
        lines.append([_cell(v) for v in [*values, *([str(row in sweep.before).lower()] if sweep.before else [])]])
    write_atomic(path, csv_text(lines))


def _values(row: Row, settings: list[str], metrics: list[str], timings: list[str]) -> list[Any]:
    return [
        row.job_id,
        row.result.status,
        *(row.settings.get(k) for k in settings),
        *(row.metrics.get(k) for k in metrics),
        *(row.timings.get(k) for k in timings),
        *(getattr(row.result, k) for k in _COUNTS),
        *(getattr(row.result, k) for k in _TEXTS[:-1]),
        row.error,
        tuple(row.result.overrides),
        *_times(row),
    ]


def _times(row: Row) -> list[Any]:
    seconds, latency = row.timing.seconds, row.timing.latency
    return [
        *((seconds.median, seconds.low, seconds.high, seconds.n, row.timing.by) if seconds else [None] * 5),
        *((latency.median, latency.low, latency.high, latency.n) if latency else [None] * 4),
        row.out_of_line,
    ]


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.7g}"  # what comes after is noise; result.json keeps it
    return " ".join(str(v) for v in value) if isinstance(value, tuple) else value
