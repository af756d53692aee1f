"""Depth-like maps of emoji: a relief made of their transparency, as nobody has measured the depth of a drawing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def depth_maps(alpha: Tensor) -> Tensor:
    """Reliefs [N, 1, H, W] in [0, 1] of transparency [N, 1, H, W] in [0, 1]: the ground is 0, a thing rises from 0.5 at its
    edge to 1 at the place farthest from it.

    The height inside is how many times a pixel outlives the removal of the thing's outermost pixels, the thinnest distance
    transform there is.
    """
    left = (alpha >= 0.5).float()
    height = torch.zeros_like(alpha)
    while bool(left.any()):
        height += left
        # a pixel stays if it and its eight neighbours are inside; the ground goes on beyond the picture
        left = -F.max_pool2d(-F.pad(left, (1, 1, 1, 1)), 3, stride=1)
    tallest = height.amax(dim=(2, 3), keepdim=True).clamp_min(1.0)
    return alpha * (0.5 + 0.5 * height / tallest)
