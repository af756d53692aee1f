"""Latent consistency models: the guidance scale is told to the network, and there is no CFG."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.families.parity import FOX, PIZZA, assert_outlined, by_pipeline, opened, pixels
from PIL import Image

from research import LoopSampler, load_model
from research.errors import ConfigError
from research.guidance import CFG
from research.models import BaseModel
from research.models.inspect.inspect_model import inspect_model
from research.models.summary import check_choices, outline
from research.tasks import ImageToImage, TextToImage

BOTH, SEEDS = [FOX, PIZZA], [0, 1]


@pytest.fixture(scope="module")
def model(lcm: Path) -> BaseModel:
    return load_model(lcm, dtype="float32", device="cpu")


@pytest.mark.spread(1)
@pytest.mark.parametrize(("scale", "size"), [(8.5, (16, 16)), (2.0, (24, 16))])
def test_equals_the_pipeline(lcm: Path, model: BaseModel, scale: float, size: tuple[int, int]) -> None:
    model.choose(distilled_guidance=scale)
    told = {"prompt": BOTH, "guidance_scale": scale, "num_inference_steps": 4, "height": size[0], "width": size[1]}
    got = LoopSampler(model, parity=True).sample(TextToImage(BOTH, None, *size), seeds=SEEDS, steps=4)
    assert torch.equal(got.latents, by_pipeline(opened(lcm), SEEDS, **told))
    assert pixels(got.images) == pixels(by_pipeline(opened(lcm), SEEDS, output_type="pil", **told))
    assert got.nfe == 4


@pytest.mark.spread(1)
@pytest.mark.parametrize(("strength", "steps", "seeds"), [(0.55, 3, [0, 1]), (1.0, 2, [5]), (0.1, 4, [7])])
def test_image_to_image_equals_the_pipeline(
    lcm: Path, model: BaseModel, strength: float, steps: int, seeds: list[int]
) -> None:
    """All steps are made, below the strength: so has the pipeline its scheduler do."""
    model.choose()
    picture = Image.effect_noise((16, 24), 60).convert("RGB")
    prompts = BOTH[: len(seeds)]
    told = {"prompt": prompts, "image": [picture] * len(seeds), "strength": strength, "num_inference_steps": steps}
    want = by_pipeline(opened(lcm, "LatentConsistencyModelImg2ImgPipeline"), seeds, guidance_scale=8.5, **told)
    got = LoopSampler(model, parity=True).sample(ImageToImage(prompts, picture, strength), seeds=seeds, steps=steps)
    assert torch.equal(got.latents, want)
    assert got.nfe == steps


def test_what_the_image_to_image_pipeline_cannot_do(lcm: Path, model: BaseModel) -> None:
    task = ImageToImage(FOX, Image.new("RGB", (16, 16)), 0.1)
    with pytest.raises(ConfigError, match="scheduler: ddim is not told a strength"):
        LoopSampler(model, "ddim", parity=True).sample(task, seeds=0, steps=4)
    with pytest.raises(ConfigError, match=r"steps: scheduler LCMScheduler cannot make 6 steps"):
        LoopSampler(model, parity=True).sample(
            task, seeds=0, steps=6
        )  # of 50 that it was distilled at, 5 lie below 0.1
    with pytest.raises(ConfigError, match=r"task.strength: 0.1 of 4 steps is no whole step"):
        LoopSampler(model).sample(task, seeds=0, steps=4)


@pytest.mark.parametrize("scheduler", ["model", "ddim"])
def test_equals_the_pipeline_of_stable_diffusion(lcm: Path, model: BaseModel, scheduler: str) -> None:
    """Any Stable Diffusion pipeline with such a network skips CFG."""
    pipe = opened(lcm, "StableDiffusionPipeline")
    model.choose(distilled_guidance=5.0)
    want = by_pipeline(pipe, [3], model, scheduler, prompt=FOX, guidance_scale=5.0, num_inference_steps=3)
    got = LoopSampler(model, scheduler, parity=True).sample(TextToImage(FOX), seeds=3, steps=3)
    assert torch.equal(got.latents, want)


def test_the_scale_is_chosen_and_put_back(lcm: Path, model: BaseModel) -> None:
    def latents() -> torch.Tensor:
        return LoopSampler(model, "ddim").sample(TextToImage(FOX), seeds=1, steps=2).latents

    model.choose()
    own = latents()
    assert model.distilled_guidance == 8.5
    model.choose(distilled_guidance=2)
    assert not torch.allclose(latents(), own)
    twin = load_model(lcm, dtype="float32", device="cpu", distilled_guidance=2)
    assert torch.equal(LoopSampler(twin, "ddim").sample(TextToImage(FOX), seeds=1, steps=2).latents, latents())
    assert model.second(noise=0.1).distilled_guidance == 2
    model.choose(distilled_guidance=4)
    assert model.second(noise=0.1).distilled_guidance == 4
    model.choose()
    assert torch.equal(latents(), own)


def test_negative_prompts_need_a_guidance_that_was_asked_for(model: BaseModel) -> None:
    for guidance in (None, CFG(1.0)):
        with pytest.raises(ConfigError, match=r"task.negative_prompt: found 'bad'; lcm has its guidance distilled"):
            LoopSampler(model, guidance=guidance).sample(TextToImage(FOX, "bad"), seeds=1, steps=2)
    assert LoopSampler(model, guidance=CFG(2.0)).sample(TextToImage(FOX, "bad"), seeds=1, steps=2).nfe == 4


def test_alone_as_in_a_batch(model: BaseModel) -> None:
    sampler = LoopSampler(model)
    both = sampler.sample(TextToImage(BOTH), seeds=SEEDS, steps=3).latents
    alone = sampler.sample(TextToImage(PIZZA), seeds=1, steps=3).latents
    assert (both[1] - alone[0]).abs().max() < 1e-5 * both.std()


def test_outline_and_inspection(lcm: Path, model: BaseModel, sd_directory: Path) -> None:
    model.choose()
    assert_outlined(lcm, model)
    assert model.scheduler_config["steps_offset"] == 0  # its pipeline mends nothing
    found = inspect_model(lcm)
    assert (found.verdict, found.family, found.role) == ("safe", "unet-text", "text")
    plain = outline(str(sd_directory))
    assert plain is not None
    with pytest.raises(ConfigError, match=r"model.distilled_guidance: found 3; the network of tiny-sd is told no"):
        check_choices(plain, 3.0, None)
    with pytest.raises(ConfigError, match=r"model.max_sequence_length: found 77"):
        check_choices(plain, None, 77)
    with pytest.raises(
        ConfigError, match=r"model.size_conditioning: found \{'crop': \[0, 0\]\}; the network of tiny-sd"
    ):
        check_choices(plain, None, None, {"crop": [0, 0]})
