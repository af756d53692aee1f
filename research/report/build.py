"""Everything that is made of a sweep, in one call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from research.report.csv_file import write_csv
from research.report.rows import read_sweep
from research.report.table import print_table

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class ReportPaths:
    """What was written; the contact sheet is None and the plots are fewer where there is nothing to show."""

    results_csv: Path
    contact_sheet: Path | None
    plots: list[Path]
    report_html: Path


def build_report(sweep_dir: Path, *, console: Console | None = None) -> ReportPaths:
    """Prints the table of a sweep and writes ``results.csv``, ``contact_sheet.png``, ``plots/*.png``, ``report.html``.

    Reads the jobs' files only, so it can be called at any time, also while the sweep runs or on another machine.

    Raises:
        UserError: the folder does not exist or holds no job with a record.
    """
    from rich.console import Console

    from research.report.html import write_html
    from research.report.plots import draw_plots
    from research.report.sheet import write_contact_sheet
    from research.report.thumbs import choose_images, encode_thumbs

    sweep_dir = Path(sweep_dir)
    sweep = read_sweep(sweep_dir)
    print_table(sweep, console=console or Console())
    results = sweep_dir / "results.csv"
    write_csv(sweep, results)
    sheet = write_contact_sheet(sweep, sweep_dir / "contact_sheet.png")
    plots = draw_plots(sweep, sweep_dir / "plots")
    page = sweep_dir / "report.html"
    write_html(sweep, page, plots=plots, thumbs=encode_thumbs(sweep.done, choose_images(sweep.done)))
    return ReportPaths(results, sheet, [p.file for p in plots], page)
