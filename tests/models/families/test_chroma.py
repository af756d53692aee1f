"""Chroma: equal to its pipelines bit for bit; outside parity padding is left out, as its mask means."""

from __future__ import annotations

from dataclasses import replace
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
    opened,
    picture,
    pixels,
    unpacked,
)

from research import LoopSampler, load_model
from research.guidance import CFG
from research.models import BaseModel
from research.models.families.chroma import ChromaModel
from research.models.inspect.inspect_model import inspect_model
from research.tasks import ImageToImage, TextToImage

BOTH, SEEDS = [FOX, PIZZA], [0, 1]


@pytest.fixture(scope="module")
def pipe(chroma: Path) -> Any:
    return opened(chroma)


@pytest.fixture(scope="module")
def model(chroma: Path) -> BaseModel:
    return load_model(chroma, dtype="float32", device="cpu", max_sequence_length=16)


SETTINGS = {
    "no negative prompt": (BOTH, None, 5.0, (16, 16)),
    "negative prompts, odd size": (BOTH, ["bad", "worse"], 3.0, (24, 16)),
    "no guidance": (BOTH, None, 1.0, (16, 16)),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_text_to_image(pipe: Any, model: BaseModel, setting: str) -> None:
    prompts, negative, scale, size = SETTINGS[setting]
    told = {
        "prompt": prompts, "negative_prompt": negative, "guidance_scale": scale, "height": size[0], "width": size[1],
        "num_inference_steps": 3, "max_sequence_length": 16,
    }  # fmt: skip
    got = LoopSampler(model, guidance=CFG(scale), parity=True).sample(
        TextToImage(prompts, negative, *size), seeds=SEEDS, steps=3
    )
    assert torch.equal(got.latents, unpacked(by_pipeline(pipe, SEEDS, **told), *size))
    assert pixels(got.images) == pixels(by_pipeline(pipe, SEEDS, output_type="pil", **told))


PICTURES = [picture(20, 30, 1), picture(20, 30, 2)]


@pytest.mark.parametrize("strength", [0.55, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.6, 1.0))])
@pytest.mark.parametrize("given", [PICTURES, PICTURES[0]], ids=["a picture a seed", "one for both"])
def test_pictures(chroma: Path, model: BaseModel, given: Any, strength: float) -> None:
    size = (24, 16)
    call = {"max_sequence_length": 16, "guidance_scale": 3.0, "negative_prompt": ["bad", "bad"]}
    want = by_pipeline_of_pictures(chroma, "ChromaImg2ImgPipeline", size, given, strength, 5, **call)
    sampler = LoopSampler(model, guidance=CFG(3.0), parity=True)
    got = sampler.sample(ImageToImage(BOTH, given, strength, "bad", *size), seeds=SEEDS, steps=5)
    assert torch.equal(got.latents, want)


def test_padding_is_left_out(model: ChromaModel) -> None:
    """It is attended to by the pipeline, whose mask of 0 and 1 is added to attention's logarithm."""
    told, x, t = model.condition([FOX]), torch.randn(1, 4, 8, 8), torch.tensor(500.0)
    assert told.embeds is not None
    assert told.mask is not None
    text = int(told.mask.sum())  # with one token of padding, to which the network was trained
    embeds = told.embeds.clone()
    embeds[:, text:] = torch.randn_like(embeds[:, text:])
    other, cut = replace(told, embeds=embeds), replace(told, embeds=embeds[:, :text], mask=told.mask[:, :text])
    with torch.no_grad():
        a, b, c = (model.evaluate(x, t, each) for each in (told, other, cut))
        as_pipeline = [model.evaluate(x, t, each, parity=True) for each in (told, other)]
    assert torch.equal(a, b)
    assert (a - c).abs().max() < 1e-5 * a.std()
    assert (as_pipeline[0] - as_pipeline[1]).abs().max() > 0.1 * a.std()


def test_alone_as_in_a_batch(model: BaseModel) -> None:
    sampler = LoopSampler(model, guidance=CFG(3.0))
    both = sampler.sample(TextToImage(BOTH, "bad", 16, 24), seeds=SEEDS, steps=3).latents
    alone = sampler.sample(TextToImage(PIZZA, "bad", 16, 24), seeds=1, steps=3).latents
    assert (both[1] - alone[0]).abs().max() < 1e-5 * both.std()


def test_outline_and_inspection(chroma: Path, model: BaseModel) -> None:
    model.choose()
    assert_outlined(chroma, model)
    found = inspect_model(chroma)
    assert (found.verdict, found.family) == ("safe", "chroma")
