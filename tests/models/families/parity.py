"""Runs of a pipeline and of the sampler that are to be equal bit for bit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from support.tiny_models import quiet

from research import LoopSampler
from research.models import BaseModel
from research.models.summary import outline
from research.sampling.packing import unpack

FOX, PIZZA = "a fox", "no pizza"


def opened(directory: Path, cls: str | None = None, **more: Any) -> Any:
    """The pipeline of a directory, or another class of its parts."""
    index = json.loads((directory / "model_index.json").read_text())
    # diffusers itself wants to be told that T5 is not there
    absent = {name: None for name, entry in index.items() if isinstance(entry, list) and entry[0] is None}
    pipe = diffusers.DiffusionPipeline.from_pretrained(directory, **absent)
    if cls is not None:
        known = inspect.signature(getattr(diffusers, cls).__init__).parameters
        parts = {name: part for name, part in pipe.components.items() if name in known}
        pipe = getattr(diffusers, cls)(**parts, **more)
    return quiet(pipe)


def by_pipeline(
    pipe: Any, seeds: Sequence[int], model: BaseModel | None = None, scheduler: Any = "model", **call: Any
) -> Any:
    """Final latents of a pipeline, with a scheduler by its short name on a model; or pictures, by ``output_type``."""
    if model is not None:
        pipe.scheduler = LoopSampler(model, scheduler, parity=True)._new_solver().scheduler
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return pipe(generator=generators, **{"output_type": "latent", **call}).images


def picture(height: int, width: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def pixels(images: Sequence[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def assert_outlined(directory: Path, model: BaseModel) -> None:
    """What is told of a model from its small files is what the loaded one says."""
    told = outline(str(directory))
    assert told is not None
    for name in ("family", "supports", "role", "scheduler_config", "distilled_guidance", "max_length", "size_multiple"):
        assert getattr(told, name) == getattr(model, name), name
    assert told.latent_shape() == model.latent_shape()
    for kind in ("self-attention", "attention-map", "cross-attention", "block"):
        assert told.layers(kind) == model.layers(kind), kind


def unpacked(latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The latents [N, C, h, w] of a pipeline that hands them out as tokens, of pictures of so many pixels and a factor of 2."""
    return unpack(latents, height // 2, width // 2)


@cache
def _of_pictures(directory: Path, cls: str) -> Any:
    return opened(directory, cls)


def by_pipeline_of_pictures(
    directory: Path, cls: str, size: tuple[int, int], image: Any, strength: float, steps: int, **call: Any
) -> torch.Tensor:
    """Final latents [N, C, h, w] of an image-to-image or inpainting pipeline, of the seeds 0 and 1."""
    pipe = _of_pictures(directory, cls)
    told = {"image": image, "strength": strength, "num_inference_steps": steps, "height": size[0], "width": size[1]}
    latents = by_pipeline(pipe, [0, 1], prompt=[FOX, PIZZA], **told, **call)
    return unpacked(latents, *size) if latents.ndim == 3 else latents


def mask_of(height: int, width: int) -> Image.Image:
    """White in the middle, not on the borders of latents."""
    mask = Image.new("L", (width, height))
    mask.paste(255, (3, 2, width - 5, height - 3))
    return mask
