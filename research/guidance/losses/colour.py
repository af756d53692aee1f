"""A colour to lead to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from research.arguments import Recorded
from research.errors import ConfigError
from research.guidance.losses.given import GivenPictures
from research.sampling.interfaces import Batch


class Colour(Recorded):
    """The squared distance of the mean colour of an image, or of a part of it, from a colour, in RGB from 0 to 1.

    From 0 to 3: black against white is 3.

    Args:
        colour: a name or code that Pillow knows ("red", "#ff8800", "hsl(120, 100%, 40%)"), or three numbers from 0 to 1.
        mask: a picture, white where the colour counts; everywhere by default.

    Raises:
        ConfigError: no colour, or no picture.
    """

    def __init__(self, colour: str | Sequence[float], mask: Any = None):
        self.colour = _rgb(colour)
        self._mask = None if mask is None else GivenPictures("guidance.loss.mask", mask, mask=True, what="the colour")

    def start(self, run: Batch) -> None:
        if self._mask is not None:
            self._mask.start(run)

    def __call__(self, pixels: Tensor) -> Tensor:
        """[N] of pixels [N, 3, H, W] in [-1, 1]."""
        rgb = pixels / 2 + 0.5
        if self._mask is None:
            mean = rgb.mean((2, 3))
        else:
            mask = self._mask.like(pixels)
            mean = (mask * rgb).sum((2, 3)) / mask.sum((2, 3))
        return (mean - torch.tensor(self.colour, dtype=mean.dtype, device=mean.device)).square().sum(1)


def _rgb(colour: Any) -> tuple[float, float, float]:
    from PIL import ImageColor

    try:
        if isinstance(colour, str):
            red, green, blue = (level / 255 for level in ImageColor.getrgb(colour)[:3])
        else:
            red, green, blue = (float(level) for level in colour)
    except (TypeError, ValueError):
        red = green = blue = math.nan
    if not all(0 <= level <= 1 for level in (red, green, blue)):
        raise ConfigError(
            f"guidance.loss.colour: found {colour!r}; accepted is a name or code such as red or '#ff8800', or three numbers "
            "from 0 to 1."
        )
    return red, green, blue
