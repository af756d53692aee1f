"""What the tests of tasks share: pictures and masks made of seeded numbers, and a count of what is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

from research import LoopSampler, SampleResult
from research.guidance import CFG
from research.models import BaseModel

# One image in a batch runs through other kernels than alone; random weights amplify rounding more than trained ones.
TOLERANCE = 1e-4


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    """A picture of coloured noise."""
    numbers = np.random.default_rng(seed)
    return Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=np.uint8))


def left_half(width: int = 16, height: int = 16) -> Image.Image:
    """A mask that is white in its left half."""
    array = np.zeros((height, width), dtype=np.uint8)
    array[:, : width // 2] = 255
    return Image.fromarray(array)


def soft(width: int = 16, height: int = 16, seed: int = 1) -> Image.Image:
    """A mask of all greys."""
    numbers = np.random.default_rng(seed)
    return Image.fromarray(numbers.integers(0, 256, (height, width), dtype=np.uint8))


def flat(grey: int, width: int = 16, height: int = 16) -> Image.Image:
    """A mask of one grey."""
    return Image.new("L", (width, height), grey)


def one_pixel(width: int = 16, height: int = 16, x: int = 5, y: int = 7) -> Image.Image:
    """A mask with one white pixel."""
    mask = flat(0, width, height)
    mask.putpixel((x, y), 255)
    return mask


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the rounding of other kernels."""
    return float((a - b).norm() / b.norm()) < TOLERANCE


def run(
    model: BaseModel,
    task,
    seeds=(0,),
    *,
    scheduler: str = "ddim",
    steps: int = 4,
    scale: float = 2.0,
    batch_size: int | None = None,
    **sampler,
) -> SampleResult:
    """One sampling with the defaults of these tests."""
    return LoopSampler(model, scheduler=scheduler, guidance=CFG(scale), **sampler).sample(
        task, seeds=seeds, steps=steps, batch_size=batch_size
    )


@contextmanager
def computed(model: BaseModel) -> Iterator[list[str]]:
    """The calls of a model's networks, by class, as they are made."""
    calls: list[str] = []
    handles = [
        part.register_forward_pre_hook(lambda module, args: calls.append(type(module).__name__))
        for module in model.modules()
        for part in [module, *(getattr(module, name) for name in ("encoder", "decoder") if hasattr(module, name))]
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
