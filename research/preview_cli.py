"""The command ``research-preview``: fits the projection of a model's latents to colours that the preview hook draws with.

By least squares, to pictures that the model's VAE encodes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from research.errors import ConfigError, ModelError, UserError
from research.files import write_atomic

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from research.hooks.projection import Projection
    from research.models.unet_text import UnetTextModel

OK, REFUSED, BAD_INPUT = 0, 1, 2
KEY = "--pictures"
_MOST = 512


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
    from research.models.inspect.find_model import find_pipeline

    directory = find_pipeline(args.path).directory
    if args.out is not None:
        out: Path = args.out
    elif directory is not None:
        out = directory / FILE
    else:
        raise ConfigError(f"--out: must be given, {args.path} is no directory of this disk; accepted is a file.")
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; accepted is a file.")
    given = zoo_pictures() if args.pictures is None else picture_files(args.pictures)
    found, r2 = fit(_latent_model(args.path), given, args.size)
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


def _latent_model(path: str) -> UnetTextModel:
    import diffusers
    import transformers

    from research.models import load_model
    from research.models.unet_text import UnetTextModel

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    model = load_model(path, dtype="float32")
    if not isinstance(model, UnetTextModel):
        raise ModelError(f"model.path: {model.path} works on pixels; its previews need no projection.")
    return model


def picture_files(folder: str | Path) -> list[Path]:
    """The pictures in a folder, sorted by name; no more than 512.

    Raises:
        ConfigError: no folder, or no picture in it.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        what = "is no folder" if path.exists() else "does not exist"
        raise ConfigError(f"{KEY}: {str(folder)!r} {what}; accepted is a folder of pictures.")
    from research.picture_files import SUFFIXES

    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ConfigError(f"{KEY}: {folder} holds no picture; accepted are files of {', '.join(SUFFIXES)}.")
    return files[:_MOST]


def zoo_pictures() -> list[Path]:
    """The pictures in colour that come with the package."""
    from research import pictures, zoo

    files = [pictures.find(KEY, f"zoo:{name}") for name in zoo.picture_names()]
    return [file for file in files if pictures.open_picture(KEY, file).mode == "RGB"]


def fit(model: UnetTextModel, given: Sequence[Any], size: int = 3) -> tuple[Projection, float]:
    """Fit the projection of a latent model to pictures, each brought to the size of the model; they are mirrored as well.

    Args:
        model: from `research.load_model`.
        given: pictures of any kind that `research.pictures.read` takes.
        size: of the neighbourhood that a colour is told from, an odd number of cells; 1 is the cell alone.

    Returns:
        The projection, and R^2: the share of the variance of the downsampled pictures that it explains.

    Raises:
        ModelError: its latents are not finite.
    """
    import torch

    from research import pictures
    from research.hooks.projection import fit_projection

    _, height, width = model.latent_shape(None, None)
    factor = model.vae_factor
    latents, colours = [], []
    generator = torch.Generator().manual_seed(0)  # the same pictures give the same fit
    for one in given:
        picture = pictures.read(KEY, one, 1)
        pixels = pictures.to_pixels(KEY, picture, factor, height * factor, width * factor)
        both = torch.cat([pixels, pixels.flip(-1)])
        latents.append(_latents(model, both, generator))
        colours.append(torch.nn.functional.interpolate(both, size=(height, width), mode="area"))
    found = torch.cat(latents)
    if not torch.isfinite(found).all():
        raise ModelError(f"model.path: the VAE of {model.path} makes latents that are not finite.")
    return fit_projection(found, torch.cat(colours), size)


def _latents(model: UnetTextModel, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn from the VAE's posterior in the scaling of the loop, fp32 on the CPU.

    A diffusion model makes latents as they were drawn: a channel with a wide posterior is mostly noise in them, which a
    projection that was fitted to means would show.
    """
    import torch

    vae = model.vae
    with torch.no_grad():
        posterior = vae.encode(pixels.to(model.device, vae.dtype)).latent_dist
    mean, std = posterior.mean.float().cpu(), posterior.std.float().cpu()
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents = mean + std * torch.randn(mean.shape, generator=generator)
    return (latents - shift) * vae.config.scaling_factor


def _report(error: BaseException, code: int) -> int:
    print(f"research-preview: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
