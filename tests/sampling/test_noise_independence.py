"""An image is named by its seed: the same alone, in any batch, after any run, whatever else draws noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research import Hook, LoopSampler
from research.guidance import CFG
from research.sampling import NoiseSource
from research.sampling.noise import ENCODE, HOOK, INITIAL, STEP, stream_seed
from research.tasks import TextToImage

pytestmark = pytest.mark.spread(2)

# One image in a batch of two runs through other kernels than alone. Measured on random weights, which amplify rounding
# more than trained ones: below 1e-5 of the norm for 5 steps.
TOLERANCE = 1e-4
STOCHASTIC = ["ddpm", "euler_a", "dpm2_a", "dpmpp_2m_sde", "dpmpp_sde", "lcm"]
SEEDS = st.integers(0, 2**63 - 1)


class Recorder(Hook):
    """Keeps the noise that the scheduler added at each stage, as what a repeat of the prediction leaves over."""

    def on_start(self, run):
        self.start = run.x.clone()
        self.steps: list[torch.Tensor] = []

    def post_step(self, state):
        self.steps.append(state.x.clone())


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).norm() / b.norm()) < TOLERANCE


def latents(model, scheduler, seeds, steps=4, prompts="a cat", **arguments) -> torch.Tensor:
    sampler = LoopSampler(model, scheduler=scheduler, guidance=CFG(2.0), hooks=arguments.pop("hooks", ()))
    return sampler.sample(TextToImage(prompts), seeds=seeds, steps=steps, **arguments).latents


# --- the streams


@given(seed=SEEDS)
def test_the_initial_stream_is_the_seed_itself(seed):
    expected = torch.randn((1, 3, 2, 5), generator=torch.Generator("cpu").manual_seed(seed))
    assert torch.equal(NoiseSource([seed]).draw(INITIAL, (3, 2, 5)), expected)


@given(seeds=st.lists(SEEDS, min_size=1, max_size=5), row=st.integers(0, 4), draws=st.integers(1, 4))
def test_a_row_is_the_same_alone_and_in_any_batch(seeds, row, draws):
    row %= len(seeds)
    batch, alone = NoiseSource(seeds), NoiseSource([seeds[row]])
    for _ in range(draws):
        assert torch.equal(batch.draw(STEP, (2, 3))[row], alone.draw(STEP, (2, 3))[0])


@given(seed=SEEDS, order=st.permutations([INITIAL, STEP, ENCODE, HOOK, "a hook of mine"]), extra=st.integers(0, 3))
def test_streams_do_not_know_of_one_another(seed, order, extra):
    expected = {stream: NoiseSource([seed]).draw(stream, (4,)) for stream in order}
    source = NoiseSource([seed])
    for stream in order:
        assert torch.equal(source.draw(stream, (4,)), expected[stream])
        for _ in range(extra):
            source.draw(stream, (7,))
    assert len({tuple(noise.flatten().tolist()) for noise in expected.values()}) == len(order)


@given(first=SEEDS, second=SEEDS)
def test_stream_seeds_fit_a_generator_and_differ(first, second):
    streams = [INITIAL, STEP, ENCODE, HOOK]
    of_first = [stream_seed(first, stream) for stream in streams]
    assert all(0 <= seed < 2**63 for seed in of_first)
    assert len(set(of_first)) == len(streams)
    if first != second:
        assert not set(of_first) & {stream_seed(second, stream) for stream in streams}


@given(seed=SEEDS)
def test_parity_draws_everything_from_one_generator(seed):
    source, generator = NoiseSource([seed], parity=True), torch.Generator("cpu").manual_seed(seed)
    for stream in (INITIAL, ENCODE, STEP, "mine"):
        assert torch.equal(source.draw(stream, (2, 2)), torch.randn((1, 2, 2), generator=generator))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_does_not_depend_on_the_dtype(dtype):
    full, half = (NoiseSource([4]).draw(STEP, (64,), d) for d in (torch.float32, dtype))
    assert torch.equal(full.to(dtype), half)
    in_parity = NoiseSource([4], parity=True).draw(STEP, (64,), dtype)
    assert torch.equal(in_parity, torch.randn((1, 64), generator=torch.Generator().manual_seed(4), dtype=dtype))


def test_noise_is_standard_normal():
    drawn = NoiseSource(range(64)).draw(STEP, (4, 16, 16))
    assert abs(float(drawn.mean())) < 0.02
    assert abs(float(drawn.std()) - 1) < 0.02


# --- in the loop


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "heun", "unipc", *STOCHASTIC])
@pytest.mark.spread(2)
def test_alone_and_in_a_batch(sd, scheduler):
    together = latents(sd, scheduler, [7, 3, 11])
    for row, seed in enumerate([7, 3, 11]):
        assert close(latents(sd, scheduler, [seed])[0], together[row]), seed
    assert close(latents(sd, scheduler, [11, 7])[1], together[0])


@pytest.mark.parametrize("scheduler", ["ddim", *STOCHASTIC])
@pytest.mark.spread(2)
def test_batch_size_cuts_and_does_not_change(sd, scheduler):
    prompts = ["a", "b", "c d", "e", "f"]
    negative = ["x", "", "y", "x", "z"]
    task, sampler = TextToImage(prompts, negative), LoopSampler(sd, scheduler=scheduler, guidance=CFG(2.0))
    whole = sampler.sample(task, seeds=range(5), steps=2)
    for size in (1, 2, 9):
        cut = sampler.sample(task, seeds=range(5), steps=2, batch_size=size)
        assert close(cut.latents, whole.latents)
        assert cut.prompts == prompts
        assert cut.seeds == [0, 1, 2, 3, 4]
        assert cut.nfe == whole.nfe
        assert len(cut.images) == 5


@pytest.mark.parametrize("scheduler", ["euler", "pndm", "unipc", "dpm2", *STOCHASTIC])
@pytest.mark.spread(1)
def test_a_b_a_on_one_sampler(sd, scheduler):
    sampler = LoopSampler(sd, scheduler=scheduler, guidance=CFG(2.0))

    def run(seeds, steps, **task):
        return sampler.sample(TextToImage("a cat", **task), seeds=seeds, steps=steps).latents

    first = run([1, 2], 3)
    run([9, 8, 7], 2)
    run([5], 4, height=32, width=8)
    assert torch.equal(run([1, 2], 3), first)


@pytest.mark.parametrize("scheduler", ["ddim", *STOCHASTIC])
@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.spread(3)
def test_the_global_generators_are_neither_read_nor_moved(sd, scheduler, parity):
    options = {"noise_sampler_seed": 3} if scheduler == "dpmpp_sde" and parity else {}

    class Disturb(Hook):
        def post_step(self, state):
            torch.randn(17)
            np.random.rand(3)
            torch.manual_seed(state.stage.index)

    def run(hooks):
        sampler = LoopSampler(sd, scheduler=scheduler, scheduler_options=options, hooks=hooks, parity=parity)
        return sampler.sample(TextToImage("a"), seeds=[1, 2], steps=3).latents

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run([])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(run([]), first)
    assert torch.equal(run([Disturb()]), first)


@pytest.mark.parametrize("scheduler", ["ddpm", "euler_a", "dpmpp_2m_sde", "dpmpp_sde"])
def test_a_hook_that_draws_moves_nobody_elses_noise(sd, scheduler):
    class Draws(Hook):
        def __init__(self, name):
            self.name, self.drawn = name, []

        def on_start(self, run):
            run.noise.draw(self.name, (5,))

        def pre_step(self, state):
            self.drawn.append(state.run.noise.draw(self.name, tuple(state.x.shape[1:])))

    alone = latents(sd, scheduler, [1, 2])
    a, b, again = Draws("a"), Draws("b"), Draws("a")
    assert torch.equal(latents(sd, scheduler, [1, 2], hooks=[a, b]), alone)
    assert torch.equal(latents(sd, scheduler, [1, 2], hooks=[b, again]), alone)
    assert torch.equal(a.drawn[3], again.drawn[3])
    assert not torch.equal(a.drawn[0], b.drawn[0])


@pytest.mark.slow
@given(seeds=st.lists(st.integers(0, 50), min_size=1, max_size=4), scheduler=st.sampled_from(["ddim", "euler_a"]))
@settings(max_examples=12, deadline=None)
def test_any_batch_of_seeds(sd, seeds, scheduler):
    found = latents(sd, scheduler, seeds, steps=2)
    for row, seed in enumerate(seeds):
        assert close(latents(sd, scheduler, [seed], steps=2)[0], found[row])


def test_a_new_sampler_starts_like_the_first_one(sd):
    """What is remembered of settings seen before includes the scale of the start noise."""
    first = latents(sd, "euler", [3], steps=1)  # leading spacing: one step from a low level
    assert torch.equal(latents(sd, "euler", [3], steps=1), first)


def test_start_latents_are_those_of_diffusers_scaled(sd):
    recorder = Recorder()
    latents(sd, "euler", [42], hooks=[recorder])
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(42))
    assert torch.allclose(recorder.start, noise, rtol=1e-5)
    LoopSampler(sd, "euler", hooks=[recorder], parity=True).sample(TextToImage("a cat"), seeds=[42], steps=4)
    sigma = LoopSampler(sd, scheduler="euler")._new_solver().timeline(4)[0].sigma
    assert torch.allclose(recorder.start, noise * (sigma**2 + 1) ** 0.5, rtol=1e-5)
