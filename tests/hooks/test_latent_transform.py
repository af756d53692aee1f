"""Functions of the latents: once a step, in their window, and noise of their own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research import Hook, LoopSampler
from research.errors import ConfigError, SamplingError
from research.guidance import CFG
from research.hooks import Blur, Flip, LatentTransform, NoiseReinjection, Shift
from research.tasks import ImageToImage, TextToImage

pytestmark = pytest.mark.spread(2)

SCHEDULERS = ("ddim", "heun", "dpm2", "pndm", "dpmpp_2m", "euler_a")


def run(model, *hooks, seeds=(1, 2), scheduler="ddim", steps=5, task=None, **arguments):
    sampler = LoopSampler(model, scheduler, guidance=CFG(2.0), hooks=hooks)
    return sampler.sample(task or TextToImage("a cat"), seeds=list(seeds), steps=steps, **arguments)


def latents(n=2, channels=4, height=5, width=6, seed=0):
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


# --- when it acts


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.spread(2)
def test_once_a_step_whatever_the_scheduler_evaluates(sd, scheduler):
    steps_seen = []
    hook = LatentTransform(lambda x, state: steps_seen.append(state.stage.step) or x, (0.2, 0.8))
    plain, watched = run(sd, scheduler=scheduler), run(sd, hook, scheduler=scheduler)
    assert steps_seen == [1, 2, 3]
    assert torch.equal(plain.latents, watched.latents)


@pytest.mark.parametrize("scheduler", ["heun", "dpm2", "euler"])
@pytest.mark.spread(1)
def test_a_second_order_step_goes_on_from_what_was_transformed(sd, scheduler):
    """The scheduler steps from what it saved at the first evaluation, so all that follows is as if the run had come there so."""
    where = {}

    class At(Hook):
        order = -1000

        def pre_step(self, state):
            if state.stage.step == 2:
                where.setdefault("x", state.x)

    class Put(Hook):
        def pre_step(self, state):
            if state.stage.step == 2 and "put" not in where:
                state.x, where["put"] = where["x"].flip(-1), True

    flipped = run(sd, At(), LatentTransform(Flip(), (0.4, 0.6)), scheduler=scheduler)
    put = run(sd, Put(), scheduler=scheduler)
    assert torch.equal(flipped.latents, put.latents)
    assert not torch.equal(flipped.latents, run(sd, scheduler=scheduler).latents)


def test_it_takes_the_latents_or_the_state_as_well(sd):
    found = []

    class Wants:
        def __call__(self, x, state):
            found.append(state.stage.index)
            return x

    run(sd, LatentTransform(Wants()), steps=2)
    run(sd, LatentTransform(lambda x, state=None: found.append(state.stage.index) or x), steps=2)
    run(sd, LatentTransform(lambda x, amount=3: x * (amount / 3)), steps=2)
    run(sd, LatentTransform(torch.clone), steps=2)
    assert found == [0, 1, 0, 1]


def test_a_window_without_a_step_says_so(sd):
    result = run(sd, LatentTransform(Flip(), (0.25, 0.3)))
    assert result.warnings == [
        "hooks.latent_transform.steps: no step of this run lies in [0.25, 0.3); the hook did nothing."
    ]
    assert torch.equal(result.latents, run(sd).latents)
    assert run(sd, LatentTransform(Flip(), (0.5, 0.5))).warnings == []


@pytest.mark.parametrize("scheduler", ["ddim", "heun", "pndm", "dpmpp_2m", "euler_a"])
def test_idle_ones_are_bit_equal_to_none(sd, scheduler):
    idle = [
        LatentTransform(Flip(), (0.3, 0.3)),
        LatentTransform(Shift()),
        LatentTransform(Blur(0.0)),
        LatentTransform(NoiseReinjection(0.0)),
        LatentTransform(NoiseReinjection(1.0), (0.0, 0.0)),
    ]
    assert torch.equal(run(sd, *idle, scheduler=scheduler).latents, run(sd, scheduler=scheduler).latents)


def test_hooks_act_in_their_order(sd):
    double, add = LatentTransform(lambda x: x * 2, (0, 0.2)), LatentTransform(lambda x: x + 1, (0, 0.2))
    both = LatentTransform(lambda x: x * 2 + 1, (0, 0.2))
    assert torch.equal(run(sd, double, add).latents, run(sd, both).latents)
    double.order = 1
    assert torch.equal(run(sd, double, add).latents, run(sd, LatentTransform(lambda x: (x + 1) * 2, (0, 0.2))).latents)


# --- what they do


@settings(max_examples=25, deadline=None)
@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_shifting_forth_and_back(dx, dy, height, width, seed):
    x = latents(height=height, width=width, seed=seed)
    assert torch.equal(Shift(-dx, -dy)(Shift(dx, dy)(x)), x)
    repeated = Shift(dx, dy, edge="repeat")(x)
    for row in range(height):
        for column in range(width):
            y_from, x_from = min(max(row - dy, 0), height - 1), min(max(column - dx, 0), width - 1)
            assert torch.equal(repeated[..., row, column], x[..., y_from, x_from])


@pytest.mark.fidelity("hooks/shift", source="this project", against="numpy", within="exact")
def test_shift_goes_right_and_down_and_offsets_channels():
    x = torch.zeros(1, 4, 3, 3)
    x[..., 0, 0] = 1.0
    assert torch.equal(Shift(dx=1, dy=2)(x)[0, 0].nonzero(), torch.tensor([[2, 1]]))
    assert torch.equal(
        Shift(channels=[1, 0, 0, -2])(x) - x, torch.tensor([1.0, 0, 0, -2]).view(1, 4, 1, 1).expand_as(x)
    )
    assert torch.allclose(Shift(channels=0.5)(x) - x, torch.tensor(0.5))


@pytest.mark.fidelity("hooks/flip", source="this project", against="itself twice", within="exact")
def test_flip_twice_is_nothing():
    x = latents()
    for flip in (Flip(), Flip(False, True), Flip(True, True)):
        assert torch.equal(flip(flip(x)), x)
        assert not torch.equal(flip(x), x)
    assert torch.equal(Flip()(x)[..., 0], x[..., -1])
    assert torch.equal(Flip(False, True)(x)[..., 0, :], x[..., -1, :])


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 3.0), st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
def test_blur_keeps_flat_ones_and_takes_contrast(sigma, height, width, seed):
    blur, x = Blur(sigma), latents(height=height, width=width, seed=seed)
    flat = torch.full_like(x, 0.7)
    assert torch.allclose(blur(flat), flat, atol=1e-5)
    assert blur(x).std() <= x.std() + 1e-6
    assert torch.allclose(blur(2 * x + 1), 2 * blur(x) + 1, atol=1e-4)


@pytest.mark.fidelity("hooks/blur", source="this project", against="a Gaussian's spread", within="5 %")
def test_blur_spreads_as_a_gaussian():
    x = torch.zeros(1, 1, 41, 41)
    x[..., 20, 20] = 1.0
    seen = Blur(2.0)(x)[0, 0]
    places = torch.arange(41.0) - 20
    variance = (seen.sum(0) * places.square()).sum()
    assert math.isclose(float(variance), 4.0, rel_tol=0.05)
    assert torch.allclose(seen, seen.T)


# --- fresh noise


@settings(max_examples=20, deadline=None)
@given(st.floats(0.0, 1.0), st.sampled_from(["ddim", "euler", "heun", "dpmpp_2m"]))
@pytest.mark.fidelity(
    "hooks/noise_reinjection",
    source="arXiv:2010.02502, eq. 12",
    against="the spread and the correlation on Gaussian data",
    within="5 %",
)
@pytest.mark.slow
def test_the_level_stays_whatever_the_amount(oracle, amount, scheduler):
    """On x = a * x0 + b * noise with an exact estimate of x0, the noise keeps its deviation and loses its share of the old."""
    model, run_it = oracle
    before, after = run_it(model, scheduler, amount)
    assert after.std() == pytest.approx(1.0, abs=0.03)
    old = (before * after).mean() / before.square().mean()
    assert float(old) == pytest.approx(math.sqrt(1 - amount**2), abs=0.05)


@pytest.fixture(scope="module")
def oracle(sd):
    """Calls the transform at the last step of a run, whose estimate of x0 is replaced by 0.3 everywhere."""
    from research.sampling import Guided, Prediction, StepState

    def run_it(model, scheduler, amount):
        kept = {}
        transform = NoiseReinjection(amount)

        class Check(Hook):
            order = 5000

            def on_start(self, run):
                transform.on_start(run)

            def post_guidance(self, state):
                stage, run_ = state.stage, state.run
                shape = (len(run_.seeds), 4, 64, 64)
                noise = run_.noise.draw("hook/of the test", shape[1:])
                wide = StepState(run_, stage, stage.signal * 0.3 + stage.noise * noise)
                wide.guided = Guided(Prediction(torch.full(shape, 0.3), "x0"))
                transform.post_guidance(wide)
                mixed = transform(wide.x, wide)
                kept["pair"] = noise, (mixed - stage.signal * 0.3) / stage.noise

        run(model, Check(), scheduler=scheduler, steps=3)
        return kept["pair"]

    return sd, run_it


class Noises(Hook):
    """What of the noise each run drew."""

    def on_end(self, run):
        self.start = run.start_noise
        self.step_next = run.noise.draw("step", (3,))


@pytest.mark.parametrize("scheduler", ["euler_a", "ddpm", "dpmpp_2m_sde"])
def test_it_moves_nobody_elses_noise(sd, scheduler):
    with_it, without = Noises(), Noises()
    run(sd, LatentTransform(NoiseReinjection(0.8)), with_it, scheduler=scheduler)
    run(sd, without, scheduler=scheduler)
    assert torch.equal(with_it.start, without.start)
    assert torch.equal(with_it.step_next, without.step_next)


@pytest.mark.parametrize(
    "transform", [NoiseReinjection(0.7), Blur(0.5), Shift(1), Flip()], ids=lambda t: type(t).__name__
)
@pytest.mark.spread(2)
def test_a_batch_equals_singles_and_runs_repeat(sd, transform):
    hook = LatentTransform(transform, (0.2, 0.9))
    together = run(sd, hook, seeds=(1, 2, 3), scheduler="euler_a")
    alone = run(sd, hook, seeds=(1, 2, 3), scheduler="euler_a", batch_size=1)
    error = (together.latents - alone.latents).norm() / together.latents.norm()
    assert error < 1e-4
    assert torch.equal(run(sd, hook, seeds=(1, 2, 3), scheduler="euler_a").latents, together.latents)


def test_fresh_noise_from_the_first_stage_on(sd):
    """Before an estimate there is, the noise that the start was made of is what is replaced: all of it is another start."""
    first = run(sd, LatentTransform(NoiseReinjection(1.0), (0.0, 0.2)))
    assert not torch.allclose(first.latents, run(sd).latents, atol=0.1)
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    task = ImageToImage("a", picture, 0.6)
    changed = run(sd, LatentTransform(NoiseReinjection(0.5), (0.4, 0.6)), task=task)
    assert not torch.equal(changed.latents, run(sd, task=task).latents)


def test_streams_of_their_own(sd):
    one, two = LatentTransform(NoiseReinjection(0.5, "a")), LatentTransform(NoiseReinjection(0.5, "b"))
    assert not torch.equal(run(sd, one).latents, run(sd, two).latents)


# --- bad input


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: LatentTransform(Flip(), (0.6, 0.2)), r"latent_transform\.steps: found \[0\.6, 0\.2\]; accepted are 0 <= lo"),
        (lambda: LatentTransform(Flip(), (0.0, 1.5)), r"latent_transform\.steps: found \[0\.0, 1\.5\]"),
        (lambda: LatentTransform(Flip(), (math.nan, 1)), r"latent_transform\.steps: found \[nan, 1\]"),
        (lambda: LatentTransform(Flip(), 0.5), r"latent_transform\.steps: found 0\.5"),
        (lambda: LatentTransform(Flip(), (0, 0.5, 1)), r"latent_transform\.steps: found \[0, 0\.5, 1\]"),
        (lambda: LatentTransform("flip"), r"latent_transform\.transform: found 'flip'"),
        (lambda: Shift(dx=0.5), r"shift\.dx: found 0\.5; accepted is a whole number of latent cells"),
        (lambda: Shift(edge="mirror"), r"shift\.edge: found 'mirror'; accepted are wrap and repeat"),
        (lambda: Shift(channels=[1, math.inf]), r"shift\.channels: found inf"),
        (lambda: Flip(False, False), r"flip: found neither horizontal nor vertical"),
        (lambda: Blur(-1), r"blur\.sigma: found -1; accepted is a number from 0"),
        (lambda: NoiseReinjection(1.2), r"noise_reinjection\.amount: found 1\.2; accepted is a number from 0 to 1"),
        (lambda: NoiseReinjection(math.nan), r"noise_reinjection\.amount: found nan"),
    ],
)  # fmt: skip
def test_what_is_refused_when_it_is_made(make, found):
    with pytest.raises(ConfigError, match=f"^hooks\\.{found}") as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("transform", "found"),
    [
        (lambda x: x[:, :3], r"<lambda> returned \(2, 3, 8, 8\) torch\.float32 at step 0"),
        (lambda x: x.double(), r"returned \(2, 4, 8, 8\) torch\.float64 at step 0"),
        (lambda x: None, "returned NoneType at step 0"),
    ],
)
def test_another_shape_or_dtype(sd, transform, found):
    with pytest.raises(SamplingError, match=rf"^hooks\.latent_transform: .*{found}"):
        run(sd, LatentTransform(transform))


def test_offsets_for_another_number_of_channels(sd):
    with pytest.raises(SamplingError, match=r"^hooks\.shift\.channels: found 3 numbers; .* the 4 channels"):
        run(sd, LatentTransform(Shift(channels=[1, 2, 3])))


def test_levels_that_nobody_knows(sd):
    with pytest.raises(ConfigError, match=r"^hooks: LatentTransform needs a scheduler whose noise levels"):
        run(sd, LatentTransform(NoiseReinjection(0.5)), scheduler="IPNDMScheduler")


def test_an_error_in_a_transform_says_where(sd):
    def divide(x):
        return x / (1 // 0)

    with pytest.raises(ZeroDivisionError) as caught:
        run(sd, LatentTransform(divide, (0.4, 1)))
    (note,) = caught.value.__notes__
    assert note == "raised in hook LatentTransform.pre_step at step 2 (stage 2)"
    assert "divide" in [entry.name for entry in caught.traceback]
