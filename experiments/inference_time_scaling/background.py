"""Whether the background has the colour that the prompt names: a verifier without a network, and a number of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from research.metrics.base import Metric, MetricResult, comparable, mean_over_images

# of the pictures that the embedded models were trained on (tools/zoo/data.py)
COLOURS = {
    "white": (255, 255, 255),
    "gray": (150, 150, 150),
    "black": (24, 24, 24),
    "red": (214, 60, 60),
    "orange": (240, 150, 60),
    "yellow": (250, 224, 110),
    "green": (96, 170, 90),
    "blue": (70, 120, 220),
    "purple": (130, 80, 180),
    "pink": (245, 165, 195),
}
DEFINITION = "100 * share of the outermost two pixels that are nearest to the colour of '... on a COLOUR background'"


class Background(Metric):
    """``background``: of the pixels at the border, how many percent are nearest to the colour that the prompt asks for."""

    name = "background"

    def compute(self, images: Sequence[Image.Image], prompts: Sequence[str], *, device: Any = "cpu") -> MetricResult:
        names = list(COLOURS)
        palette = np.array([COLOURS[name] for name in names], dtype=np.float64)
        found = []
        for image, prompt in zip(images, prompts, strict=True):
            pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
            inside = np.zeros(pixels.shape[:2], dtype=bool)
            inside[2:-2, 2:-2] = True
            border = pixels[~inside]
            nearest = np.square(border[:, None] - palette[None]).sum(-1).argmin(1)
            asked = next((k for k, name in enumerate(names) if f"on a {name} background" in prompt), -1)
            found.append(100.0 * float((nearest == asked).mean()))
        return mean_over_images(self.name, found, {"comparable": comparable(DEFINITION), "better": "higher"})
