"""Levels that are given: with parity they equal the pipeline given the same, and what a pipeline refuses is refused."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import CFG
from research.sigmas import Given, Karras
from research.tasks import TextToImage

SIGMAS, TIMES = [12.0, 5.5, 2.0, 0.6, 0.0], [961, 700, 300, 40]


@pytest.fixture(scope="module")
def pipeline(sd_directory):
    pipe = StableDiffusionPipeline.from_pretrained(sd_directory, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipeline, name: str, **levels) -> torch.Tensor:
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return pipeline(
        "a cat", num_images_per_prompt=2, guidance_scale=3.0, generator=generators, output_type="latent", **levels
    ).images


def ours(model, name: str, *, parity: bool, **levels) -> torch.Tensor:
    sampler = LoopSampler(model, name, guidance=CFG(3.0), parity=parity, sigmas=Given(**levels))
    return sampler.sample(TextToImage("a cat"), seeds=[1, 2], steps=4).latents


@pytest.mark.spread(4)
@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("EulerDiscreteScheduler", {"sigmas": SIGMAS}),
        ("EulerDiscreteScheduler", {"timesteps": TIMES}),
        ("DPMSolverMultistepScheduler", {"timesteps": TIMES}),
        ("HeunDiscreteScheduler", {"timesteps": TIMES}),
        ("DDPMScheduler", {"timesteps": TIMES}),
        ("LCMScheduler", {"timesteps": [959, 699, 299, 39]}),
    ],
)
def test_it_equals_the_pipeline(sd, pipeline, name, levels):
    expected = theirs(pipeline, name, **levels)
    assert torch.equal(ours(sd, name, parity=True, **levels), expected)
    if name not in ("DDPMScheduler", "LCMScheduler"):  # whose noise is another stream without parity
        assert torch.allclose(ours(sd, name, parity=False, **levels), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "levels", "words"),
    [
        ("DDIMScheduler", {"timesteps": TIMES}, "takes no noise levels"),
        ("UniPCMultistepScheduler", {"sigmas": SIGMAS}, "does not take these: Passing `sigmas` is only supported"),
        ("DPMSolverMultistepScheduler", {"sigmas": SIGMAS}, "takes no noise levels between its timesteps"),
    ],
)
def test_what_a_pipeline_refuses_is_refused_with_parity_alone(sd, name, levels, words):
    with pytest.raises(ConfigError, match=words):
        ours(sd, name, parity=True, **levels)
    assert ours(sd, name, parity=False, **levels).isfinite().all()


def test_a_count_that_is_not_the_lists_is_refused(sd):
    with pytest.raises(ConfigError, match="steps: found 5 with the list of 4 steps; accepted is 4"):
        LoopSampler(sd, "euler", sigmas=Given(SIGMAS)).sample(TextToImage("a"), seeds=[0], steps=5)


def test_karras_levels_are_those_of_the_name(sd):
    made = [
        LoopSampler(sd, name, guidance=CFG(3.0), sigmas=sigmas).sample(TextToImage("a"), seeds=[0], steps=6).latents
        for name, sigmas in (("dpmpp_2m", Karras()), ("dpmpp_2m_karras", None))
    ]
    assert torch.allclose(*made, atol=1e-4)


def test_an_object_with_timesteps_of_its_own_is_refused(sd):
    scheduler = DDIMScheduler.from_config(sd.scheduler_config)
    scheduler.set_timesteps(10)
    LoopSampler(sd, scheduler)  # as a pipeline leaves it
    scheduler = diffusers.EulerDiscreteScheduler.from_config(sd.scheduler_config)
    scheduler.set_timesteps(timesteps=TIMES)
    with pytest.raises(ConfigError, match="was given timesteps of its own"):
        LoopSampler(sd, scheduler)
