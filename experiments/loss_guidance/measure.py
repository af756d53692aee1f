"""What loss guidance did to the images of a sweep: the loss itself, or the PSNR of what was known.

Prints a table, and saves a sheet with a column for each of its rows.

    python experiments/loss_guidance/measure.py outputs/loss_colour colour.png
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from research.image_tensors import images_to_pixels
from research.jobs.build import build

SHOWN, CELL = 4, 48


def jobs(folder: Path) -> list[tuple[dict[str, Any], list[Image.Image]]]:
    """The jobs that are done with their images, by base, loss, mode and scale."""
    found = []
    for file in folder.glob("*/result.json"):
        result = json.loads(file.read_text(encoding="utf-8"))
        if result["status"] == "done":
            images = [Image.open(path).convert("RGB") for path in sorted((file.parent / "images").glob("*.png"))]
            found.append((result, images))
    return sorted(found, key=lambda job: key(job[0]))


def key(result: dict[str, Any]) -> tuple[Any, ...]:
    """Loss, scale of the base, mode and scale."""
    guidance = result["config"]["guidance"]
    return (
        guidance["loss"]["_target_"].rpartition(".")[2],
        guidance["base"]["scale"],
        guidance["mode"],
        guidance["scale"],
    )


def measured(result: dict[str, Any], images: list[Image.Image]) -> tuple[str, float]:
    """The mean loss; of a squared norm of pixels in [-1, 1] the peak signal-to-noise ratio in dB."""
    loss = build(result["config"]["guidance"]["loss"], "guidance.loss")
    pixels = images_to_pixels(images)
    values = loss(pixels)
    name = type(loss).__name__
    if name == "SuperResolution":
        count = torch.tensor(pixels[0].numel() / loss.factor**2)
    elif name == "Inpainting":
        # a picture wrong by 1 all over has the loss "number of known values"
        flat = torch.zeros_like(pixels)
        count = loss._known(flat).expand_as(flat).square().flatten(1).sum(1)
    else:
        return "distance", float(values.mean())
    return "PSNR of the known, dB", float((10 * torch.log10(4 * count / values)).mean())


def main(folder: Path, sheet: Path) -> None:
    rows = []
    for result, images in jobs(folder):
        name, base, mode, scale = key(result)
        what, value = measured(result, images)
        score = result["metrics"].get("clip_score", math.nan)
        seconds = result["timings"]["denoise"]
        if not rows:
            print(f"| loss | CFG | mode | scale | {what} | CLIP score | denoising, s |\n|---|---|---|---|---|---|---|")
        print(f"| {name} | {base:g} | {mode} | {scale:g} | {value:.3f} | {score:.1f} | {seconds:.1f} |")
        rows.append(images[:: max(1, len(images) // SHOWN)][:SHOWN])
    page = Image.new("RGB", (CELL * len(rows), CELL * SHOWN))
    for x, images in enumerate(rows):
        for y, image in enumerate(images):
            page.paste(image.resize((CELL, CELL)), (x * CELL, y * CELL))
    page.save(sheet, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
