"""The command ``research-wandb``: brings a W&B server up to date with what is on disk.

Exit codes: 0 the server holds all finished jobs as they are (with ``--dry-run``: it could be found out what it lacks), 1 some
could not be sent or read, 2 the input cannot be used (no folder, no jobs, no key), 130 interrupted. Whatever happened, the same
command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from research.errors import UserError
from research.tracking import sync
from research.tracking.sync import Entry, Options, SyncPlan
from research.tracking.wandb_server import server

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command in this process and return its exit code; what was done goes to stdout, errors to stderr."""
    args = _parser().parse_args(argv)
    try:
        return _sync(args)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # no room for what W&B keeps on the way, no further process
        print(f"error: {error.strerror or error}; the same command goes on from there", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\ninterrupted: what was sent stays; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def _sync(args: argparse.Namespace) -> int:
    from research.tracking.wandb_run import has_key

    options = Options(**{name: getattr(args, name) for name in Options.__dataclass_fields__})
    made = sync.plan(Path(args.folder), options)
    asked = has_key()
    if not asked and not args.dry_run:
        raise UserError(
            f"no key for {server()} was found; set WANDB_API_KEY or run wandb login. {len(made.entries)} jobs wait to be sent."
        )
    if asked:
        try:
            sync.compare(made, options)
        except UserError as error:  # a server that is down is no fault of the input
            print(f"error: {error}; nothing was sent", file=sys.stderr)
            return FAILED
    if not args.dry_run:
        # once for the start of the first line of several threads
        total, done = sum(entry.to_send for entry in made.entries), Counter[str]()

        def tell(entry: Entry) -> None:
            done["ended"] += 1
            outcome = entry.error or ("sent" if entry.state == sync.NEW else "brought up to date")
            print(f"[{done['ended']}/{total}] {entry.record.job_id} {entry.record.name}: {outcome}", file=sys.stderr)

        sync.send(made, options, tell)
    print(json.dumps(_as_json(made, args), indent=1, ensure_ascii=False) if args.json else _as_text(made, args, asked))
    for line in made.damaged:
        print(f"error: {line}", file=sys.stderr)
    return FAILED if made.failed or made.damaged else OK


def _as_json(made: SyncPlan, args: argparse.Namespace) -> dict[str, Any]:
    jobs = [
        {
            "job_id": entry.record.job_id,
            "name": entry.record.name,
            "sweep": entry.record.group,
            "run_id": entry.run_id,
            "project": entry.settings["project"],
            "state": entry.state,
            "sent": entry.sent,
            "error": entry.error,
        }
        for entry in made.entries
    ]
    return {
        "server": server(),
        "dry_run": args.dry_run,
        "jobs": jobs,
        "damaged": made.damaged,
        "unfinished": made.unfinished,
    }


def _as_text(made: SyncPlan, args: argparse.Namespace, asked: bool) -> str:
    lines, states = [], Counter(entry.state for entry in made.entries)
    if args.dry_run:
        lines += [f"{entry.state:<10}  {entry.run_id}  {entry.record.name}" for entry in made.entries]
        if asked:
            counts = [f"{states[state]} {state}" for state in (sync.NEW, sync.CHANGED, sync.CURRENT) if states[state]]
            lines.append(f"{', '.join(counts)}; nothing was sent (--dry-run)")
        else:
            lines.append(f"no key for {server()}, so it was not asked what it holds; nothing was sent (--dry-run)")
    else:
        sent = sum(entry.sent for entry in made.entries)
        counts = [f"{sent} sent", f"{states[sync.CURRENT]} up to date before"]
        if made.failed:
            counts.append(f"{len(made.failed)} not sent: {made.failed[0].error}")
        lines.append(f"{', '.join(counts)} ({server()})")
    if made.unfinished:
        lines.append(f"{made.unfinished} jobs have no result yet")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="research-wandb", description="The W&B mirror of finished jobs.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "sync",
        help="send finished jobs to a W&B server",
        description="Send the finished jobs of a folder to W&B: each is one run, resumed and not doubled when sent again. "
        "Project, entity, tags and images are those of the jobs' tracker section, unless given here.",
        epilog="Exit codes: 0 all are there, 1 some are not, 2 the input cannot be used, 130 interrupted.",
    )
    one.add_argument("folder", help="of a job, of a sweep, or one that holds sweeps")
    one.add_argument("-n", "--dry-run", action="store_true", help="only say what would be sent")
    one.add_argument("--json", action="store_true", help="for programs")
    one.add_argument("--project")
    one.add_argument("--entity", help="user or team")
    one.add_argument("--max-images", type=_count, help="images a job to show")
    one.add_argument(
        "--artifacts", action=argparse.BooleanOptionalAction, help="keep all images of a job there as an artifact"
    )
    one.add_argument("--workers", type=_positive_count, default=Options.workers, help="jobs at a time (%(default)s)")
    one.add_argument("--force", action="store_true", help="send also what is up to date")
    for name, what in (
        ("time_limit", "a job"),
        ("request_timeout", "a request to the server"),
        ("limit", "all of it; what is not sent by then is left"),
    ):
        default = getattr(Options, name)
        option = f"--{name.replace('_', '-')}"
        one.add_argument(option, type=seconds, default=default, metavar="SECONDS", help=f"for {what} (%(default)g)")
    one.add_argument("--retries", type=_count, default=Options.retries, help="of a request that failed (%(default)s)")
    return parser


def seconds(text: str) -> float:
    """An argument that is a number of seconds."""
    found = _number(text)
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}; accepted is a number of seconds above 0")
    return found


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"found {text!r}; accepted is a whole number from 0")
    return int(text)


def _positive_count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}; accepted is a whole number from 1")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}; accepted is a number") from None


if __name__ == "__main__":
    main()
