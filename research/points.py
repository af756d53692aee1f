"""Points in place of pictures: one of them drawn in a small picture that holds its numbers, and many in a scatter plot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from research.drawing import COLOURS, GRID, INK, PAPER, plain_frame
from research.errors import ConfigError

CHUNK = "point"  # of a picture's ``info`` and of its PNG: the numbers, in full
Extent = tuple[float, float]
_SIDE, _DOT = 48, 3  # pixels


def point_image(point: Tensor, extent: Extent) -> Image.Image:
    """A small picture of one point [d], at its first two numbers; ``info["point"]`` holds all of them.

    Args:
        extent: what the picture shows of both axes, from low to high; a point beyond is drawn at the edge.
    """
    values = [float(value) for value in point.double().cpu()]
    low, high = extent
    places = [(min(max(value, low), high) - low) / (high - low) for value in (*values, 0.0)[:2]]
    across, up = places if len(values) > 1 else (places[0], 0.5)
    x, y = _DOT + across * (_SIDE - 1 - 2 * _DOT), _SIDE - 1 - _DOT - up * (_SIDE - 1 - 2 * _DOT)
    image = Image.new("RGB", (_SIDE, _SIDE), PAPER)
    drawn = ImageDraw.Draw(image)
    drawn.rectangle((0, 0, _SIDE - 1, _SIDE - 1), outline=GRID)
    drawn.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), fill=COLOURS[0])
    image.info[CHUNK] = " ".join(map(repr, values))
    return image


def points_of(images: Sequence[Image.Image], key: str = "images") -> Tensor:
    """The points [N, d] that pictures of `point_image` hold, in float64.

    Args:
        key: how the message calls them.

    Raises:
        ConfigError: a picture that holds none, or points of different dimensions.
    """
    found: list[list[float]] = []
    for place, image in enumerate(images):
        try:
            found.append([float(word) for word in str(image.info[CHUNK]).split()])
        except (KeyError, ValueError):
            raise ConfigError(
                f"{key}: picture {place} holds no point; accepted are those of a model of points (wrap(..., shape=(2,)))."
            ) from None
    if len({len(point) for point in found}) > 1:
        raise ConfigError(f"{key}: hold points of different dimensions; accepted are those of one model.")
    return torch.tensor(found, dtype=torch.float64)


def scatter(points: Tensor, extent: Extent) -> Image.Image:
    """A scatter plot of points [N, d] at their first two numbers; of d = 1, a histogram.

    Args:
        extent: of both axes, the same for all plots that are to be compared; how many points lie beyond is said.
    """
    from matplotlib.figure import Figure

    shown: Any = np.asarray(points[:, :2].double().cpu())
    low, high = extent
    beyond = int((np.abs(shown - (low + high) / 2) > (high - low) / 2).any(axis=1).sum())
    figure = Figure(figsize=(4.2, 4.2), dpi=100, facecolor=PAPER)
    axes = figure.add_subplot()
    plain_frame(axes)
    if shown.shape[1] == 1:
        axes.hist(shown[:, 0], bins=[low + (high - low) * k / 60 for k in range(61)], color=COLOURS[0])
    else:
        size = float(np.clip(2000 / max(len(shown), 1), 2, 24))
        axes.scatter(shown[:, 0], shown[:, 1], s=size, alpha=0.6, color=COLOURS[0], linewidths=0)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
    axes.set_xlim(low, high)
    told = f"{len(shown)} points" + (f", {beyond} beyond the frame" if beyond else "")
    axes.set_title(told, fontsize=9, color=INK)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    with Image.open(buffer) as image:
        return image.convert("RGB")
