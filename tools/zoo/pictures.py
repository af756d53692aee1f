"""Pictures that come with the package, found as ``zoo:NAME``: what the tasks that start from a picture are shown on.

`python -m tools.zoo.pictures` makes them again. Emoji and the reliefs of them are of the Noto set (Apache-2.0 / OFL-1.1);
sketches and masks are drawn here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from research.zoo import PICTURES_DIR
from tools.zoo.data import BACKGROUNDS, COLOURS, RESOLUTION, SUBJECTS, Emoji, load_emoji, to_uint8
from tools.zoo.depth_maps import depth_maps

_FINE = 8  # drawn larger and averaged, so that edges are smooth
_EMOJI = {
    "pizza": ("pizza", "blue"),
    "strawberry": ("strawberry", "white"),
    "cat": ("cat face", "green"),
    "hamburger": ("hamburger", "pink"),
    "smiling_face": ("smiling face", "purple"),
    "sunflower": ("sunflower", "blue"),
    "penguin": ("penguin", "orange"),
    "watermelon": ("watermelon", "gray"),
}
Draw = Callable[[ImageDraw.ImageDraw], None]


def emoji_picture(emoji: Emoji, subject: str, colour: str) -> Image.Image:
    """An emoji on a plain background, 32 x 32 pixels."""
    where = [torch.tensor([index]) for index in (SUBJECTS.index(subject), 0, COLOURS.index(colour))]
    return Image.fromarray(to_uint8(emoji.picture(*where))[0].permute(1, 2, 0).numpy())


def depth_picture(emoji: Emoji, subject: str) -> Image.Image:
    """The depth-like map that `emoji-depth` was trained with, made of an emoji's transparency; white is near."""
    alpha = emoji.rgba[SUBJECTS.index(subject), 0, 3][None, None]
    return Image.fromarray((depth_maps(alpha)[0, 0] * 255).round().to(torch.uint8).numpy())


def drawn(draw: Draw, ground: str | int, mode: str = "RGB") -> Image.Image:
    """A drawing in units of the small picture's pixels."""
    side = RESOLUTION * _FINE
    colour = BACKGROUNDS[ground] if isinstance(ground, str) else ground
    image = Image.new(mode, (side, side), colour)
    draw(ImageDraw.Draw(image))
    return image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX)


def _box(*sides: float) -> list[float]:
    return [side * _FINE for side in sides]


def _pizza(draw: ImageDraw.ImageDraw) -> None:
    draw.polygon(_box(4, 5, 28, 5, 16, 29), fill=(240, 190, 60))
    draw.rectangle(_box(4, 3, 28, 7), fill=(190, 110, 40))
    for x, y in ((11, 11), (20, 12), (15, 19)):
        draw.ellipse(_box(x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill=(190, 30, 30))


def _face(draw: ImageDraw.ImageDraw) -> None:
    draw.ellipse(_box(4, 4, 28, 28), fill=(250, 205, 60))
    for x in (12, 20):
        draw.ellipse(_box(x - 1.5, 11, x + 1.5, 15), fill=(90, 60, 20))
    draw.arc(_box(9, 12, 23, 24), 20, 160, fill=(90, 60, 20), width=2 * _FINE)


def _flower(draw: ImageDraw.ImageDraw) -> None:
    draw.rectangle(_box(15, 16, 17, 30), fill=(40, 120, 40))
    draw.ellipse(_box(7, 3, 25, 21), fill=(245, 190, 30))
    draw.ellipse(_box(12, 8, 20, 16), fill=(110, 60, 20))


def _ramp(draw: ImageDraw.ImageDraw) -> None:
    """Strengths from 0 on the left to 1 on the right, one for each column of the emoji models' latents."""
    for k in range(8):
        draw.rectangle(_box(4 * k, 0, 4 * k + 4, 32), fill=round(255 * k / 7))


def _ring(draw: ImageDraw.ImageDraw) -> None:
    """Strengths from 0 in the middle to 1 at the edges."""
    for k in reversed(range(8)):
        draw.ellipse(_box(*(16 + side * (4 + 2 * k) for side in (-1, -1, 1, 1))), fill=round(255 * k / 7))


def _mask(shape: str, *sides: float) -> Draw:
    return lambda draw: getattr(draw, shape)(_box(*sides), fill=255)


def all_pictures(emoji: Emoji) -> dict[str, Image.Image]:
    """Every picture by its name."""
    found = {name: emoji_picture(emoji, *what) for name, what in _EMOJI.items()}
    found |= {f"depth_{name}": depth_picture(emoji, _EMOJI[name][0]) for name in ("pizza", "cat", "penguin")}
    sketches: dict[str, tuple[Draw, str]] = {
        "sketch_pizza": (_pizza, "blue"),
        "sketch_face": (_face, "purple"),
        "sketch_flower": (_flower, "pink"),
    }
    found |= {name: drawn(draw, ground) for name, (draw, ground) in sketches.items()}
    masks = {
        "mask_half": _mask("rectangle", 16, 0, 32, 32),
        "mask_lower": _mask("rectangle", 0, 16, 32, 32),
        "mask_circle": _mask("ellipse", 6, 6, 26, 26),
        "mask_box": _mask("rectangle", 8, 8, 24, 24),
    }
    for name, draw in masks.items():
        found[name] = drawn(draw, 0, "L").point(lambda value: 255 * (value >= 128))
    for name, draw in {"strength_ramp": _ramp, "strength_ring": _ring}.items():
        found[name] = drawn(draw, 255, "L")
    inverse = found["mask_circle"].point(lambda value: 255 - value)
    return {**found, "mask_around": inverse}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.zoo.pictures", description=__doc__)
    parser.add_argument("--data", type=Path, help="cache of the artwork packages (default: ~/.cache/research)")
    parser.add_argument("--out", type=Path, default=PICTURES_DIR)
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, picture in all_pictures(load_emoji(arguments.data)).items():
        picture.save(arguments.out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
