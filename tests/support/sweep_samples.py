"""Sweep folders as the runner leaves them: records, traces and real PNGs, without running a model."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": "#d9463e", "blue": "#3f72c9", "green": "#4c9d57", "yellow": "#e9c846", "white": "#f4f4f0"}
PROMPTS = [
    "pizza on a blue background",
    "fox on a red background",
    "strawberry on a white background",
    "cat face on a green background",
    "hamburger on a yellow background",
    "tiger on a white background",
    "apple on a blue background",
    "smiling face on a red background",
]
SOLVER_ERROR = {"ddim": 1.0, "euler": 0.9, "dpmpp_2m": 0.45, "heun": 0.35}
EVALUATIONS = {"heun": 2}


def picture(prompt: str, seed: int, noise: float, saturation: float, size: int = 32) -> Image.Image:
    """A shape on the prompt's colour, rougher with more `noise`, harsher with more `saturation`."""
    rng = np.random.default_rng([seed, len(prompt)])
    background = next((c for name, c in COLOURS.items() if name in prompt), "#b9b4ac")
    image = Image.new("RGB", (size * 4, size * 4), background)
    draw = ImageDraw.Draw(image)
    margin = size * 4 * rng.uniform(0.12, 0.2)
    box = (margin, margin, size * 4 - margin, size * 4 - margin)
    fill = tuple(int(v) for v in rng.uniform(40, 240, 3))
    [draw.ellipse, draw.rectangle][len(prompt) % 2](box, fill=fill, outline="#33302c", width=size // 5)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX)).astype(float)
    pixels = 127 + (pixels - 127) * saturation + rng.normal(0, 90 * noise, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_job(
    sweep_dir: Path,
    *,
    scheduler: str = "ddim",
    scale: float | None = 3.0,
    steps: int = 10,
    prompts: Sequence[str] = tuple(PROMPTS),
    seed: int = 0,
    error: str | None = None,
    images: bool = True,
    number: int = 0,
    task: dict[str, Any] | None = None,
) -> Path:
    """Writes one job's folder and returns it."""
    guidance: dict[str, Any] = {"_target_": "research.guidance.NoGuidance"}
    if scale is not None:
        guidance = {"_target_": "research.guidance.CFG", "scale": scale}
    config = {
        "model": {"path": "emoji", "dtype": "auto", "device": "auto"},
        "scheduler": {"name": scheduler, "class_name": f"{scheduler.title()}Scheduler", "options": {}},
        "guidance": guidance,
        "task": task or {"_target_": "research.tasks.TextToImage", "negative_prompt": None},
        "hooks": {},
        "prompts": list(prompts),
        "steps": steps,
        "seed": seed,
        "images_per_prompt": 1,
        "output_dir": "/home/someone/outputs",
        "sweep_name": sweep_dir.name,
    }
    job_id = hashlib.sha256(json.dumps(config).encode()).hexdigest()[:12]
    folder = sweep_dir / job_id
    (folder / "images").mkdir(parents=True)
    strength = 1.0 if scale is None else scale
    noise = SOLVER_ERROR.get(scheduler, 0.7) * 3 / steps
    fid = 6 + 60 * noise**1.5 + 1.6 * (math.log(strength / 3.5)) ** 2 + 0.02 * strength**2
    clip = 71 - 14 * noise - 1.1 * (math.log(strength / 4)) ** 2
    nfe = steps * EVALUATIONS.get(scheduler, 1) * (2 if strength != 1 else 1)
    records = []
    if images and error is None:
        for k, prompt in enumerate(prompts):
            file = folder / "images" / f"{k:05d}_seed{seed + k}.png"
            picture(prompt, seed + k, noise, 1 + max(0.0, strength - 4) / 8).save(file)
            record = {"file": f"images/{file.name}", "seed": seed + k, "prompt": prompt}
            records.append({**record, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()})
    denoise = 0.004 * nfe * len(prompts)
    result: dict[str, Any] = {
        "job_id": job_id,
        "status": "done" if error is None else "failed",
        "error": error,
        "overrides": [f"scheduler={scheduler}", f"guidance.scale={scale}", f"steps={steps}"],
        "config": config,
        "metrics": {"clip_score": clip, "clip_score_se": 0.8, "fid": fid} if error is None else {},
        "metrics_info": _metrics_info(len(prompts), clip, job_id) if error is None else {},
        "timings": {
            "load": 0.4 if number == 0 else 0.0,
            "encode": 0.02,
            "denoise": denoise,
            "decode": 0.03,
            "metrics": 0.2,
            "total": denoise + 0.3,
        },
        "images_per_second": len(prompts) / denoise,
        "nfe": nfe,
        "nfe_by_branch": {"cond": nfe // 2, "uncond": nfe // 2},
        "n_images": len(prompts) if error is None else 0,
        "seeds": [seed + k for k in range(len(prompts))],
        "images": records,
        "truncated": [],
        "warnings": ["fid: 8 images for 128 features"] if error is None else [],
        "weights_sha256": "ab" * 32,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "diffusers": "0.42.1", "research": "0.1.0"},
        "device": "cpu",
        "peak_memory_bytes": 700_000_000,
        "sweep_name": sweep_dir.name,
        "created": f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}Z",
    }
    if error is not None:
        (folder / "traceback.txt").write_text(f"Traceback (most recent call last):\n  ...\nValueError: {error}\n")
    stages = [
        {
            "index": i,
            "step": i,
            "t": 999 - i * 1000 / steps,
            "sigma": 10.0 / (i + 1),
            "log_snr": -5 + 9 * i / steps,
            "seconds": 0.03,
        }
        for i in range(steps)
    ]
    trace = {
        "stages": stages,
        "x0_norm": [1.0 + 0.1 * i for i in range(steps)],
        "record": [{"index": i, "log_snr": stages[i]["log_snr"], "x0_std": 0.5} for i in range(steps)],
    }
    (folder / "trace.json").write_text(json.dumps(trace))
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_sweep(
    sweep_dir: Path,
    schedulers: Sequence[str] = ("ddim", "dpmpp_2m"),
    scales: Sequence[float | None] = (1.0, 3.0, 7.0),
    steps: Sequence[int] = (5, 10, 25),
    **kwargs: Any,
) -> Path:
    """Writes a grid of jobs and returns the sweep's folder."""
    for number, (scheduler, scale, count) in enumerate(itertools.product(schedulers, scales, steps)):
        write_job(sweep_dir, scheduler=scheduler, scale=scale, steps=count, number=number, **kwargs)
    return sweep_dir


def _metrics_info(n_images: int, clip: float, job_id: str) -> dict[str, Any]:
    # what makes a prompt hard is the same in all jobs; the mean is the metric
    hard, noise = np.arange(n_images) * 1.5, np.random.default_rng(int(job_id, 16)).normal(0, 0.4, n_images)
    scores = clip + (hard - hard.mean()) + (noise - noise.mean())
    features = {"name": "emoji-eval", "weights_sha256": "cd" * 32, "layer": "image_embeds", "dimension": 128}
    versions = {"torch": "2.13.0", "torchmetrics": "1.9.0"}
    return {
        "clip_score": {
            "model": "emoji-eval",
            "weights_sha256": "cd" * 32,
            "n_images": n_images,
            "truncated_prompts": 0,
            "per_image": scores.tolist(),
            "versions": versions,
            "warnings": [],
        },
        "fid": {
            "features": features,
            "reference": {"name": "emoji", "sha256": "ef" * 32, "num_samples": 3560},
            "n_images": n_images,
            "versions": versions,
            "warnings": [f"fid: {n_images} images for 128 features"],
        },
    }
