"""The command ``research-report``: builds table, plots, contact sheet and page of a sweep again from its files."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.errors import UserError
from research.results.budget import read_budget
from research.results.scales import Margin, read_margin


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line on stderr that says what is wrong with the folder."""
    arguments = _parser().parse_args(argv)
    directory: Path = arguments.sweep_dir
    try:
        if arguments.watch or arguments.serve is not None:
            return _live(directory, arguments)
        return _once(directory, _judging(arguments))
    except UserError as error:
        print(f"research-report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"research-report: {directory}: the report cannot be written: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="research-report",
        description="(Re)build results.csv, plots, contact sheet and report.html of a sweep, once or as it runs.",
    )
    parser.add_argument("sweep_dir", type=Path, metavar="DIR", help="a sweep's folder: outputs/<sweep_name>")
    parser.add_argument("--watch", action="store_true", help="keep report.html up to date while the sweep runs")
    parser.add_argument(
        "--serve",
        nargs="?",
        type=int,
        const=8000,
        metavar="PORT",
        help="the same, and serve it on this machine alone, at http://127.0.0.1:PORT (8000; 0 takes a free one)",
    )
    parser.add_argument(
        "--until-finished", action="store_true", help="with --watch or --serve: end when every job has its result"
    )
    parser.add_argument(
        "--margin",
        action="append",
        default=[],
        metavar="METRIC=SIZE",
        help="how much worse than the best is as good: clip_score=2, or fid=10%% of the better number (else as it was run)",
    )
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="NAME=LIMIT",
        help="what a setting may cost to be advised: nfe=20, seconds=1.5 (an image) or latency=0.8 (of one image made alone); "
        "NAME=none lifts a limit (else as it was run)",
    )
    parser.add_argument(
        "--figure",
        action="append",
        default=[],
        metavar="METRIC:AXIS",
        help="draw this metric against this axis too, as in kid:steps or fid:scheduler.name",
    )
    parser.add_argument(
        "--unit",
        choices=("auto", "prompts", "seeds"),
        help="what intervals are over: other prompts of the kind, or other seeds of these prompts; auto is prompts where several "
        "prompts have several images (else as it was run)",
    )
    return parser


def _figures(given: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for text in given:
        name, colon, key = (part.strip() for part in text.partition(":"))
        if not (colon and name and key):
            raise UserError(f"--figure: found {text!r}; accepted is METRIC:AXIS, as in kid:steps.")
        found.append((name, key))
    return found


def _margins(given: Sequence[str]) -> dict[str, Margin]:
    found = {}
    for text in given:
        name, equals, size = text.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--margin: found {text!r}; accepted is METRIC=SIZE, as in clip_score=2 or fid=10%.")
        found[name.strip()] = read_margin(f"--margin {name.strip()}", size)
    return found


def _budget(given: Sequence[str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for text in given:
        name, equals, limit = (part.strip() for part in text.partition("="))
        if not (equals and name):
            raise UserError(
                f"--budget: found {text!r}; accepted is NAME=LIMIT, as in nfe=20, seconds=1.5 or latency=0.8."
            )
        read = read_budget("--budget", {name: None if limit == "none" else limit})
        found[name] = read.limits.get(name)
    return found


def _judging(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command says of how the sweep is judged and shown."""
    return {
        "margins": _margins(arguments.margin),
        "figures": _figures(arguments.figure),
        "unit": arguments.unit,
        "budget": _budget(arguments.budget),
    }


def _once(directory: Path, judging: Mapping[str, Any]) -> int:
    from research.report.build import build_report

    paths = build_report(directory, **judging)
    named = {"results": paths.results_csv, "contact sheet": paths.contact_sheet, "report": paths.report_html}
    for label, path in named.items():
        if path is not None:
            print(f"{label:>13}  {path}")
    return 0


def _live(directory: Path, arguments: argparse.Namespace) -> int:
    from research.report.live import watch

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)  # ends as Ctrl-C does, with a page that is whole
    try:
        watch(directory, until_finished=arguments.until_finished, port=arguments.serve, **_judging(arguments))
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
