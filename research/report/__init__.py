"""Tables, plots, contact sheets and the HTML page over a sweep's job folders. Reads files only; never imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.report.build import ReportPaths as ReportPaths
    from research.report.build import build_report as build_report
    from research.report.table import print_row as print_row
    from research.report.table import print_table as print_table
    from research.results.read import Row as Row
    from research.results.read import Sweep as Sweep
    from research.results.read import read_row as read_row
    from research.results.read import read_sweep as read_sweep

_LAZY = {
    "ReportPaths": "research.report.build",
    "build_report": "research.report.build",
    "Row": "research.results.read",
    "Sweep": "research.results.read",
    "read_row": "research.results.read",
    "read_sweep": "research.results.read",
    "print_row": "research.report.table",
    "print_table": "research.report.table",
}

__all__ = ["ReportPaths", "Row", "Sweep", "build_report", "print_row", "print_table", "read_row", "read_sweep"]


__getattr__ = lazy_names(__name__, _LAZY)
