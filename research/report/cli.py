"""The command ``research-report``: builds table, plots, contact sheet and page of a sweep again from its files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from research.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on stderr that says what is wrong with the folder."""
    parser = argparse.ArgumentParser(
        prog="research-report",
        description="(Re)build results.csv, plots, contact sheet and report.html of a sweep.",
    )
    parser.add_argument("sweep_dir", type=Path, metavar="DIR", help="a sweep's folder: outputs/<sweep_name>")
    directory: Path = parser.parse_args(argv).sweep_dir
    from research.report.build import build_report

    try:
        paths = build_report(directory)
    except UserError as error:
        print(f"research-report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"research-report: {directory}: the report cannot be written: {error}", file=sys.stderr)
        return 2
    named = {"results": paths.results_csv, "contact sheet": paths.contact_sheet, "report": paths.report_html}
    for label, path in named.items():
        if path is not None:
            print(f"{label:>13}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
