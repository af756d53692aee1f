"""``parity=True`` equals DDPMPipeline and DDIMPipeline, down to the images."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler

from research import LoopSampler, load_model
from research.tasks import Unconditional

pytestmark = pytest.mark.spread(2)


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def bytes_of(images) -> list[tuple[str, bytes]]:
    return [(image.mode, image.tobytes()) for image in images]


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("seeds", [[5], [5, 6, 0]])
@pytest.mark.parametrize("steps", [3, 10])
def test_ddpm_pipeline(pixel, pixel_directory, seeds, steps):
    pipe = quiet(DDPMPipeline.from_pretrained(pixel_directory))
    expected = pipe(len(seeds), generator=generators(seeds), num_inference_steps=steps)
    found = LoopSampler(pixel, scheduler="ddpm", parity=True).sample(Unconditional(), seeds=seeds, steps=steps)
    assert bytes_of(expected.images) == bytes_of(found.images)
    assert found.nfe == steps


@pytest.mark.parametrize("seeds", [[5], [5, 6, 0]])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_pipeline(pixel, pixel_directory, seeds, eta):
    pipe = quiet(DDIMPipeline.from_pretrained(pixel_directory))
    expected = pipe(len(seeds), generator=generators(seeds), num_inference_steps=7, eta=eta)
    sampler = LoopSampler(pixel, scheduler="ddim", scheduler_options={"eta": eta}, parity=True)
    assert bytes_of(expected.images) == bytes_of(sampler.sample(Unconditional(), seeds=seeds, steps=7).images)


@pytest.mark.parametrize("clipped", [True, False])
def test_ddim_clipped_output(pixel, pixel_directory, clipped):
    pipe = quiet(DDIMPipeline.from_pretrained(pixel_directory))
    expected = pipe(1, generator=generators([1]), num_inference_steps=5, use_clipped_model_output=clipped)
    options = {"use_clipped_model_output": clipped}
    sampler = LoopSampler(pixel, scheduler="ddim", scheduler_options=options, parity=True)
    assert bytes_of(expected.images) == bytes_of(sampler.sample(Unconditional(), seeds=[1], steps=5).images)


def test_grey_pixels(grey_directory):
    model = load_model(grey_directory, dtype="float32", device="cpu")
    pipe = quiet(DDPMPipeline.from_pretrained(grey_directory))
    expected = pipe(2, generator=generators([1, 2]), num_inference_steps=4).images
    found = LoopSampler(model, scheduler="ddpm", parity=True).sample(Unconditional(), seeds=[1, 2], steps=4)
    assert found.images[0].mode == "L"
    assert bytes_of(expected) == bytes_of(found.images)


def test_by_scheduler_object(pixel, pixel_directory):
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="fixed_large")
    pipe = quiet(DDPMPipeline.from_pretrained(pixel_directory, scheduler=scheduler))
    expected = pipe(1, generator=generators([3]), num_inference_steps=6).images
    found = LoopSampler(pixel, scheduler=scheduler, parity=True).sample(Unconditional(), seeds=[3], steps=6)
    assert bytes_of(expected) == bytes_of(found.images)


def test_class_labels_reach_the_unet(class_model):
    """No pipeline of diffusers drives a class-conditional UNet2DModel: the loop is written out here."""
    labels, seeds, steps = [4, 0], [1, 2], 5
    scheduler = DDPMScheduler.from_config(class_model.scheduler_config)
    scheduler.set_timesteps(steps)
    streams = generators(seeds)
    x = torch.cat([torch.randn((1, 3, 8, 8), generator=g) for g in streams])
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = class_model.unet(x, t, class_labels=torch.tensor(labels)).sample
        x = scheduler.step(output, t, x, generator=streams).prev_sample
    sampler = LoopSampler(class_model, scheduler="ddpm", parity=True)
    found = sampler.sample(Unconditional(class_label=labels), seeds=seeds, steps=steps)
    assert torch.equal(x, found.latents)
    other = sampler.sample(Unconditional(class_label=[4, 1]), seeds=seeds, steps=steps).latents
    assert torch.equal(other[0], found.latents[0])
    assert not torch.equal(other[1], found.latents[1])
