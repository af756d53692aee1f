"""`LoopSampler.sample`: what it counts, what it reports, what it refuses."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from support.scheduler_kinds import OWN, of_each_kind

from research import LoopSampler, Sampler, SampleResult
from research.errors import ConfigError, SamplingError
from research.guidance import CFG
from research.solvers import scheduler_names
from research.tasks import TextToImage, Unconditional

pytestmark = pytest.mark.spread(2)

NAMES = [name for name in scheduler_names() if not name.startswith("flow")]
TWICE = (
    "heun",
    "dpm2",
    "dpm2_a",
    "dpmpp_sde",
    "dpmpp_2s_a",
    "dpm_solver_2",
    "res_2s",
    "seeds_2",
)  # two evaluations a step, but for the last


@contextmanager
def counted_rows(model):
    """Rows that really go through the UNet."""
    rows: list[int] = []
    handle = model.unet.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
    try:
        yield rows
    finally:
        handle.remove()


def stages(name: str, steps: int) -> int:
    if name in TWICE:
        return 2 * steps - 1
    if name in ("dpm_solver_3", "res_3s", "seeds_3"):
        return 3 * steps - 2
    if name == "heunpp2":
        return 3 * steps - 3
    if name == "restart":  # here: from the level next to 2 to that next to 0.1, in nine steps of two
        return 2 * steps - 1 + 18
    return steps + 1 if name == "pndm" else steps


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("name", of_each_kind(NAMES))
@pytest.mark.spread(3)
def test_evaluations_are_counted_as_they_are_made(sd, name, parity):
    if parity and name in OWN:
        pytest.skip("diffusers has none")
    for scale, branches in ((1.0, 1), (3.0, 2), (0.0, 1)):
        sampler = LoopSampler(sd, scheduler=name, guidance=CFG(scale), parity=parity)
        with counted_rows(sd) as rows:
            result = sampler.sample(TextToImage("a"), seeds=[1, 2, 3], steps=4)
        assert result.nfe == sum(rows) / 3 == branches * stages(name, 4)
        assert sum(result.nfe_by_branch.values()) == result.nfe
        assert len(result.trace["stages"]) == stages(name, 4)


def test_pndm_evaluates_21_times_in_20_steps(sd):
    result = LoopSampler(sd, scheduler="pndm").sample(TextToImage("a"), seeds=[1], steps=20)
    assert result.nfe == 21
    assert {entry["step"] for entry in result.trace["stages"]} == set(range(20))


def test_evaluations_are_an_images_and_not_a_batchs(sd):
    sampler = LoopSampler(sd, scheduler="ddim", guidance=CFG(2.0))
    for batch_size in (None, 1, 2):
        with counted_rows(sd) as rows:
            result = sampler.sample(TextToImage("a"), seeds=range(4), steps=3, batch_size=batch_size)
        assert result.nfe == 6 == sum(rows) / 4


def test_what_comes_back(sd):
    sampler = LoopSampler(sd, scheduler="heun", guidance=CFG(2.0))
    assert isinstance(sampler, Sampler)
    result = sampler.sample(TextToImage(["a", "b", "c"]), seeds=[5, 6, 7], steps=3, batch_size=2)
    assert isinstance(result, SampleResult)
    assert (len(result.images), result.latents.shape) == (3, (3, 4, 8, 8))
    assert (result.latents.dtype, result.latents.device.type) == (torch.float32, "cpu")
    assert not result.latents.requires_grad
    assert (result.seeds, result.prompts) == ([5, 6, 7], ["a", "b", "c"])
    assert result.timings.keys() == {"encode", "denoise", "decode"}
    assert all(seconds >= 0 for seconds in result.timings.values())
    entries = result.trace["stages"]
    assert [entry["index"] for entry in entries] == list(range(5))
    assert all(entry["seconds"] > 0 for entry in entries)
    assert [entry["sigma"] for entry in entries] == sorted((e["sigma"] for e in entries), reverse=True)
    assert sum(entry["seconds"] for entry in entries) < result.timings["denoise"]


@pytest.mark.parametrize(("name", "strides"), [("ddim", 1), ("heun", 2), ("pndm", 1)])
def test_progress_is_told_of_the_users_steps(sd, name, strides):
    calls: list[tuple] = []

    def progress(done, total, info):
        calls.append((done, total, info["rows"]))

    sampler = LoopSampler(sd, scheduler=name)
    sampler.sample(TextToImage("a"), seeds=[1, 2, 3], steps=3, batch_size=2, progress=progress)
    assert calls == [(done, 3, rows) for rows in ((0, 1), (2,)) for done in (1, 2, 3)]


def test_numbers_of_numpy_and_torch_are_numbers(sd):
    sampler = LoopSampler(sd, scheduler="euler_a")
    expected = sampler.sample(TextToImage("a"), seeds=[4, 5], steps=3)
    for seeds in (np.array([4, 5]), torch.tensor([4, 5]), (np.int64(4), np.uint8(5)), range(4, 6)):
        found = sampler.sample(TextToImage("a"), seeds=seeds, steps=np.int32(3), batch_size=np.int64(2))
        assert torch.equal(found.latents, expected.latents)
        assert found.seeds == [4, 5]
        assert all(type(seed) is int for seed in found.seeds)


def test_the_same_seed_twice_is_the_same_picture_twice(sd):
    result = LoopSampler(sd, scheduler="ddpm").sample(TextToImage("a"), seeds=[4, 4], steps=3)
    assert torch.equal(result.latents[0], result.latents[1])


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_the_ends_of_the_range_of_seeds(sd, seed):
    result = LoopSampler(sd, scheduler="ddpm").sample(TextToImage("a"), seeds=[seed], steps=2)
    assert torch.isfinite(result.latents).all()


# --- bad input


@pytest.fixture
def untouched(sd):
    """Nothing may have been computed when an error is the user's."""
    with counted_rows(sd) as rows:
        yield
    assert rows == []


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("steps", [0, -1, 2.5, 3.0, True, None, "5", float("nan"), 1001, 2**70])
def test_steps(sd, steps):
    with pytest.raises(ConfigError, match=r"^steps: found .*accepted") as caught:
        LoopSampler(sd, scheduler="ddim").sample(TextToImage("a"), seeds=[0], steps=steps)
    assert repr(steps) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "seeds", [[], (), [-1], [0, 1.5], [True], ["1"], [None], 5.0, None, [2**63], np.zeros(0), [[1]]]
)
def test_seeds(sd, seeds):
    with pytest.raises(ConfigError, match=r"^seeds: found .*accepted"):
        LoopSampler(sd, scheduler="ddim").sample(TextToImage("a"), seeds=seeds, steps=2)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_batch_size(sd, size):
    with pytest.raises(ConfigError, match=r"^batch_size: found .*accepted"):
        LoopSampler(sd, scheduler="ddim").sample(TextToImage("a"), seeds=[1, 2], steps=2, batch_size=size)


# --- weights that are broken


@pytest.mark.parametrize(("scheduler", "value"), [("ddim", "nan"), ("euler", "inf"), ("unipc", "nan")])
def test_a_unet_that_gives_nan_names_the_stage(sd, scheduler, value):
    broken = copy.copy(sd)
    broken.unet = copy.deepcopy(sd.unet)
    broken.unet.conv_out.bias.data.fill_(float(value))
    with pytest.raises(SamplingError, match=r"latents: .*after stage 0, step 1 of 3 .*scheduler " + scheduler):
        LoopSampler(broken, scheduler=scheduler).sample(TextToImage("a"), seeds=[1], steps=3)


def test_a_vae_that_gives_nan_gives_no_picture(sd):
    broken = copy.copy(sd)
    broken.vae = copy.deepcopy(sd.vae)
    broken.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(SamplingError, match="decode"):
        LoopSampler(broken, scheduler="ddim").sample(TextToImage("a"), seeds=[1], steps=2)


def test_one_bad_image_of_a_batch_is_enough(pixel):
    broken = copy.copy(pixel)
    broken.unet = copy.deepcopy(pixel.unet)

    def poison(module, args, output):
        output[0][1, 0, 0, 0] = float("nan")

    broken.unet.register_forward_hook(poison)
    with pytest.raises(SamplingError, match="not finite"):
        LoopSampler(broken, scheduler="ddim").sample(Unconditional(), seeds=[1, 2], steps=2)
