"""The command ``research again``: images of a job, or one picture, made once more from what is recorded of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from research.errors import UserError

OK, BAD_INPUT, INTERRUPTED = 0, 2, 130
_EPILOG = """\
Everything that decides how an image looks is taken from the record, the settings of the command line and of files alike. Where
the image is still there, the new one is compared with it.

The record may come from someone else: it builds classes of this project alone. Plugs of your own are found in the working folder
if you trust the record (--trust-plugs), or if the configs of --config-dir name them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 2 if nothing can be made of the arguments, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="research again",
        description="Make a job's images, or one picture, once more.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("place", type=Path, metavar="PNG_OR_JOB", help="a picture that a job saved, or a job's folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the images go; again/<job>/images by default")
    parser.add_argument("-cd", "--config-dir", type=Path, metavar="DIR", help="a folder of config groups of your own")
    parser.add_argument(
        "--trust-plugs",
        action="store_true",
        help="let the record name classes that are not the project's own; building them runs their code",
    )
    args = parser.parse_args(argv)
    try:
        return _again(args)
    except UserError as error:
        print(f"research again: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted: images that were made are kept", file=sys.stderr)
        return INTERRUPTED


def _again(args: argparse.Namespace) -> int:
    from PIL import Image

    from research.jobs import signatures
    from research.jobs.again import differences, folder_of, make_again, read_recipe
    from research.jobs.build import Origin, names_in
    from research.jobs.images import recipe as carried
    from research.jobs.images import save

    found = read_recipe(args.place)
    if os.getcwd() not in sys.path:  # plugs of the user's own; the record alone reaches no module of it
        sys.path.append(os.getcwd())
    signatures.forget()
    named = names_in(args.config_dir) if args.config_dir else frozenset()
    origin = Origin(found.record, trusted=args.trust_plugs, named=frozenset(named))
    out = args.out or folder_of(found)
    for row, image in make_again(found, origin):
        before = found.files[row]
        said = "made, the picture of before is not there"
        recipe = {}
        if before.is_file():
            recipe = carried(before)
            with Image.open(before) as opened:
                most = differences(image, opened)
            said = "equal" if most == 0 else "of another size" if most is None else f"differs by up to {most} of 255"
        file = out / before.name
        if file.resolve() == before.resolve():
            raise UserError(f"--out: found {out}, where the picture itself is; accepted is another folder.")
        file.parent.mkdir(parents=True, exist_ok=True)
        save(image, file, recipe)
        print(f"{file}: {said}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
