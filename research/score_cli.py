"""The command ``research-score``: metrics of jobs that are done, from their images, without sampling."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from research.downloads import cached_only
from research.errors import UserError

OK, REFUSED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_EPILOG = """\
With no more than DIR, each job's own metrics are computed again and replaced in its result.json. metrics=CHOICE, or keys
such as metrics.fid.reference=FILE, compute others: a job with other metrics is another job, so each gets a folder beside
the old one, with the same images, and research with those metrics finds it done. Run again after an interruption, it
goes on where it was.

The folder may come from someone else: its records build classes of this project alone. Metrics and plugs of your own are found
in the working folder if you trust the records (--trust-plugs), or if the configs of --config-dir or the command name them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if a job was refused, 2 if nothing can be done with the arguments, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="research-score",
        description="Compute the metrics of a sweep's jobs from their images, and build its report again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("place", type=Path, metavar="DIR", help="a sweep's folder, outputs/<sweep_name>, or a job's")
    parser.add_argument("overrides", nargs="*", metavar="metrics=...", help="other metrics than each job's own")
    parser.add_argument("-cd", "--config-dir", type=Path, metavar="DIR", help="a folder of config groups of your own")
    parser.add_argument("--again", action="store_true", help="also what was computed with the same libraries before")
    parser.add_argument(
        "--trust-plugs",
        action="store_true",
        help="let the records name classes that are not the project's own; building them runs their code",
    )
    args = parser.parse_intermixed_args(argv)
    try:
        with cached_only("research-score"):
            return _score(args)
    except UserError as error:
        print(f"research-score: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # of the report; what jobs keep says it itself
        print(f"research-score: {args.place}: the report cannot be written: {error.strerror or error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted: jobs that were scored are kept; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def _score(args: argparse.Namespace) -> int:
    from research.jobs import signatures
    from research.jobs.compose import Composer
    from research.jobs.rescore import Definitions, job_folders, rescore
    from research.report import build_report

    sweep, folders = job_folders(args.place)
    if os.getcwd() not in sys.path:  # plugs of the user's own; records alone reach no module of it
        sys.path.append(os.getcwd())
    signatures.forget()
    with Composer(args.config_dir and str(args.config_dir)) as composer:
        definitions = Definitions(composer, args.overrides, trusted=args.trust_plugs, config_dir=args.config_dir)
        counts: Counter[str] = Counter()
        for number, folder in enumerate(folders, 1):
            found = rescore(folder, definitions, again=args.again)
            counts[found.state] += 1
            where = "" if found.folder == folder else f" -> {found.folder.name}"
            print(f"[{number}/{len(folders)}] {folder.name}{where}: {found.error or found.state}", file=sys.stderr)
    build_report(sweep)
    print(", ".join(f"{counts[state]} {state}" for state in sorted(counts)))
    return REFUSED if counts["refused"] or counts["busy"] else OK


if __name__ == "__main__":
    sys.exit(main())
