"""Interpolation: the ends are the seeds' own images, the path is an arc, and what cannot be smooth is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.task_samples import close, computed, run

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import CFG, PerpNeg
from research.tasks import Interpolation, TextToImage, Unconditional
from research.tasks.interpolation import slerp

pytestmark = pytest.mark.spread(2)

PARTS = st.floats(0.0, 1.0)
SEEDS = st.integers(0, 2**32)


def frames(model, task, **settings):
    return run(model, task, None, **settings)


# --- the arc


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(seed=SEEDS, part=PARTS)
def test_vectors_of_one_length_keep_it(seed, part):
    a, b = normal(seed, 4, 6), normal(seed + 1, 4, 6)
    b = b * a.norm() / b.norm()
    assert float(slerp(a, b, part).norm()) == pytest.approx(float(a.norm()), rel=1e-5)


@given(seed=SEEDS, part=PARTS)
def test_the_angle_grows_evenly(seed, part):
    a, b = normal(seed, 8), normal(seed + 1, 8)
    a, b = a / a.norm(), b / b.norm()
    whole = math.acos(max(-1.0, min(1.0, float(a @ b))))
    there = math.acos(max(-1.0, min(1.0, float(a.double() @ slerp(a.double(), b.double(), part)))))
    assert there == pytest.approx(part * whole, abs=2e-3)


@given(seed=SEEDS, part=st.sampled_from([0.0, 1.0, -0.1, 1.1]))
def test_the_ends_are_exact(seed, part):
    a, b = normal(seed, 3, 3), normal(seed + 1, 3, 3)
    assert torch.equal(slerp(a, b, part), a if part <= 0 else b)


@given(seed=SEEDS, part=PARTS)
def test_there_and_back_are_one_path(seed, part):
    a, b = normal(seed, 12), normal(seed + 1, 12)
    assert torch.allclose(slerp(a, b, part), slerp(b, a, 1 - part), atol=1e-5)


@given(seed=SEEDS, part=PARTS, factor=st.sampled_from([1.0, 2.0, 1 + 1e-9, -1.0, 0.0]))
def test_vectors_in_one_line_give_no_nan(seed, part, factor):
    a = normal(seed, 5)
    found = slerp(a, a * factor, part)
    assert torch.isfinite(found).all()
    if factor > 0:
        assert torch.allclose(found, a * (1 + part * (factor - 1)), atol=1e-4)


def test_each_token_has_its_own_arc():
    a, b = normal(0, 7, 16), normal(1, 7, 16)
    together = slerp(a, b, 0.3, each=-1)
    for token in range(7):
        assert torch.allclose(together[token], slerp(a[token], b[token], 0.3), atol=1e-6)


def test_half_precision_stays_half_precision():
    a, b = normal(0, 9).half(), normal(1, 9).half()
    assert slerp(a, b, 0.5).dtype == torch.float16


# --- the frames


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpmpp_2m", "unipc"])
@pytest.mark.spread(1)
def test_the_ends_are_the_seeds_own_images(sd, scheduler):
    result = frames(sd, Interpolation(7, 12, 4, "a cat"), scheduler=scheduler)
    for row, seed in ((0, 7), (3, 12)):
        alone = run(sd, TextToImage("a cat"), [seed], scheduler=scheduler)
        assert close(result.latents[row], alone.latents[0])
    one_by_one = frames(sd, Interpolation(7, 12, 4, "a cat"), scheduler=scheduler, batch_size=1)
    for row, seed in ((0, 7), (3, 12)):
        alone = run(sd, TextToImage("a cat"), [seed], scheduler=scheduler)
        assert torch.equal(one_by_one.latents[row], alone.latents[0])
        assert one_by_one.images[row].tobytes() == alone.images[0].tobytes()
    assert close(one_by_one.latents, result.latents)


@pytest.mark.slow
def test_between_prompts(sd):
    result = frames(sd, Interpolation(3, 3, 5, ["a cat", "dog"]), batch_size=1)
    for row, prompt in ((0, "a cat"), (4, "dog")):
        assert torch.equal(result.latents[row], run(sd, TextToImage(prompt), [3]).latents[0])
    assert result.prompts[0] == "a cat"
    assert result.prompts[-1] == "dog"
    through = frames(sd, Interpolation(3, 4, 5, ["a", "b", "c"], negative_prompt="x"), batch_size=1)
    assert through.prompts[2] == "b"
    for row, seed, prompt in ((0, 3, "a"), (4, 4, "c")):
        expected = run(sd, TextToImage(prompt, "x"), [seed]).latents[0]
        assert torch.equal(through.latents[row], expected)


def test_the_path_is_smooth(sd):
    """Frames next to one another are nearer than the ends, all along the path."""
    latents = frames(sd, Interpolation(1, 2, 9, "a"), steps=6).latents
    steps = [(b - a).norm() for a, b in pairwise(latents)]
    assert max(steps) < 0.5 * (latents[-1] - latents[0]).norm()


def test_a_model_without_text(pixel):
    sampler = LoopSampler(pixel, scheduler="ddim")
    result = sampler.sample(Interpolation(5, 6, 3), steps=4, batch_size=1)
    for row, seed in ((0, 5), (2, 6)):
        alone = sampler.sample(Unconditional(), seeds=[seed], steps=4)
        assert torch.equal(result.latents[row], alone.latents[0])
    assert result.prompts == []
    with pytest.raises(ConfigError, match=r"task\.prompt: found 'a'; .* takes no text"):
        sampler.sample(Interpolation(5, 6, 3, "a"), steps=4)


def test_what_it_shows(sd):
    result = frames(sd, Interpolation(1, 2, 4, "a"), batch_size=3)
    assert len(result.images) == 4
    strip, animation = result.pictures["strip"], result.pictures["animation"]
    assert strip.size == (4 * (128 + 4) + 4, 128 + 2 * 4)
    assert [frame.size for frame in animation] == [(128, 128)] * 6  # there and back, the ends once
    assert animation[1].tobytes() == animation[5].tobytes()
    assert animation[0].tobytes() != animation[3].tobytes()
    first = np.asarray(animation[0])[::8, ::8]
    assert (first == np.asarray(result.images[0])).all()
    assert len(frames(sd, Interpolation(1, 2, 2, "a")).pictures["animation"]) == 2


def test_sizes(sd):
    result = frames(sd, Interpolation(1, 2, 2, "a", height=24, width=12))
    assert result.images[0].size == (12, 24)


def test_seeds_that_are_given(sd):
    expected = frames(sd, Interpolation(1, 2, 3, "a")).latents
    for given_seeds in ([9], [7, 8, 9]):
        assert torch.equal(run(sd, Interpolation(1, 2, 3, "a"), given_seeds).latents, expected)
    with pytest.raises(ConfigError, match=r"^seeds: found 2; interpolation makes 3 frames"):
        run(sd, Interpolation(1, 2, 3, "a"), [1, 2])


# --- what it refuses


@pytest.mark.parametrize("count", [1, 0, -3, 2.5, 2.0, True, None, "3", math.nan])
def test_too_few_frames(count):
    with pytest.raises(ConfigError, match=r"^task\.frames: found .*whole number from 2"):
        Interpolation(1, 2, count, "a")


@pytest.mark.parametrize("seed", [-1, 1.5, True, None, "1", 2**63])
def test_seeds_that_are_none(seed):
    with pytest.raises(ConfigError, match=r"^task\.start_seed: found"):
        Interpolation(seed, 1, 3)
    with pytest.raises(ConfigError, match=r"^task\.end_seed: found"):
        Interpolation(1, seed, 3)


@pytest.mark.parametrize("prompt", [[], ["a", None], ["a", 3], 7, {}])
def test_prompts_that_are_none(prompt):
    with pytest.raises(ConfigError, match=r"^task\.prompt: found"):
        Interpolation(1, 2, 3, prompt)


@pytest.mark.parametrize("prompt", [["a"], 3, True])
def test_negative_prompts_that_are_none(prompt):
    with pytest.raises(ConfigError, match=r"^task\.negative_prompt: found"):
        Interpolation(1, 2, 3, "a", prompt)


def test_more_prompts_than_frames(sd):
    with pytest.raises(ConfigError, match="found 4 sentences for 3 frames"):
        frames(sd, Interpolation(1, 2, 3, ["a", "b", "c", "d"]))


@pytest.mark.parametrize("scheduler", ["ddpm", "euler_a", "dpm2_a", "dpmpp_2m_sde", "dpmpp_sde", "lcm"])
def test_schedulers_that_add_noise_are_refused_by_name(sd, scheduler):
    with (
        computed(sd) as calls,
        pytest.raises(ConfigError, match=rf"Interpolation needs a deterministic .*scheduler {scheduler} ") as caught,
    ):
        frames(sd, Interpolation(1, 2, 3, "a"), scheduler=scheduler)
    assert calls == []
    assert "\n" not in str(caught.value)


def test_what_decides_is_whether_noise_is_added(sd):
    with pytest.raises(ConfigError, match="needs a deterministic scheduler"):
        frames(sd, Interpolation(1, 2, 3, "a"), scheduler_options={"eta": 0.5})
    frames(sd, Interpolation(1, 2, 3, "a"), scheduler_options={"eta": 0.0})


def test_models_for_other_tasks(sd_inpaint, class_model):
    with pytest.raises(ConfigError, match="use task inpaint"):
        frames(sd_inpaint, Interpolation(1, 2, 3, "a"))
    with pytest.raises(ConfigError, match="not for class-conditional models"):
        LoopSampler(class_model, scheduler="ddim").sample(Interpolation(1, 2, 3), steps=2)


def test_what_a_long_prompt_loses_is_said(sd):
    found = LoopSampler(sd, scheduler="ddim").sample(Interpolation(0, 1, 2, ["a", "word " * 20]), steps=1)
    assert [entry["prompt"] for entry in found.truncated] == ["word " * 20]
    assert any("dropped" in message for message in found.warnings)


def test_guidance_and_hooks_may_ask_for_other_sentences(sd, pixel):
    task = Interpolation(0, 1, frames=3, prompt=["fox", "owl"])
    plain = LoopSampler(sd, guidance=CFG(2.0)).sample(task, steps=4)
    negative = LoopSampler(sd, guidance=PerpNeg(2.0, prompts=["red"])).sample(task, steps=4)
    assert negative.nfe_by_branch == {"uncond": 4, "cond": 4, "negative_1": 4}
    assert not torch.equal(plain.latents, negative.latents)
    with pytest.raises(ConfigError, match="text"):
        LoopSampler(pixel, guidance=PerpNeg(2.0, prompts=["red"]))
