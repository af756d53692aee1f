"""Every task in half precision: the same pictures as in fp32, but for rounding."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from research import LoopSampler, load_model
from research.guidance import CFG
from research.models import BaseModel
from research.tasks import DepthToImage, ImageToImage, Inpaint, Interpolation, Inversion

PROMPT = "pizza on a blue background"
TASKS: dict[str, tuple[str, str, Any, float]] = {
    "image to image": ("emoji", "dpmpp_2m", ImageToImage(PROMPT, "zoo:sketch_pizza", 0.6), 3.0),
    "inpaint by compositing": ("emoji", "euler", Inpaint(PROMPT, "zoo:pizza", "zoo:mask_half"), 2.0),
    "inpaint with nine channels": ("emoji-inpaint", "heun", Inpaint(PROMPT, "zoo:pizza", "zoo:mask_half", 0.7), 2.0),
    "depth to image": ("emoji-depth", "ddim", DepthToImage(PROMPT, "zoo:pizza"), 3.0),
    "interpolation": ("emoji", "ddim", Interpolation(0, 1, 2, [PROMPT, "fox on a red background"]), 3.0),
    "inversion": ("emoji", "ddim", Inversion(PROMPT, "zoo:pizza"), 1.0),
}


@cache
def model(name: str, dtype: str) -> BaseModel:
    return load_model(name, dtype=dtype, device="cpu")


_BY_DEFAULT = ("image to image", "inpaint with nine channels")


@pytest.mark.parametrize("name", [n if n in _BY_DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in TASKS])
@pytest.mark.spread(1)
def test_the_same_pictures(name: str) -> None:
    path, scheduler, task, scale = TASKS[name]
    full, half = (
        LoopSampler(model(path, dtype), scheduler, guidance=CFG(scale)).sample(
            task, seeds=None if name == "interpolation" else [0], steps=6
        )
        for dtype in ("float32", "bfloat16")
    )
    assert half.nfe == full.nfe
    for a, b in zip(half.images, full.images, strict=True):
        # of 255; rounding grows a little from step to step
        assert np.abs(np.asarray(a, dtype=float) - np.asarray(b)).mean() < 6
