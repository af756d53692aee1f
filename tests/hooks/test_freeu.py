"""FreeU: diffusers' `enable_freeu`, bit for bit."""

from __future__ import annotations

import pytest
import torch

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import CFG
from research.hooks import FreeU
from research.tasks import TextToImage, Unconditional


def sample(model, hooks, **settings):
    sampler = LoopSampler(model, "ddim", guidance=CFG(4.0), hooks=hooks, **settings)
    return sampler.sample(TextToImage("a cat"), seeds=[3], steps=3).latents


@pytest.mark.fidelity(
    "hooks/freeu",
    source="arXiv:2309.11497, section 3.2",
    against="enable_freeu of diffusers, final latents with parity",
    within="equal to the bit",
    differs="as diffusers, without the weights by the channels' mean of the authors' later code",
)
def test_it_is_that_of_diffusers(sd, sd_pipe):
    before = sample(sd, [])
    sd_pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    try:
        theirs = sd_pipe(
            "a cat", guidance_scale=4.0, num_inference_steps=3, output_type="latent",
            generator=torch.Generator().manual_seed(3),
        ).images  # fmt: skip
    finally:
        sd_pipe.disable_freeu()
    ours = LoopSampler(sd, "model", guidance=CFG(4.0), hooks=[FreeU()], parity=True)
    assert torch.equal(ours.sample(TextToImage("a cat"), seeds=[3], steps=3).latents, theirs)
    assert not torch.equal(sample(sd, [FreeU()]), before)
    assert torch.equal(sample(sd, []), before)  # nothing stays


def test_off_and_a_part_of_the_steps(sd):
    plain = sample(sd, [])
    assert torch.equal(sample(sd, [FreeU(1, 1, 1, 1)]), plain)
    assert torch.equal(sample(sd, [FreeU(steps=(0, 0))]), plain)
    early, all_of_it = sample(sd, [FreeU(steps=(0, 0.5))]), sample(sd, [FreeU()])
    assert not torch.equal(early, plain)
    assert not torch.equal(early, all_of_it)


def test_what_it_cannot_be(pixel):
    with pytest.raises(ConfigError, match=r"hooks\.freeu\.s1: found 0"):
        FreeU(s1=0)
    with pytest.raises(ConfigError, match=r"hooks\.freeu: weighs .* of .* are: "):
        LoopSampler(pixel, hooks=[FreeU()]).sample(Unconditional(), seeds=[0], steps=1)
