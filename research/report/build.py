"""The report of a sweep: table, plots, contact sheet and page in one call, and whether they are still those of its jobs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.jobs.record import SWEEP
from research.report.table import print_table, write_csv
from research.results.read import Sweep, over_unit, read_sweep
from research.results.scales import Margin
from research.statistics import read_unit

if TYPE_CHECKING:
    from rich.console import Console

    from research.report.draw import Plot
    from research.report.thumbs import Encoded, Thumb


@dataclass(frozen=True)
class ReportPaths:
    """What was written; the contact sheet is None and the plots are fewer where there is nothing to show."""

    results_csv: Path
    contact_sheet: Path | None
    plots: list[Path]
    report_html: Path


@dataclass(frozen=True)
class Parts:
    """What the page is made of, and the files beside it."""

    results_csv: Path
    contact_sheet: Path | None
    plots: list[Plot]
    thumbs: Encoded


def build_report(
    sweep_dir: Path,
    *,
    console: Console | None = None,
    margins: Mapping[str, Margin] | None = None,
    figures: Sequence[tuple[str, str]] = (),
    unit: str | None = None,
    budget: Mapping[str, float | None] | None = None,
) -> ReportPaths:
    """Prints the table of a sweep and writes ``results.csv``, ``contact_sheet.png``, ``plots/*.png``, ``report.html``.

    Reads the jobs' files only, so it can be called at any time, also while the sweep runs or on another machine.

    Args:
        console: where the table goes.
        margins: of metrics (`research.results.scales`), in place of those that the sweep was run with.
        unit: ``prompts``, ``seeds`` or ``auto`` (`research.statistics.unit_of`), likewise.
        budget: what a setting may cost to be advised (`research.results.budget.Budget`), by ``nfe``, ``seconds`` and ``latency``.
        figures: metrics with the keys of axes, ``("kid", "steps")``, to be drawn besides what is drawn by itself.

    Raises:
        UserError: the folder does not exist or holds no job with a record, or the sweep has no such metric or axis.
    """
    from research.report.page import write_page

    sweep = replace(judged_by(read_sweep(Path(sweep_dir)), margins, unit, budget), figures=figures)
    parts = write_parts(sweep, console=console)
    page = sweep.directory / "report.html"
    write_page(sweep, page, plots=parts.plots, thumbs=parts.thumbs)
    return ReportPaths(parts.results_csv, parts.contact_sheet, [p.file for p in parts.plots], page)


def judged_by(
    sweep: Sweep,
    margins: Mapping[str, Margin] | None = None,
    unit: str | None = None,
    budget: Mapping[str, float | None] | None = None,
) -> Sweep:
    """A sweep judged by other margins, over another unit, and inside another budget, where they say one."""
    if budget:
        sweep = replace(sweep, budget=replace(sweep.budget, **budget))
    if margins:
        sweep = replace(sweep, margins={**sweep.margins, **margins}, derived={})
    return sweep if unit is None else over_unit(sweep, read_unit("--unit", unit))


def write_parts(sweep: Sweep, known: dict[Any, Thumb] | None = None, *, console: Console | None = None) -> Parts:
    """Prints the table and writes everything but the page.

    Args:
        known: thumbnails of an earlier call, see `encode_thumbs`.
    """
    from rich.console import Console

    from research.report.contact_sheet import write_contact_sheet
    from research.report.draw import draw_plots
    from research.report.thumbs import choose_images, encode_thumbs

    print_table(sweep, console=console or Console())
    results = sweep.directory / "results.csv"
    write_csv(sweep, results)
    sheet = write_contact_sheet(sweep, sweep.directory / "contact_sheet.png")
    plots = draw_plots(sweep, sweep.directory / "plots")
    return Parts(results, sheet, plots, encode_thumbs(sweep.done, choose_images(sweep.done), known))


def current_report(sweep_dir: Path) -> ReportPaths | None:
    """The report of a sweep if it is newer than every job's record, and than what was last asked for, and shows all of them;
    otherwise None."""
    results, page = sweep_dir / "results.csv", sweep_dir / "report.html"
    sheet = sweep_dir / "contact_sheet.png"
    try:
        built = min(results.stat().st_mtime_ns, page.stat().st_mtime_ns)
        with results.open(encoding="utf-8", newline="") as file:
            shown = {row["job_id"] for row in csv.DictReader(file)}
        records = {file.parent.name: file.stat().st_mtime_ns for file in sweep_dir.glob("*/result.json")}
    except (OSError, KeyError, ValueError):
        return None
    asked = sweep_dir / SWEEP  # decides which versions of a plug are shown, and by which margins
    newest = max([*records.values(), asked.stat().st_mtime_ns if asked.is_file() else 0], default=0)
    if shown != records.keys() or newest >= built:
        return None
    return ReportPaths(results, sheet if sheet.is_file() else None, sorted((sweep_dir / "plots").glob("*.png")), page)
