"""What a feature cache saves and what it costs: with and without it on an embedded model, side by side in one run.

    python benchmarks/feature_cache.py [--model emoji] [--scheduler ddim] [--steps 25] [--images 8] [--rounds 5]

A round times the denoising of the same images without a cache and with each setting, in an order that alternates; the ratio is
the median over the rounds of cached to plain. The error is that of the final latents (root mean square, relative to the plain
ones) and of the pictures (PSNR in decibels), averaged over the images. One thread.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from research import LoopSampler, load_model
from research.guidance import CFG
from research.hooks import FeatureCache
from research.sampling import SampleResult
from research.tasks import TextToImage, Unconditional

PROMPTS = (
    "pizza on a blue background",
    "cat face on a green background",
    "strawberry on a white background",
    "penguin on an orange background",
)
CACHES: tuple[dict[str, Any], ...] = (
    {"every": 1},
    {"every": 2},
    {"every": 3},
    {"every": 5},
    {"every": None, "threshold": 0.05},
    {"every": None, "threshold": 0.1},
    {"every": None, "threshold": 0.2},
    {"every": 5, "threshold": 0.1},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a zoo name, a directory, or a hub id")
    parser.add_argument("--scheduler", default="ddim")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    diffusers.logging.set_verbosity_error()
    model = load_model(arguments.model, device=arguments.device)
    text = "text" in model.supports
    seeds = range(arguments.images)
    task = TextToImage([PROMPTS[k % len(PROMPTS)] for k in seeds]) if text else Unconditional()
    guidance = CFG(arguments.scale) if text else None

    def sample(cache: dict[str, Any] | None) -> SampleResult:
        hooks = [] if cache is None else [FeatureCache(**cache, blocks=arguments.blocks)]
        sampler = LoopSampler(model, scheduler=arguments.scheduler, guidance=guidance, hooks=hooks)
        return sampler.sample(task, seeds=seeds, steps=arguments.steps, progress=False)

    cells: list[dict[str, Any] | None] = [None, *CACHES]
    results = [sample(cell) for cell in cells]  # and warm up
    seconds: list[list[float]] = [[] for _ in cells]
    for round_ in range(arguments.rounds):
        places = list(range(len(cells)))
        for place in places if round_ % 2 else places[::-1]:
            seconds[place].append(sample(cells[place]).timings["denoise"])

    print(
        f"{platform.processor() or platform.machine()}, {model.device}, 1 thread, torch {torch.__version__}, diffusers "
        f"{diffusers.__version__}"
    )
    print(
        f"{arguments.model}, {arguments.scheduler}, {arguments.steps} steps, {arguments.images} images, "
        f"{f'CFG {arguments.scale:g}, ' if text else ''}{arguments.rounds} paired rounds; without a cache "
        f"{statistics.median(seconds[0]):.3f} s"
    )
    print(f"{'cache':<28} {'deep':>6} {'time':>6} {'latents':>8} {'PSNR':>6}")
    rows = []
    for place, cache in enumerate(CACHES, start=1):
        row = {"cache": cache, **compared(results[0], results[place])}
        row["time"] = statistics.median(a / b for a, b in zip(seconds[place], seconds[0], strict=True))
        rows.append(row)
        name = " ".join(f"{key}={value}" for key, value in cache.items())
        print(f"{name:<28} {row['deep']:>6.2f} {row['time']:>6.2f} {row['latents']:>8.4f} {row['psnr']:>6.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


def compared(plain: SampleResult, cached: SampleResult) -> dict[str, float]:
    """The part of evaluations with the deep blocks, and how far latents and pictures are from the plain ones."""
    trace = cached.trace["feature_cache"]
    error = (cached.latents - plain.latents).flatten(1).norm(dim=1) / plain.latents.flatten(1).norm(dim=1)
    return {
        "deep": statistics.fmean(trace["deep_evaluations"]) / trace["evaluations"],
        "latents": float(error.mean()),
        "psnr": statistics.fmean(map(psnr, pixels(plain.images), pixels(cached.images))),
    }


def pixels(images: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(image, dtype=np.float64) / 255 for image in images]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In decibels, for pixels in [0, 1]; infinite if they are equal."""
    error = float(((one - other) ** 2).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


if __name__ == "__main__":
    main()
