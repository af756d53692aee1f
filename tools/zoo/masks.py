"""Random masks for the inpainting model: boxes, ellipses, brush strokes, half planes, everything, nothing.

A mask is 1 where the picture is to be painted anew and 0 where it is kept, as in the pipelines.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tools.zoo.data import RESOLUTION

# kind -> how often it is drawn
KINDS: dict[str, float] = {
    "box": 0.24,
    "ellipse": 0.24,
    "strokes": 0.20,
    "half": 0.14,
    "everything": 0.14,
    "nothing": 0.04,
}
OUTSIDE = 0.15  # of the boxes and ellipses: their surroundings are painted, and they are kept
STROKE_POINTS = 5


def random_masks(count: int, generator: torch.Generator, resolution: int = RESOLUTION) -> Tensor:
    """Binary masks [N, 1, H, W] of 0.0 and 1.0; every draw comes from the generator."""
    shape = (count, 1, 1)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    # coordinates of pixel centres; the picture is the unit square
    axis = (torch.arange(resolution) + 0.5) / resolution
    y, x = axis[None, :, None], axis[None, None, :]
    top, left = (y - uniform(0.15, 0.85)).abs(), (x - uniform(0.15, 0.85)).abs()
    height, width = uniform(0.08, 0.5), uniform(0.08, 0.5)
    box = (top <= height) & (left <= width)
    ellipse = (top / height) ** 2 + (left / width) ** 2 <= 1
    outside = torch.rand(shape, generator=generator) < OUTSIDE
    angle = uniform(0.0, 2 * torch.pi)
    half = (x - 0.5) * angle.cos() + (y - 0.5) * angle.sin() > uniform(-0.25, 0.25)
    strokes = _strokes(x, y, torch.rand((count, STROKE_POINTS, 2), generator=generator), uniform(0.05, 0.16))
    everything = torch.ones(count, resolution, resolution, dtype=torch.bool)
    drawn = torch.stack([box ^ outside, ellipse ^ outside, strokes, half, everything, ~everything], dim=1)
    kind = torch.multinomial(torch.tensor(list(KINDS.values())), count, replacement=True, generator=generator)
    return drawn[torch.arange(count), kind][:, None].float()


def _strokes(x: Tensor, y: Tensor, points: Tensor, radius: Tensor) -> Tensor:
    """All pixels within a radius of the line through the points [N, P, 2]."""
    inside = torch.zeros(len(points), y.shape[1], x.shape[2], dtype=torch.bool)
    for place in range(points.shape[1] - 1):
        (ax, ay), (bx, by) = (points[:, place + k].T[:, :, None, None] for k in (0, 1))
        dx, dy = bx - ax, by - ay
        along = ((x - ax) * dx + (y - ay) * dy) / (dx**2 + dy**2).clamp(min=1e-12)
        along = along.clamp(0, 1)
        inside |= (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2 <= radius**2
    return inside


def latent_masks(masks: Tensor, size: int) -> Tensor:
    """Masks [N, 1, H, W] at the size of the latents, the nearest pixel of each, as the inpainting pipeline does it."""
    return F.interpolate(masks, size=(size, size))


def without(pictures: Tensor, masks: Tensor) -> Tensor:
    """Pictures in -1..1 with mid-gray (0) where they are to be painted anew."""
    return pictures * (masks < 0.5)
