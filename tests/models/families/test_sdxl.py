"""Stable Diffusion XL: equal to its pipelines bit for bit, and right where they are not."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from models.families.parity import FOX, PIZZA, assert_outlined, by_pipeline, opened, picture, pixels
from PIL import Image
from support.tiny_models import edit_json

from research import LoopSampler, load_model
from research.errors import ConfigError, ModelError
from research.guidance import CFG, ICG, PAG
from research.models import BaseModel
from research.models.inspect.fit import checked_parts
from research.models.inspect.inspect_model import inspect_model
from research.tasks import ImageToImage, Inpaint, TextToImage

SEEDS = [0, 2**40]
BOTH = [FOX, PIZZA]


@cache
def loaded(directory: Path, **more: Any) -> BaseModel:
    return load_model(directory, device="cpu", **{"dtype": "float32", **more})


@pytest.fixture(scope="module")
def base(sdxl: Path) -> tuple[BaseModel, Any]:
    return loaded(sdxl), opened(sdxl)


# prompts, negative prompts (None: zeros stand for it, "": the empty sentence), scale, height and width
SETTINGS = {
    "no negative prompt": (BOTH, None, 5.0, (16, 16)),
    "the empty sentence": (BOTH, ["", ""], 5.0, (16, 16)),
    "negative prompts, odd size": (BOTH, ["blurry", "bad"], 3.0, (24, 16)),
    "no guidance": (BOTH, None, 1.0, (16, 16)),
    "one sentence for two seeds": (FOX, "bad", 5.0, (16, 16)),
}


@pytest.mark.parametrize("scheduler", ["model", pytest.param("dpmpp_2m", marks=pytest.mark.slow), "heun"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.spread(2)
def test_text_to_image(base: Any, setting: str, scheduler: str) -> None:
    model, pipe = base
    prompts, negative, scale, (height, width) = SETTINGS[setting]
    want = by_pipeline(
        pipe, SEEDS, model, scheduler, prompt=prompts, negative_prompt=negative, guidance_scale=scale, height=height,
        width=width, num_inference_steps=3, num_images_per_prompt=2 if isinstance(prompts, str) else 1,
    )  # fmt: skip
    sampler = LoopSampler(model, scheduler, guidance=CFG(scale), parity=True)
    got = sampler.sample(TextToImage(prompts, negative, height, width), seeds=SEEDS, steps=3)
    assert torch.equal(got.latents, want)


def test_pictures_and_one_image(base: Any) -> None:
    model, pipe = base
    told = {"prompt": FOX, "num_inference_steps": 2, "guidance_scale": 5.0}
    want = by_pipeline(pipe, [7], model, output_type="pil", **told)
    got = LoopSampler(model, guidance=CFG(5.0), parity=True).sample(TextToImage(FOX), seeds=7, steps=2)
    assert pixels(got.images) == pixels(want)


@pytest.mark.parametrize("name", ["sdxl_refiner", "sdxl"])
@pytest.mark.parametrize("negative", [["bad", "worse"], None])
@pytest.mark.spread(1)
def test_image_to_image(name: str, negative: Any, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(name)
    model, given = loaded(directory), [picture(24, 16, 1), picture(24, 16, 2)]
    pipe = opened(directory, None if name == "sdxl_refiner" else "StableDiffusionXLImg2ImgPipeline")
    want = by_pipeline(
        pipe, SEEDS, model, "euler_a", prompt=BOTH, image=given, strength=0.55, negative_prompt=negative, guidance_scale=4.0,
        num_inference_steps=5,
    )  # fmt: skip
    sampler = LoopSampler(model, "euler_a", guidance=CFG(4.0), parity=True)
    got = sampler.sample(ImageToImage(BOTH, given, 0.55, negative), seeds=SEEDS, steps=5)
    assert torch.equal(got.latents, want)


@pytest.mark.parametrize("name", ["sdxl_inpaint", "sdxl"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.spread(1)
def test_inpaint(name: str, strength: float, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(name)
    mask = Image.new("L", (16, 16))
    mask.paste(255, (3, 2, 11, 13))
    model, pipe = loaded(directory), opened(directory, "StableDiffusionXLInpaintPipeline")
    want = by_pipeline(
        pipe, SEEDS, model, prompt=BOTH, image=picture(16, 16, 1), mask_image=mask, strength=strength, guidance_scale=4.0,
        num_inference_steps=4, height=16, width=16,
    )  # fmt: skip
    sampler = LoopSampler(model, guidance=CFG(4.0), parity=True)
    got = sampler.sample(Inpaint(BOTH, picture(16, 16, 1), mask, strength), seeds=SEEDS, steps=4)
    assert torch.equal(got.latents, want)


@pytest.mark.slow
def test_a_distilled_network_is_told_the_scale(sdxl_distilled: Path) -> None:
    model, pipe = loaded(sdxl_distilled), opened(sdxl_distilled)
    for scale in (8.0, 5.0):
        model.choose(distilled_guidance=None if scale == 5.0 else scale)
        assert model.distilled_guidance == scale
        told = {"prompt": BOTH, "guidance_scale": scale, "num_inference_steps": 3}
        sampler = LoopSampler(model, parity=True)
        got = sampler.sample(TextToImage(BOTH), seeds=SEEDS, steps=3)
        assert torch.equal(got.latents, by_pipeline(pipe, SEEDS, **told))
    assert pixels(got.images) == pixels(by_pipeline(pipe, SEEDS, output_type="pil", **told))
    with pytest.raises(ConfigError, match=r"^task.negative_prompt: found 'bad'; .* without CFG"):
        sampler.sample(TextToImage(FOX, "bad"), seeds=1, steps=2)


@pytest.mark.slow
def test_latents_with_statistics_go_both_ways(sdxl_distilled: Path) -> None:
    model, given = loaded(sdxl_distilled), picture(16, 16, 1)
    pipe = opened(sdxl_distilled, "StableDiffusionXLImg2ImgPipeline")
    told = {"prompt": FOX, "image": given, "strength": 0.8, "guidance_scale": 5.0, "num_inference_steps": 4}
    got = LoopSampler(model, "euler", parity=True).sample(ImageToImage(FOX, given, 0.8), seeds=3, steps=4)
    assert torch.equal(got.latents, by_pipeline(pipe, [3], model, "euler", **told))


@pytest.mark.parametrize("scheduler", ["euler_a", "model", "heun", "dpmpp_2m"])
@pytest.mark.spread(1)
def test_base_and_refiner_as_an_ensemble(base: Any, sdxl_refiner: Path, scheduler: str) -> None:
    """The first denoises to a fifth of training time, the second goes on from its latents."""
    model, pipe = base
    refiner, refining = loaded(sdxl_refiner), opened(sdxl_refiner)
    told = {"prompt": BOTH, "negative_prompt": ["bad", "worse"], "num_inference_steps": 6, "guidance_scale": 4.0}
    half = by_pipeline(pipe, SEEDS, model, scheduler, denoising_end=0.8, **told)
    want = by_pipeline(refining, SEEDS, refiner, scheduler, image=half, denoising_start=0.8, **told)
    task = {"prompt": BOTH, "negative_prompt": ["bad", "worse"]}
    samplers = [LoopSampler(each, scheduler, guidance=CFG(4.0), parity=True) for each in (model, refiner)]
    first = samplers[0].sample(TextToImage(**task, denoising_end=0.8), seeds=SEEDS, steps=6).latents
    assert torch.equal(first, half)
    second = samplers[1].sample(TextToImage(**task, latents=first, denoising_start=0.8), seeds=SEEDS, steps=6)
    assert torch.equal(second.latents, want)


def test_alone_as_in_a_batch(base: Any) -> None:
    sampler = LoopSampler(base[0], guidance=CFG(5.0))
    both = sampler.sample(TextToImage(BOTH, "bad"), seeds=[0, 1], steps=3).latents
    alone = sampler.sample(TextToImage(PIZZA, "bad"), seeds=1, steps=3).latents
    assert (both[1] - alone[0]).abs().max() < 1e-5 * both.std()


@pytest.mark.parametrize("guidance", [PAG(2.0), ICG(3.0)])
def test_guidance_by_layers_and_by_other_texts(base: Any, guidance: Any) -> None:
    plain = LoopSampler(base[0]).sample(TextToImage(FOX), seeds=1, steps=2).latents
    assert not torch.allclose(
        LoopSampler(base[0], guidance=guidance).sample(TextToImage(FOX), seeds=1, steps=2).latents, plain
    )


def test_the_refiner_is_told_better_looks_than_it_avoids(sdxl_refiner: Path) -> None:
    model = loaded(sdxl_refiner)
    numbers = [
        model.condition([FOX], negative=negative, size=(24, 16)).extra["time_ids"].tolist()
        for negative in (False, True)
    ]
    assert numbers == [[[24, 16, 0, 0, 6.0]], [[24, 16, 0, 0, 2.5]]]


SIZES = {"original_size": [32, 48], "crop": [4, 8], "target_size": [24, 16]}
NEGATIVE = {"negative_original_size": [8, 8], "negative_target_size": [9, 9], "negative_crop": [1, 2]}


def test_sizes_are_chosen(base: Any, sdxl_refiner: Path) -> None:
    model, pipe = base
    sampler = LoopSampler(model, guidance=CFG(5.0), parity=True)
    names = {"crop": "crops_coords_top_left", "negative_crop": "negative_crops_coords_top_left"}
    try:
        for chosen, seeds in ((SIZES, SEEDS), ({**SIZES, **NEGATIVE}, [3])):
            model.choose(size_conditioning=chosen)
            told = {names.get(name, name): tuple(pair) for name, pair in chosen.items()}
            want = by_pipeline(
                pipe, seeds, model, prompt=BOTH[: len(seeds)], guidance_scale=5.0, num_inference_steps=2, **told
            )
            got = sampler.sample(TextToImage(BOTH[: len(seeds)]), seeds=seeds, steps=2).latents
            assert torch.equal(got, want)
        # the pipeline's rows of numbers alternate between the two predictions, and those of its texts do not
        faulty = by_pipeline(pipe, SEEDS, model, prompt=BOTH, guidance_scale=5.0, num_inference_steps=2, **told)
        right = by_pipeline(pipe, SEEDS[1:], model, prompt=PIZZA, guidance_scale=5.0, num_inference_steps=2, **told)
        assert (faulty[1] - right[0]).abs().max() > 0.01 * right.std()
        with pytest.raises(ConfigError, match=r"^model.size_conditioning: found negative sizes with parity"):
            sampler.sample(TextToImage(FOX), seeds=SEEDS, steps=2)
        two = LoopSampler(model, guidance=CFG(5.0)).sample(TextToImage(BOTH), seeds=[0, 3], steps=2).latents
        one = LoopSampler(model, guidance=CFG(5.0)).sample(TextToImage(PIZZA), seeds=3, steps=2).latents
        assert (two[1] - one[0]).abs().max() < 1e-5 * two.std()
    finally:
        model.choose()
    refiner = loaded(sdxl_refiner)
    refiner.choose(size_conditioning={"aesthetic_score": 7})
    assert refiner.condition([FOX], size=(24, 16)).extra["time_ids"].tolist() == [[24, 16, 0, 0, 7.0]]
    refiner.choose()


REFUSED = {
    "model.size_conditioning.crops: unknown key": {"crops": [0, 0]},
    "model.size_conditioning.crop: found 3; accepted are two numbers": {"crop": 3},
    "model.size_conditioning.aesthetic_score: found 'good'": {"aesthetic_score": "good"},
    "model.size_conditioning: found 3": 3,
}


@pytest.mark.parametrize("message", REFUSED)
def test_sizes_that_are_none(base: Any, message: str) -> None:
    with pytest.raises(ConfigError) as found:
        base[0].choose(size_conditioning=REFUSED[message])
    assert str(found.value).startswith(message)


@pytest.mark.slow
def test_half_precision_decodes_in_full(sdxl: Path) -> None:
    model, pipe = loaded(sdxl, dtype="float16"), opened(sdxl).to(torch.float16)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).half()
    pipe.vae.float()
    want = pipe.vae.decode(latents.float() / pipe.vae.config.scaling_factor).sample
    assert model.dtype is torch.float16
    assert model.vae.dtype is torch.float32
    with torch.no_grad():
        assert torch.allclose(model.decode_pixels(latents), want, atol=1e-2)


@pytest.mark.parametrize("name", ["sdxl_refiner", "sdxl", "sdxl_inpaint", "sdxl_distilled"])
@pytest.mark.spread(1)
def test_outline_and_inspection(name: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(name)
    model = loaded(directory)
    assert_outlined(directory, model)
    found = inspect_model(directory)
    assert (found.verdict, found.family, found.role) == ("safe", "sdxl", model.role)


def test_bad_directories(sdxl: Path, tmp_path: Path) -> None:
    def refusal(change: Any) -> str:
        folder = shutil.copytree(sdxl, tmp_path / "copy")
        change(folder)
        with pytest.raises(ModelError) as found:
            checked_parts(folder, allow_pickle=False)
        shutil.rmtree(folder)
        return str(found.value)

    assert "names no unet" in refusal(lambda d: edit_json(d / "model_index.json", unet=None))
    assert "names no text_encoder_2" in refusal(lambda d: edit_json(d / "model_index.json", text_encoder_2=None))
    alone = refusal(lambda d: edit_json(d / "model_index.json", text_encoder=[None, None], tokenizer=[None, None]))
    assert "takes texts of 36 numbers a token and its text encoder makes 20" in alone
    scored = refusal(lambda d: edit_json(d / "model_index.json", requires_aesthetics_score=True))
    assert "a score of looks" in scored
    assert "requires_aesthetics_score" in scored
    with pytest.raises(ConfigError, match=r"^model.distilled_guidance: found 3; the network of sdxl is told no"):
        loaded(sdxl, distilled_guidance=3)
    with pytest.raises(ConfigError, match=r"task.height: found 15; accepted is a positive multiple of 2"):
        LoopSampler(loaded(sdxl)).sample(TextToImage(FOX, height=15), seeds=1, steps=1)
