"""The command ``research-dashboard``: a W&B workspace and a report over the jobs of a folder.

With a key they are saved to the server, over those saved before; without one they go to a JSON file. Exit codes: 0 saved or
written, 1 the server did not take them (the file is written), 2 the input cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from research.errors import UserError
from research.files import write_atomic
from research.tracking.cli import BAD_INPUT, FAILED, INTERRUPTED, OK, seconds
from research.tracking.scrub import scrub_text
from research.tracking.wandb_process import WorkerProcess
from research.tracking.wandb_server import server


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command in this process and return its exit code."""
    args = _parser().parse_args(argv)
    try:
        return _dashboard(args, argv)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was changed on the server after that", file=sys.stderr)
        return INTERRUPTED


def _dashboard(args: argparse.Namespace, argv: Sequence[str]) -> int:
    from research.tracking import dashboard, dashboard_save
    from research.tracking.wandb_run import has_key

    folder = Path(args.folder)
    # the folder by its name: where it stands is nobody else's business
    words = [folder.resolve().name if word == args.folder else word for word in argv]
    asked = {
        "project": args.project,
        "entity": args.entity,
        "title": args.title,
        "command": scrub_text(shlex.join(["research-dashboard", *words])),
    }
    found, boards, _ = dashboard_save.build(folder, asked)  # what is wrong with the input shows here
    if args.output or not has_key():
        file = Path(args.output or folder / "dashboard.json")
        _write(file, dashboard.spec(found, boards))
        why = "" if args.output else f" (no key for {server()} was found: set WANDB_API_KEY or run wandb login)"
        print(f"workspace and report of {found.jobs} jobs: {file}{why}")
        return OK
    worker: WorkerProcess | None = None
    try:
        worker = WorkerProcess({"request_timeout": args.request_timeout})
        request = {"dashboard": str(folder.resolve()), "asked": asked}
        answer = worker.ask(request, args.time_limit)
    except (OSError, ValueError, TimeoutError) as error:
        answer = {"ok": False, "warning": str(error)}
    finally:
        if worker is not None:
            worker.kill()
    if not answer["ok"]:
        file = folder / "dashboard.json"
        _write(file, dashboard.spec(found, boards))
        print(f"error: {server()} did not take them: {answer['warning']}; written to {file}", file=sys.stderr)
        return FAILED
    print(f"workspace: {answer['urls']['workspace']}\nreport:    {answer['urls']['report']}")
    return OK


def _write(file: Path, content: dict[str, object]) -> None:
    try:
        write_atomic(file, json.dumps(content, indent=1, ensure_ascii=False))
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror or error}).") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="research-dashboard",
        description="A W&B workspace and a report over the jobs of a folder: FID against CLIP score by guidance, quality "
        "against seconds and NFE, parallel coordinates over the axes, curves over log-SNR, images. With a key they are saved to "
        "the server, over those saved before; without one they go to FOLDER/dashboard.json. research-wandb sync sends the runs.",
        epilog="Exit codes: 0 saved or written, 1 the server did not take them (a file is written), 2 the input cannot be used.",
    )
    parser.add_argument("folder", help="of a sweep, or one that holds sweeps")
    parser.add_argument("--project", help="W&B project; that of the jobs' tracker section unless given")
    parser.add_argument("--entity", help="user or team")
    parser.add_argument("--title")
    parser.add_argument("-o", "--output", metavar="FILE", help="write a JSON file, and speak to no server")
    for name, default, what in (("time_limit", 120.0, "all of it"), ("request_timeout", 30.0, "a request")):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=seconds, default=default, metavar="SECONDS", help=f"for {what} (%(default)g)"
        )  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
