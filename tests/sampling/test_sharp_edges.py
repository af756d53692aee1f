"""Scenarios that go wrong elsewhere, one test or more for each, by number: what the loop does, natively and in parity mode."""

from __future__ import annotations

import copy
import json
import math
import re

import numpy as np
import pytest
import torch
from support.task_samples import close, computed, flat, left_half, one_pixel, picture, run, soft

from research import Hook, LoopSampler, load_model
from research.errors import ConfigError, ModelError, SamplingError
from research.guidance import CFG, Guidance
from research.sampling import Branch, Guided, Prediction
from research.tasks import DepthToImage, ImageToImage, Inpaint, TextToImage

pytestmark = pytest.mark.spread(2)

STOCHASTIC = ["ddpm", "euler_a", "dpmpp_2m_sde", "dpmpp_sde"]


class Watch(Hook):
    """The stages of a run, and all noise that it draws, by stream."""

    def on_start(self, run):
        self.stages, self.noise, self.start = [], {}, run.x.clone()
        drawn = run.noise.draw

        def draw(stream, *args):
            noise = drawn(stream, *args)
            self.noise.setdefault(stream, []).append(noise)
            return noise

        run.noise.draw = draw

    def pre_step(self, state):
        self.stages.append(state.stage)


# --- 1: a strength that leaves no step


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "pndm"])
@pytest.mark.parametrize("parity", [False, True])
def test_01_no_step_left_is_an_error_that_says_what_would_do(sd, scheduler, parity):
    with (
        computed(sd) as calls,
        pytest.raises(ConfigError, match=r"task\.strength: 0\.01 of 20 .* from 0\.05, or from 100 steps"),
    ):
        run(sd, ImageToImage("a", picture(), 0.01), steps=20, scheduler=scheduler, parity=parity)
    assert calls == []
    assert run(sd, ImageToImage("a", picture(), 0.01), steps=100).nfe == 2  # one step, two branches


@pytest.mark.parametrize("scheduler", ["ddim", "heun"])
def test_01_or_the_picture_comes_back_if_that_is_wanted(sd, scheduler):
    task = ImageToImage("a", picture(), 0.01, on_no_steps="identity")
    result = run(sd, task, [1, 2], steps=20, scheduler=scheduler)
    assert [image.tobytes() for image in result.images] == [picture().tobytes()] * 2
    assert result.nfe == 0
    with pytest.raises(ConfigError, match="no whole step"):
        run(sd, task, steps=20, parity=True)


# --- 2: a product that binary numbers round down


@pytest.mark.parametrize(("parity", "evaluations"), [(False, 29), (True, 28)])
def test_02_0_29_of_100_steps(sd, parity, evaluations):
    result = run(sd, ImageToImage("a", picture(), 0.29), steps=100, scale=1.0, parity=parity)
    assert result.nfe == evaluations


# --- 3: the ends of strength, and beyond


def test_03_strength_0_gives_the_picture_back(sd, sd_depth):
    for model, task in (
        (sd, ImageToImage("a", picture(), 0)),
        (sd, Inpaint("a", picture(), left_half(), 0.0)),
        (sd_depth, DepthToImage("a", picture(), None, 0.0)),
    ):
        result = run(model, task)
        assert result.images[0].tobytes() == picture().tobytes()
        assert result.nfe == 0
    with pytest.raises(ConfigError, match=r"task\.strength: found 0, with which the diffusers pipeline fails"):
        run(sd, ImageToImage("a", picture(), 0.0), parity=True)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpmpp_2m"])
def test_03_strength_1_is_pure_noise(sd, scheduler):
    one, other = (run(sd, ImageToImage("a", picture(seed=seed), 1.0), scheduler=scheduler).latents for seed in (1, 2))
    assert torch.equal(one, other)
    assert torch.equal(one, run(sd, TextToImage("a"), scheduler=scheduler).latents)


@pytest.mark.parametrize("strength", [1.01, -0.01, math.nan, math.inf, True, "0.5", None, [0.5]])
def test_03_beyond_is_an_error(strength):
    for make in (
        lambda: ImageToImage("a", picture(), strength),
        lambda: Inpaint("a", picture(), left_half(), strength),
        lambda: DepthToImage("a", picture(), None, strength),
    ):
        with pytest.raises(ConfigError, match=r"^task\.strength: found .*from 0 to 1"):
            make()


# --- 4: second-order schedulers sliced anywhere


@pytest.mark.parametrize("name", ["heun", "dpm2", "dpm2_a", "dpmpp_sde"])
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.spread(2)
def test_04_a_slice_starts_with_a_step(sd, name, strength):
    watch = Watch()
    options = {"noise_sampler_seed": 3} if name == "dpmpp_sde" else {}
    result = run(
        sd, ImageToImage("a", picture(), strength), steps=10, scheduler=name, hooks=[watch], scheduler_options=options
    )
    kept = round(10 * strength)
    steps = [stage.step for stage in watch.stages]
    # two evaluations a step but for the last
    assert steps == [10 - kept + k for k in range(kept) for _ in range(2)][:-1]
    assert [stage.last_of_step for stage in watch.stages] == [i % 2 == 1 for i in range(2 * kept - 2)] + [True]
    assert result.nfe_by_branch == {"uncond": 2 * kept - 1, "cond": 2 * kept - 1}


# --- 5: PNDM (also: test_sample.py)


def test_05_pndm_evaluates_once_more(sd):
    watch = Watch()
    assert run(sd, TextToImage("a"), steps=20, scheduler="pndm", scale=1.0, hooks=[watch]).nfe == 21
    assert {stage.step for stage in watch.stages} == set(range(20))


# --- 6 to 9: runs, batches and hooks that do not disturb one another (also: test_noise_independence.py)


@pytest.mark.parametrize("scheduler", ["ddim", "heun", "pndm", "lms", "unipc", *STOCHASTIC])
@pytest.mark.spread(1)
def test_06_a_b_a_on_one_sampler(sd, scheduler):
    sampler = LoopSampler(sd, scheduler=scheduler, guidance=CFG(2.0))

    def first():
        return sampler.sample(ImageToImage("a", picture(), 0.6), seeds=[1, 2], steps=5).latents

    before = first()
    sampler.sample(ImageToImage("b", picture(24, 16, 1), 0.9), seeds=[9], steps=8)
    sampler.sample(Inpaint("b", picture(), soft(), 1.0), seeds=[4, 5, 6], steps=3)
    assert torch.equal(first(), before)


@pytest.mark.parametrize("scheduler", ["ddpm", "euler_a", "dpmpp_2m_sde"])
def test_07_noise_is_bit_equal_alone_and_in_a_batch(sd, scheduler):
    seeds, watch = [3, 8, 1, 2**40], Watch()
    together = run(sd, ImageToImage("a", picture(), 0.7), seeds, scheduler=scheduler, hooks=[watch])
    drawn, start = watch.noise, watch.start
    assert drawn
    for row, seed in enumerate(seeds):
        alone = run(sd, ImageToImage("a", picture(), 0.7), [seed], scheduler=scheduler, hooks=[watch])
        assert torch.equal(watch.start[0], start[row])
        for stream, tensors in drawn.items():
            assert len(tensors) == len(watch.noise[stream])
            assert all(torch.equal(t[row], own[0]) for t, own in zip(tensors, watch.noise[stream], strict=True))
        assert close(alone.latents[0], together.latents[row])


class Draws(Hook):
    def __init__(self, name):
        self.name = name

    def on_start(self, run):
        run.noise.draw(self.name, (3,))

    def pre_step(self, state):
        state.run.noise.draw(self.name, (2, 2))


@pytest.mark.parametrize("scheduler", STOCHASTIC)
def test_08_hooks_that_draw_move_nobody_elses_noise(sd, scheduler):
    def latents(*hooks):
        return run(sd, Inpaint("a", picture(), soft(), 0.7), [1, 2], scheduler=scheduler, hooks=hooks).latents

    assert torch.equal(latents(), latents(Draws("a"), Draws("b")))
    assert torch.equal(latents(), latents(Draws("b"), Draws("a")))


@pytest.mark.parametrize("scheduler", ["ddim", *STOCHASTIC])
def test_09_the_global_generators_do_not_matter(sd, scheduler):
    class Disturb(Hook):
        def pre_step(self, state):
            torch.manual_seed(state.stage.index)
            np.random.seed(7)
            torch.randn(3)

    def latents(*hooks):
        return run(sd, ImageToImage("a", picture(), 0.7), [1], scheduler=scheduler, hooks=hooks).latents

    assert torch.equal(latents(), latents(Disturb()))


# --- 10: scales at and below 1


def test_10_a_negative_prompt_at_scale_1_is_said_to_be_unused(sd):
    unused = r"negative_prompt: not used, .*scale 1"
    for task in (TextToImage("a", "dog"), ImageToImage("a", picture(), 0.6, "dog")):
        result = run(sd, task, scale=1.0, steps=5)
        assert result.nfe == len(result.trace["stages"])
        (warning,) = result.warnings
        assert re.search(unused, warning)
    assert run(sd, TextToImage("a"), scale=1.0).warnings == []
    assert run(sd, TextToImage("a", "dog"), scale=1.5).warnings == []


def test_10_a_scale_between_0_and_1_is_honoured(sd):
    """One step of DDIM is linear in the prediction."""
    low, half, high = (run(sd, TextToImage("a", "dog"), scale=s, steps=1) for s in (0.0, 0.5, 1.0))
    assert (low.nfe, half.nfe, high.nfe) == (1, 2, 1)
    assert torch.allclose(half.latents, (low.latents + high.latents) / 2, atol=1e-3)
    in_parity = run(sd, TextToImage("a", "dog"), scale=0.5, steps=1, parity=True)
    assert in_parity.nfe == 1  # the pipelines take it as none


# --- 11: guidance in a part of the steps


class OnInterval(Guidance):
    """Guidance of scale 4 in the steps of ``[low, high)``, none elsewhere."""

    def __init__(self, low: float, high: float):
        self.low, self.high = low, high

    def branches(self, state):
        names = ["cond"]
        if self.low <= state.stage.step / state.stage.n_steps < self.high:
            names.insert(0, "uncond")
        return [Branch(name, state.run.conditions[name]) for name in names]

    def combine(self, state, predictions):
        if "uncond" not in predictions:
            return Guided(predictions["cond"])
        u, c = predictions["uncond"], predictions["cond"]
        return Guided(Prediction(u.value + 4.0 * (c.value - u.value), c.kind))


@pytest.mark.parametrize(("scheduler", "cond", "uncond"), [("ddim", 10, 6), ("heun", 19, 12), ("pndm", 11, 6)])
def test_11_guidance_on_an_interval_costs_what_it_says(sd, scheduler, cond, uncond):
    """Steps are counted and not evaluations: a second-order scheduler pays for both evaluations of each step."""
    rows: list[int] = []
    handle = sd.unet.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    sampler = LoopSampler(sd, scheduler=scheduler, guidance=OnInterval(0.2, 0.8))
    try:
        result = sampler.sample(TextToImage("a"), seeds=[0], steps=10)
    finally:
        handle.remove()
    if scheduler == "pndm":  # its further evaluation belongs to a step at either end of the warm-up
        uncond = result.nfe_by_branch["uncond"]
        assert uncond in (6, 7)
    assert result.nfe_by_branch == {"cond": cond, "uncond": uncond}
    assert sum(rows) == result.nfe == cond + uncond


def test_11_an_interval_of_everything_or_nothing(sd):
    def latents(guidance):
        return LoopSampler(sd, guidance=guidance).sample(TextToImage("a"), seeds=[0], steps=4)

    whole, none = latents(OnInterval(0, 1)), latents(OnInterval(0.5, 0.5))
    assert torch.equal(whole.latents, latents(CFG(4.0)).latents)
    assert torch.equal(none.latents, latents(CFG(1.0)).latents)
    assert none.nfe == 4


# --- 12: masks


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("scheduler", ["ddim", "heun", "euler_a"])
def test_12_a_mask_that_keeps_everything(sd, sd_inpaint, scheduler, strength):
    for model in (sd, sd_inpaint):
        result = run(model, Inpaint("a", picture(), flat(0), strength), [1, 2], scheduler=scheduler)
        assert [image.tobytes() for image in result.images] == [picture().tobytes()] * 2
        assert "all black" in result.warnings[0]


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("scheduler", ["ddim", "heun", "euler_a", "pndm", "dpmpp_2m"])
@pytest.mark.spread(4)
def test_12_a_mask_that_edits_everything_is_image_to_image(sd, scheduler, strength):
    inpainted = run(sd, Inpaint("a", picture(), flat(255), strength), [1, 2], scheduler=scheduler)
    plain = run(sd, ImageToImage("a", picture(), strength), [1, 2], scheduler=scheduler)
    assert torch.equal(inpainted.latents, plain.latents)
    assert [i.tobytes() for i in inpainted.images] == [i.tobytes() for i in plain.images]
    assert "all white" in inpainted.warnings[0]


@pytest.mark.parametrize("mask", [soft(), soft(9, 31), left_half(17, 15), one_pixel(), one_pixel(16, 16, 15, 15)])
@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.spread(4)
def test_12_soft_odd_sized_and_one_pixel_masks(sd, sd_inpaint, mask, parity):
    for model in (sd, sd_inpaint):
        result = run(model, Inpaint("a", picture(21, 19), mask, 0.6), [1, 2], parity=parity)
        assert result.latents.shape == (2, 4, 8, 8)
        assert [image.size for image in result.images] == [(16, 16)] * 2


@pytest.mark.parametrize(("x", "y"), [(0, 0), (5, 7), (4, 6), (15, 15), (3, 14)])
def test_12_one_pixel_is_edited_and_no_other(sd, sd_inpaint, x, y):
    """With the pipelines' way of making a mask small, three pixels in four of them vanish."""
    for model in (sd, sd_inpaint):
        result = run(model, Inpaint("a", picture(), one_pixel(x=x, y=y)), scale=6.0)
        changed = np.argwhere((np.asarray(result.images[0]) != np.asarray(picture())).any(axis=-1))
        assert changed.tolist() == [[y, x]]


# --- 13: depth maps that say nothing


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e30])
def test_13_a_constant_depth_map_gives_no_nan(sd_depth, value):
    result = run(sd_depth, DepthToImage("a", picture(), np.full((16, 16), value)))
    assert torch.isfinite(result.latents).all()
    assert any("constant" in warning for warning in result.warnings)


# --- 14: numbers that are none (also: test_sample.py)


def test_14_nan_names_the_stage(sd):
    class Poison(Hook):
        def post_step(self, state):
            if state.stage.index == 2:
                state.x = state.x * float("nan")

    with pytest.raises(SamplingError, match=r"stage 2, step 5 of 5"):
        run(sd, ImageToImage("a", picture(), 0.6), steps=5, hooks=[Poison()])


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_14_a_vae_that_gives_nan_gives_no_picture(sd, part):
    broken = copy.copy(sd)
    broken.vae = copy.deepcopy(sd.vae)
    getattr(broken.vae, part).conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(SamplingError, match="not finite"):
        run(broken, ImageToImage("a", picture(), 0.6))


# --- 15: safe and offline (also: tests/models/test_loading.py)


def test_15_pickled_weights_are_refused_unless_wanted(copied, inpaint_directory):
    directory = copied(inpaint_directory)
    (file,) = (directory / "unet").glob("*.safetensors")
    from safetensors.torch import load_file

    torch.save(load_file(file), directory / "unet" / "diffusion_pytorch_model.bin")
    file.unlink()
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.bin"):
        load_model(directory, dtype="float32", device="cpu")
    assert load_model(directory, dtype="float32", device="cpu", allow_pickle=True).role == "inpaint"


def test_15_without_a_network(no_network, depth_directory, inpaint_directory):
    for directory, task in (
        (depth_directory, DepthToImage("a", picture())),
        (inpaint_directory, Inpaint("a", picture(), left_half())),
    ):
        run(load_model(directory, dtype="float32", device="cpu"), task)
    assert no_network == []
    assert json.loads((depth_directory / "model_index.json").read_text())["depth_estimator"]
