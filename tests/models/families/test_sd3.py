"""Stable Diffusion 3 and 3.5: equal to their pipeline bit for bit, with guidance that perturbs layers too."""

from __future__ import annotations

from functools import cache
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
)
from support.tiny_models import edit_json

from research import LoopSampler, load_model
from research.errors import ConfigError, ModelError
from research.guidance import CFG, PAG, SAG, SEG, SLG, Interval
from research.hooks import DynamicPrompt
from research.models import BaseModel
from research.models.inspect.inspect_model import inspect_model
from research.tasks import ImageToImage, Inpaint, TextToImage

SEEDS = [0, 2**40]
BOTH = [FOX, PIZZA]


@cache
def loaded(directory: Path, **more: Any) -> BaseModel:
    return load_model(directory, device="cpu", **{"dtype": "float32", **more})


# prompts, negative prompts, scale, height and width
SETTINGS = {
    "no negative prompt": (BOTH, None, 5.0, (16, 16)),
    "negative prompts, odd size": (BOTH, ["blurry", "bad"], 3.0, (24, 16)),
    "no guidance": (BOTH, None, 1.0, (16, 16)),
    "one sentence for two seeds": (FOX, "bad", 5.0, (16, 16)),
}


@pytest.mark.parametrize("name", ["sd3", "sd35"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.spread(1)
def test_text_to_image(name: str, setting: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(name)
    model, pipe = loaded(directory), opened(directory)
    prompts, negative, scale, (height, width) = SETTINGS[setting]
    want = by_pipeline(
        pipe, SEEDS, prompt=prompts, negative_prompt=negative, guidance_scale=scale, height=height, width=width,
        num_inference_steps=3, num_images_per_prompt=2 if isinstance(prompts, str) else 1,
    )  # fmt: skip
    task = TextToImage(prompts, negative, height, width)
    got = LoopSampler(model, guidance=CFG(scale), parity=True).sample(task, seeds=SEEDS, steps=3)
    assert torch.equal(got.latents, want)
    free = LoopSampler(model, guidance=CFG(scale)).sample(task, seeds=SEEDS, steps=3)
    assert float((free.latents - want).abs().max()) < 1e-5 * float(want.std())
    alone = TextToImage(prompts if isinstance(prompts, str) else prompts[1], negative and negative[-1], height, width)
    if not isinstance(prompts, str):
        one = LoopSampler(model, guidance=CFG(scale)).sample(alone, seeds=SEEDS[1:], steps=3)
        assert float((one.latents[0] - free.latents[1]).abs().max()) < 1e-5 * float(want.std())


def test_pictures_are_those_of_the_pipeline(sd3: Path) -> None:
    want = by_pipeline(opened(sd3), [3], prompt=FOX, height=16, width=16, num_inference_steps=2, output_type="pil")
    got = LoopSampler(loaded(sd3), guidance=CFG(7.0), parity=True).sample(
        TextToImage(FOX, None, 16, 16), seeds=3, steps=2
    )
    assert got.images[0].tobytes() == want[0].tobytes()


PICTURES = [picture(20, 30, 1), picture(20, 30, 2)]


@pytest.mark.parametrize("strength", [0.55, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.6, 1.0))])
@pytest.mark.parametrize("size", [(24, 16), pytest.param((16, 16), marks=pytest.mark.slow)])
def test_pictures(sd3: Path, size: tuple[int, int], strength: float) -> None:
    sampler, seeds = LoopSampler(loaded(sd3), guidance=CFG(4.0), parity=True), [0, 1]
    call = {"guidance_scale": 4.0, "negative_prompt": ["bad", "bad"]}
    want = by_pipeline_of_pictures(sd3, "StableDiffusion3Img2ImgPipeline", size, PICTURES, strength, 5, **call)
    got = sampler.sample(ImageToImage(BOTH, PICTURES, strength, "bad", *size), seeds=seeds, steps=5)
    assert torch.equal(got.latents, want)
    call["mask_image"] = mask = mask_of(*size)
    for given in (PICTURES, PICTURES[0]):
        want = by_pipeline_of_pictures(sd3, "StableDiffusion3InpaintPipeline", size, given, strength, 5, **call)
        got = sampler.sample(Inpaint(BOTH, given, mask, strength, "bad", *size), seeds=seeds, steps=5)
        assert torch.equal(got.latents, want)


def test_a_picture_comes_to_the_models_own_size(sd3: Path) -> None:
    pipe, given = opened(sd3, "StableDiffusion3Img2ImgPipeline"), picture(20, 30, 1)
    want = by_pipeline(pipe, [3], prompt=FOX, image=given, strength=0.5, num_inference_steps=4, guidance_scale=1.0)
    got = LoopSampler(loaded(sd3), parity=True).sample(ImageToImage(FOX, given, 0.5), seeds=3, steps=4)
    assert torch.equal(got.latents, want)
    assert got.warnings == ["task.image: resized from 30 x 20 to 16 x 16 pixels."]


def test_skip_layer_guidance(sd35: Path) -> None:
    want = by_pipeline(
        opened(sd35), SEEDS, prompt=BOTH, negative_prompt=["", ""], guidance_scale=4.0, height=16, width=16,
        num_inference_steps=6, skip_guidance_layers=[1], skip_layer_guidance_stop=0.4, skip_layer_guidance_scale=2.8,
    )  # fmt: skip
    skipped = SLG(2.8, layers="transformer_blocks.1", base=CFG(4.0))
    guidance = Interval(skipped, steps=(0.01, 0.4), outside="base")
    got = LoopSampler(loaded(sd35), guidance=guidance, parity=True).sample(
        TextToImage(BOTH, "", 16, 16), seeds=SEEDS, steps=6
    )
    assert torch.equal(got.latents, want)
    assert got.nfe_by_branch == {"uncond": 6, "cond": 6, "skipped": 2}


def test_perturbed_attention_beside_a_text(sd3: Path) -> None:
    pipe = opened(sd3, "StableDiffusion3PAGPipeline", pag_applied_layers=["blocks.1"])
    want = by_pipeline(
        pipe, SEEDS, prompt=BOTH, negative_prompt=["", ""], guidance_scale=4.0, pag_scale=2.0, height=16, width=16,
        num_inference_steps=3,
    )  # fmt: skip
    model = loaded(sd3)
    got = LoopSampler(model, guidance=PAG(2.0, base=CFG(4.0)), parity=True).sample(
        TextToImage(BOTH, "", 16, 16), seeds=SEEDS, steps=3
    )
    plain = LoopSampler(model, guidance=CFG(4.0), parity=True).sample(
        TextToImage(BOTH, "", 16, 16), seeds=SEEDS, steps=3
    )
    # the pipeline evaluates the third prediction with the others, and masks with numbers
    assert float((got.latents - want).abs().max()) < 1e-5 * float(want.std())
    assert float((plain.latents - want).abs().max()) > 0.01 * float(want.std())


@pytest.mark.parametrize("guidance", [SEG(1.0), SAG(0.5)])
def test_what_reads_a_map_is_refused(sd3: Path, guidance: Any) -> None:
    with pytest.raises(ConfigError, match=r"guidance: S.G (blurs|reads) .*; sd3 has no such layer\."):
        LoopSampler(loaded(sd3), guidance=guidance)


def test_what_is_told_before_it_loads(sd3: Path, sd35: Path) -> None:
    for directory in (sd3, sd35):
        assert_outlined(directory, loaded(directory))
        found = inspect_model(directory)
        assert (found.verdict, found.family) == ("safe", "sd3")


def test_fewer_tokens(sd3: Path) -> None:
    model = load_model(sd3, device="cpu", max_sequence_length=10)
    assert model.condition([FOX]).embeds.shape[1] == 24 + 10
    assert model.text.dropped("abcdefghijklmnop") is None  # the towers of CLIP take more


def test_sentences_move_with_their_pooled_text(sd3: Path) -> None:
    """At share 0 and 1 of a blend the condition is that of the one and of the other sentence."""
    model = loaded(sd3)
    one, two = model.condition([FOX]), model.condition([PIZZA])
    mixed = [one.mixed(two, lambda a, b, share=share: a + share * (b - a)) for share in (0.0, 0.5, 1.0)]
    assert torch.equal(mixed[0].pooled, one.pooled)
    assert torch.allclose(mixed[2].pooled, two.pooled)
    assert torch.allclose(mixed[2].embeds, two.embeds, atol=1e-6)
    assert not torch.allclose(mixed[1].pooled, one.pooled)
    steady, turned = (
        LoopSampler(model, guidance=CFG(4.0), hooks=[DynamicPrompt({0.0: FOX, 0.5: last})]).sample(
            TextToImage(FOX, None, 16, 16), seeds=0, steps=2
        )
        for last in (FOX, PIZZA)
    )
    assert not torch.equal(steady.latents, turned.latents)
    with pytest.raises(
        ConfigError, match="DynamicPrompt needs a text encoder with a token of the sentence at each place"
    ):
        LoopSampler(model, hooks=[DynamicPrompt(weights={"fox": 0.5})])


def test_bad_input(sd3: Path, copied: Any) -> None:
    with pytest.raises(ConfigError, match=r"task\.height: found 18; accepted is a positive multiple of 4"):
        LoopSampler(loaded(sd3)).sample(TextToImage(FOX, height=18, width=16), seeds=0, steps=2)
    with pytest.raises(ConfigError, match="told no guidance scale"):
        load_model(sd3, device="cpu", distilled_guidance=3.0)
    broken = copied(sd3)
    edit_json(broken / "model_index.json", text_encoder_2=[None, None])
    with pytest.raises(ModelError, match="names no text_encoder_2, which its pipeline needs"):
        load_model(broken, device="cpu")
