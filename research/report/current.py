"""Whether a sweep's report is still that of its jobs."""

from __future__ import annotations

import csv
from pathlib import Path

from research.report.build import ReportPaths

_RESULT = "result.json"


def current_report(sweep_dir: Path) -> ReportPaths | None:
    """The report of a sweep if it is newer than every job's record and shows all of them; otherwise None."""
    results, page = sweep_dir / "results.csv", sweep_dir / "report.html"
    sheet = sweep_dir / "contact_sheet.png"
    try:
        built = min(results.stat().st_mtime_ns, page.stat().st_mtime_ns)
        with results.open(encoding="utf-8", newline="") as file:
            shown = {row["job_id"] for row in csv.DictReader(file)}
        records = {file.parent.name: file.stat().st_mtime_ns for file in sweep_dir.glob(f"*/{_RESULT}")}
    except (OSError, KeyError, ValueError):
        return None
    if shown != records.keys() or max(records.values(), default=0) >= built:
        return None
    return ReportPaths(results, sheet if sheet.is_file() else None, sorted((sweep_dir / "plots").glob("*.png")), page)
