"""The command ``research-preview``: fit what the preview hook turns a model's latents into colours with."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from research.errors import ConfigError, UserError
from research.files import write_atomic

OK, REFUSED, BAD_INPUT = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see research-preview --help.")


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command in this process.

    Returns:
        0; 1 where the model or the pictures cannot be used, 2 where the command line cannot, each after one line on stderr.
    """
    try:
        return _fit(_arguments(argv))
    except ConfigError as error:
        return _report(error, BAD_INPUT)
    except UserError as error:
        return _report(error, REFUSED)
    except BrokenPipeError:
        return OK
    except SystemExit as ending:  # of --help
        return ending.code if isinstance(ending.code, int) else OK


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="research-preview",
        description="Fit the linear map from a model's latents to colours that hooks=preview draws with.",
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="MODEL_PATH", help="a zoo name, a directory or a hub id")
    parser.add_argument(
        "--pictures", metavar="FOLDER", help="pictures to fit to, like those the model makes (default: the zoo's)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write it (default: preview.json in the model's directory)"
    )
    parser.add_argument(
        "--size",
        type=int,
        choices=(1, 3, 5),
        default=3,
        help="latent cells on a side that a colour is told from (default: 3; 1 is the cell alone)",
    )
    return parser.parse_args(list(argv))


def _fit(args: argparse.Namespace) -> int:
    from research.hooks.projection import FILE
    from research.models.find_model import locate
    from research.models.preview_fit import fit, picture_files, zoo_pictures

    directory = locate(args.path).directory
    if args.out is not None:
        out: Path = args.out
    elif directory is not None:
        out = directory / FILE
    else:
        raise ConfigError(f"--out: must be given, {args.path} is no directory of this disk; accepted is a file.")
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; accepted is a file.")
    given = zoo_pictures() if args.pictures is None else picture_files(args.pictures)
    model = _loaded(args.path)
    found, r2 = fit(model, given, args.size)
    content = {
        "weight": [[_rounded(channel) for channel in row] for row in found.weight.tolist()],
        "bias": [round(value, 6) for value in found.bias.tolist()],
        "r2": round(r2, 4),
        "pictures": len(given),
        "cells": found.info["cells"],
    }
    try:
        write_atomic(out, (json.dumps(content) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {error.strerror or error}.") from error
    print(f"{found.channels} latent channels, {len(given)} pictures, {content['cells']} cells: R^2 = {r2:.3f}")
    print(f"written: {out}")
    return OK


def _rounded(rows: list[list[float]]) -> list[list[float]]:
    return [[round(value, 5) for value in row] for row in rows]


def _loaded(path: str) -> Any:
    import diffusers
    import transformers

    from research.models import load_model

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    return load_model(path, dtype="float32")


def _report(error: BaseException, code: int) -> int:
    print(f"research-preview: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
