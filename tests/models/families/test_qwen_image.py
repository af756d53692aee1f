"""Qwen-Image: equal to its pipelines bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.families.parity import (
    FOX,
    PIZZA,
    assert_outlined,
    by_pipeline,
    by_pipeline_of_pictures,
    mask_of,
    opened,
    picture,
    pixels,
    unpacked,
)

from research import LoopSampler, load_model
from research.guidance import CFG, Renorm
from research.models import BaseModel
from research.models.inspect.inspect_model import inspect_model
from research.tasks import ImageToImage, Inpaint, TextToImage

BOTH, SEEDS = [FOX, PIZZA], [0, 1]


@pytest.fixture(scope="module")
def pipe(qwen_image: Path) -> Any:
    return opened(qwen_image)


@pytest.fixture(scope="module")
def model(qwen_image: Path) -> BaseModel:
    return load_model(qwen_image, dtype="float32", device="cpu")


SETTINGS = {
    "no negative prompt": (BOTH, None, (16, 16)),
    "negative prompts, odd size": (BOTH, ["bad", "worse"], (24, 16)),
    "one length": ([FOX, "a dog"], [" ", " "], (16, 16)),
    "one sentence for two seeds": (FOX, "bad", (16, 16)),
}


@pytest.mark.spread(2)
@pytest.mark.parametrize("setting", SETTINGS)
def test_text_to_image(pipe: Any, model: BaseModel, setting: str) -> None:
    prompts, negative, size = SETTINGS[setting]
    told = {
        "prompt": [prompts] * 2 if isinstance(prompts, str) else prompts,
        "negative_prompt": [negative] * 2 if isinstance(negative, str) else negative,
        "true_cfg_scale": 4.0, "height": size[0], "width": size[1], "num_inference_steps": 3,
    }  # fmt: skip
    got = LoopSampler(model, guidance=Renorm(CFG(4.0)), parity=True).sample(
        TextToImage(prompts, negative, *size), seeds=SEEDS, steps=3
    )
    assert torch.equal(got.latents, unpacked(by_pipeline(pipe, SEEDS, **told), *size))
    assert pixels(got.images) == pixels(by_pipeline(pipe, SEEDS, output_type="pil", **told))
    assert got.nfe == (3 if negative is None else 6)


PICTURES = [picture(20, 30, 1), picture(20, 30, 2)]


@pytest.mark.parametrize("strength", [0.55, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.6, 1.0))])
@pytest.mark.parametrize("given", [PICTURES, PICTURES[0]], ids=["a picture a seed", "one for both"])
def test_pictures(qwen_image: Path, model: BaseModel, given: Any, strength: float) -> None:
    size, sampler = (24, 16), LoopSampler(model, guidance=Renorm(CFG(3.0)), parity=True)
    call = {"true_cfg_scale": 3.0, "negative_prompt": ["bad", "bad"]}
    want = by_pipeline_of_pictures(qwen_image, "QwenImageImg2ImgPipeline", size, given, strength, 5, **call)
    got = sampler.sample(ImageToImage(BOTH, given, strength, "bad", *size), seeds=SEEDS, steps=5)
    assert torch.equal(got.latents, want)
    mask = mask_of(24, 16)
    call["mask_image"] = mask
    want = by_pipeline_of_pictures(qwen_image, "QwenImageInpaintPipeline", size, given, strength, 5, **call)
    got = sampler.sample(Inpaint(BOTH, given, mask, strength, "bad", *size), seeds=SEEDS, steps=5)
    assert torch.equal(got.latents, want)


def test_alone_as_in_a_batch(model: BaseModel) -> None:
    """Texts of other lengths stand in one batch."""
    sampler = LoopSampler(model, guidance=Renorm(CFG(3.0)))
    both = sampler.sample(TextToImage(BOTH, "bad", 16, 24), seeds=SEEDS, steps=3).latents
    alone = sampler.sample(TextToImage(PIZZA, "bad", 16, 24), seeds=1, steps=3).latents
    assert (both[1] - alone[0]).abs().max() < 1e-5 * both.std()


def test_pictures_go_both_ways_outside_parity(model: BaseModel) -> None:
    task = ImageToImage(BOTH, PICTURES, 0.4, None, 24, 16)
    both = LoopSampler(model).sample(task, seeds=SEEDS, steps=5)
    alone = LoopSampler(model).sample(ImageToImage(PIZZA, PICTURES[1], 0.4, None, 24, 16), seeds=1, steps=5)
    assert (both.latents[1] - alone.latents[0]).abs().max() < 1e-5 * both.latents.std()


def test_what_is_dropped_of_a_text_is_said(qwen_image: Path) -> None:
    short = load_model(qwen_image, dtype="float32", device="cpu", max_sequence_length=8)
    assert short.text.dropped("12345678") is None
    assert short.text.dropped("12345678ab") == "ab"
    assert short.condition([FOX]).embeds.shape[1] == 8


def test_outline_and_inspection(qwen_image: Path, model: BaseModel) -> None:
    assert_outlined(qwen_image, model)
    found = inspect_model(qwen_image)
    assert (found.verdict, found.family) == ("safe", "qwen-image")
