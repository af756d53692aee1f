"""The command ``research-compare``: jobs, sweeps or values of an axis against each other, paired over prompts and seeds."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from research.errors import UserError

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130
FORMATS = ("json", "md", "csv", "tex")
_EPILOG = """\
  research-compare outputs/ddim outputs/euler                    two sweeps, job by job with the same other settings
  research-compare outputs/s/1f2e3d4c outputs/s/5a6b7c8d         two jobs
  research-compare outputs/s                                     every job of a sweep against every other
  research-compare outputs/s --axis guidance.scale --baseline 3  values of an axis, over the other axes
  research-compare before=outputs/a after=outputs/b --md table.md

Images are paired by prompt and seed. Means over images have t intervals of their paired differences; FID, KID and CMMD
are computed again from the features that jobs keep, with images left out in turn (a paired jackknife, corrected for the bias
that a bootstrap of FID doubles); seconds want repeated runs (--repeats) or several batches a job. Many pairs of one metric are
adjusted for (Holm)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 2 after one line on stderr that says what is wrong, 130 if interrupted."""
    words = _with_files(sys.argv[1:] if argv is None else list(argv))
    args = _parser().parse_intermixed_args(words)
    try:
        return _compare(args)
    except UserError as error:
        print(f"research-compare: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED


def _compare(args: argparse.Namespace) -> int:
    from research.compare.outcome import Request

    for option, value in (("--level", args.level), ("--power", args.power)):
        if not (math.isfinite(value) and 0.5 <= value < 1):
            raise UserError(f"{option}: found {value:g}; accepted are numbers from 0.5 to below 1, such as 0.95.")
    wanted = {name: getattr(args, name) for name in FORMATS if getattr(args, name) is not None}
    if list(wanted.values()).count("-") > 1:
        both = " and ".join(f"--{name}" for name, file in wanted.items() if file == "-")
        raise UserError(f"{both}: found two formats for the standard output; accepted is one, the others with a file.")
    for name, file in wanted.items():
        if file != "-" and not Path(file).expanduser().parent.is_dir():
            raise UserError(
                f"--{name} {file}: there is no folder {Path(file).parent}; accepted is a file in a folder that exists."
            )
    request = Request(
        tuple(args.places),
        axis=args.axis,
        baseline=args.baseline,
        metrics=tuple(m.strip() for words in args.metrics for m in words.split(",") if m.strip()),
        where=tuple(args.where),
        over=args.over,
        each=args.each,
        repeats=tuple(args.repeats),
        unpaired=args.unpaired,
        force=args.force,
        level=args.level,
        power=args.power,
        seed=args.seed,
        effective_scale=args.effective_scale,
    )
    from research.compare.comparing import compare
    from research.compare.write import to_terminal

    found = compare(request)
    _write(found, wanted)
    if "-" not in wanted.values():
        to_terminal(found)
    return OK


def _write(found: object, wanted: dict[str, str]) -> None:
    from research.compare import write
    from research.files import write_atomic

    makers = {"json": write.to_json, "md": write.to_markdown, "csv": write.to_csv, "tex": write.to_tex}
    for name, file in wanted.items():
        text = makers[name](found)  # type: ignore[arg-type]
        if file == "-":
            sys.stdout.write(text)
            continue
        try:
            write_atomic(Path(file).expanduser(), text)
        except OSError as error:
            raise UserError(f"--{name} {file}: cannot be written: {error.strerror or error}.") from error
    sys.stdout.flush()


def _with_files(words: list[str]) -> list[str]:
    """Give ``--json`` and its like a dash where no file of theirs follows, so that a folder after them is a side."""
    found = []
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else ""
        name = word.removeprefix("--")
        if (
            word.startswith("--")
            and name in FORMATS
            and following != "-"
            and not re.search(rf"\.{name}$", following, re.I)
        ):
            word = f"{word}=-"
        found.append(word)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="research-compare",
        description="Set jobs, sweeps or values of an axis against each other: better, worse, or not told apart.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "places",
        nargs="+",
        metavar="[NAME=]DIR",
        help="folders of jobs or sweeps; each is judged against those before it",
    )
    add("--axis", metavar="KEY", help="the sides are the values of a setting, paired over all other settings")
    add("--baseline", metavar="SIDE", help="judge all sides against this one: its name, value, folder, or a job's id")
    add(
        "--metrics",
        action="append",
        default=[],
        metavar="A,B",
        help="which numbers; nfe and seconds_per_image are such too",
    )
    add("--where", action="append", default=[], metavar="KEY=VALUE", help="only jobs with this setting")
    add("--each", action="store_true", help="every job of every folder is a side (jobs of other seeds alone are one)")
    add(
        "--unit",
        "--over",
        dest="over",
        choices=("auto", "prompts", "seeds", "images"),
        default="auto",
        help="what is drawn at random: whole prompts with all their images (so for other prompts of the kind), seeds (for "
        "others, of these prompts), or images, as if each had a prompt of its own; auto is what the sweep was run with "
        "(report.unit), else prompts where several prompts have several images",
    )
    add(
        "--repeats",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="further runs of the same jobs, for seconds",
    )
    add(
        "--unpaired",
        action="store_true",
        help="compare also sides without common prompts and seeds, as independent samples",
    )
    add(
        "--effective-scale",
        action="store_true",
        help="also the scale of CFG that each side's guidance comes nearest to, and the share of it that CFG has at no scale; of "
        "jobs made with hooks=record",
    )
    add("--force", action="store_true", help="compare numbers of different provenance, and mark them")
    add("--level", type=float, default=0.95, help="of intervals and tests (0.95)")
    add("--power", type=float, default=0.8, help="of the number of images that would settle a difference (0.8)")
    add("--seed", type=int, default=0, help="of what is drawn at random")
    for name, what in zip(
        FORMATS, ("everything", "tables", "a line a pair and metric", "tables with booktabs"), strict=True
    ):
        add(f"--{name}", metavar=f"FILE.{name}", help=f"{what}, to a file, or to the standard output without one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
