"""The command ``research again``: images of a job, or one picture, made once more from what is recorded of them; or jobs timed
again."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from research.downloads import cached_only
from research.errors import UserError

if TYPE_CHECKING:
    from research.jobs.again import Recipe
    from research.jobs.build import Origin

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130
_EPILOG = """\
Everything that decides how an image looks is taken from the record, the settings of the command line and of files alike. Where
the image is still there, the new one is compared with it.

With --time N no picture is kept: the first batch of a job is run N times for its seconds, and its first image N times alone for
its latency, each after one run that is not counted. The job's record keeps them, and the report of its sweep is built again.

The record may come from someone else: it builds classes of this project alone. Plugs of your own are found in the working folder
if you trust the record (--trust-plugs), or if the configs of --config-dir name them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 2 if nothing can be made of the arguments, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="research again",
        description="Make a job's images, or one picture, once more; or time jobs again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "places",
        type=Path,
        nargs="+",
        metavar="PNG_OR_JOB",
        help="a picture that a job saved, or a job's folder; with --time a sweep's folder too, for all of its jobs",
    )
    parser.add_argument("--time", type=int, metavar="N", help="time the jobs again, N runs each, and keep no picture")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the images go; again/<job>/images by default")
    parser.add_argument("-cd", "--config-dir", type=Path, metavar="DIR", help="a folder of config groups of your own")
    parser.add_argument(
        "--trust-plugs",
        action="store_true",
        help="let the record name classes that are not the project's own; building them runs their code",
    )
    parser.add_argument(
        "--fetch", action="store_true", help="fetch pictures whose URLs the record names and that are not in the cache"
    )
    args = parser.parse_args(argv)
    try:
        with nullcontext() if args.fetch else cached_only("research again without --fetch"):
            return _time(args) if args.time is not None else _again(args)
    except UserError as error:
        print(f"research again: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted: images that were made are kept", file=sys.stderr)
        return INTERRUPTED


def _time(args: argparse.Namespace) -> int:
    from rich.console import Console

    from research.checks import check_whole_number
    from research.jobs.record import find_result
    from research.jobs.rescore import job_folders
    from research.jobs.retime import retime
    from research.report import build_report
    from research.results.timing import Spread

    times = check_whole_number("--time", args.time, least=1)
    if args.out:
        raise UserError("--out: goes with pictures, and --time keeps none.")
    _find_plugs()
    found = [job_folders(place) for place in args.places]
    # of a sweep those that are done; a job that is named has to be
    named = {folder for _, folders in found if len(folders) == 1 for folder in folders}
    folders = list(dict.fromkeys(folder for _, of_sweep in found for folder in of_sweep))
    folders = [folder for folder in folders if folder in named or ((known := find_result(folder)) and known.done)]
    for number, folder in enumerate(folders, 1):
        timed = retime(folder, times, partial(_origin, args=args))
        seconds = Spread.of([run.seconds / run.n_images for run in timed.batch])
        latency = Spread.of([run.seconds for run in timed.one])
        print(
            f"[{number}/{len(folders)}] {folder}: {seconds} s / image in batches of {timed.batch[0].n_images}, "
            f"latency {latency} s"
        )
    for sweep in dict.fromkeys(sweep for sweep, _ in found):
        build_report(sweep, console=Console(file=io.StringIO()))
    return OK


def _again(args: argparse.Namespace) -> int:
    from research.jobs.again import read_recipe

    if len(args.places) > 1 and args.out:
        raise UserError("--out: found with several places, whose files may have one name; accepted is one place.")
    _find_plugs()
    for found in [read_recipe(place) for place in args.places]:
        _make(found, args)
    return OK


def _make(found: Recipe, args: argparse.Namespace) -> None:
    from research.jobs.again import differences, folder_of, make_again
    from research.jobs.images import recipe as carried
    from research.jobs.images import save
    from research.picture_files import open_picture

    out = args.out or folder_of(found)
    for row, image in make_again(found, _origin(found.record, args)):
        before = found.files[row]
        said = "made, the picture of before is not there"
        recipe = {}
        if before.is_file():
            recipe = carried(before)
            most = differences(image, open_picture(str(before), before))
            said = "equal" if most == 0 else "of another size" if most is None else f"differs by up to {most} of 255"
        file = out / before.name
        if file.resolve() == before.resolve():
            raise UserError(f"--out: found {out}, where the picture itself is; accepted is another folder.")
        file.parent.mkdir(parents=True, exist_ok=True)
        save(image, file, recipe)
        print(f"{file}: {said}")


def _find_plugs() -> None:
    """Let plugs of the user's own be found in the working folder; the record alone reaches no module of it."""
    from research.jobs import signatures

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    signatures.forget()


def _origin(record: Path, args: argparse.Namespace) -> Origin:
    from research.jobs.build import Origin, names_in, names_of_plugins

    named = names_in(args.config_dir) if args.config_dir else frozenset()
    return Origin(record, trusted=args.trust_plugs, named=frozenset(named) | names_of_plugins())


if __name__ == "__main__":
    sys.exit(main())
