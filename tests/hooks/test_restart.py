"""`Restart` and `RePaint`: stages that are walked again."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import RePaintScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.task_samples import close, left_half, picture, run

from research import Hook, LoopSampler
from research.errors import ConfigError
from research.guidance import APG, PAG, Interval, Rescale
from research.hooks import FeatureCache, MaskComposite, RePaint, Restart
from research.sampling.timeline import Timeline
from research.tasks import ImageToImage, Inpaint, Inversion, TextToImage
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask

pytestmark = pytest.mark.spread(2)

MEMORYLESS = ["ddim", "euler", "ddpm", "euler_a"]
SPREAD = torch.tensor([1.0, 2.0, 4.0, 8.0]).reshape(4, 1, 1)


class Watch(Hook):
    """The latents that each stage starts with, in the order that they are walked."""

    order = 2000

    def on_start(self, run):
        self.run, self.stages, self.seen = run, [], []

    def pre_step(self, state):
        self.stages.append(state.stage)
        self.seen.append(state.x.clone())

    @property
    def walked(self):
        return [stage.index for stage in self.stages]


def on_gaussian(model, hooks, *, scheduler="ddim", steps=6, n=16, task=None):
    sampler = LoopSampler(model, scheduler, hooks=hooks)
    return sampler.sample(task or GaussianTask(), seeds=range(n), steps=steps)


def spread(latents) -> torch.Tensor:
    """The standard deviation of each channel."""
    return latents.double().transpose(0, 1).flatten(1).std(dim=1)


# --- the walk


def test_an_interval_of_the_steps_is_walked_again(sd):
    watch = Watch()
    found = run(sd, TextToImage("a"), [1], steps=6, hooks=[Restart(steps=(1 / 3, 2 / 3), times=2), watch])
    assert watch.walked == [0, 1, 2, 3, 2, 3, 2, 3, 4, 5]
    assert [entry["index"] for entry in found.trace["stages"]] == watch.walked
    assert found.nfe_by_branch == {"uncond": 10, "cond": 10}


@pytest.mark.parametrize("scheduler", MEMORYLESS)
def test_an_interval_of_noise_levels_is_walked_again(sd, scheduler):
    watch = Watch()
    hook = Restart(sigma=(0.5, 3.0), times=1)
    found = run(sd, TextToImage("a"), [1], steps=10, scheduler=scheduler, hooks=[hook, watch])
    sigmas = [stage.sigma for stage in watch.run.timeline.stages]
    high = next(i for i, sigma in enumerate(sigmas) if sigma <= 3.0)
    low = next(i for i, sigma in enumerate(sigmas) if sigma < 0.5) - 1
    assert watch.walked == [*range(low), *range(high, low), *range(low, 10)]
    assert found.nfe == 2 * (10 + low - high)


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(2, 40), length=st.integers(1, 39), samples=st.integers(1, 6))
def test_the_jumps_of_repaint_are_those_published(steps, length, samples):
    assume(length < steps)
    theirs = RePaintScheduler()
    theirs.set_timesteps(steps, jump_length=length, jump_n_sample=samples)
    unit = theirs.config.num_train_timesteps // steps
    # published (get_schedule_jump): the list of times that diffusers has too, and -1; the model is evaluated at the first of
    # two times of which the second is lower. Diffusers' pipeline evaluates at the second, and so jumps a step later
    times = [*(int(t) // unit for t in theirs.timesteps), -1]
    right = [steps - 1 - a for a, b in pairwise(times) if b < a]
    walked = RePaint(length, samples).walk(None, Timeline((None,) * steps, steps))
    assert walked == right
    jumps = math.ceil((steps - length) / length)
    assert len(walked) == steps + length * (samples - 1) * jumps


@pytest.mark.fidelity(
    "hooks/repaint",
    source="arXiv:2201.09865, section 4.2 and appendix B",
    against="the authors' schedule of jumps",
    within="exact",
    differs="the fully known part is noised afresh at each step with its default",
)
def test_the_walk_of_twelve_steps():
    walked = RePaint(3, 2).walk(None, Timeline((None,) * 12, 12))
    assert walked == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 9, 10, 8, 9, 10, 11]


def test_the_walk_stays_in_the_part_that_a_strength_leaves(sd):
    watch = Watch()
    task = ImageToImage("a", picture(), 0.5)
    found = run(sd, task, [1], steps=12, hooks=[RePaint(2, 2), watch])
    assert watch.walked == [0, 1, 2, 1, 2, 3, 4, 3, 4, 5] == [s.step - 6 for s in watch.stages]
    assert found.nfe == 20
    task = ImageToImage("a", picture(), 0.0)
    assert run(sd, task, [1], steps=12, hooks=[RePaint(2, 2)]).nfe == 0


# --- the noise that is put back


@pytest.mark.parametrize("scheduler", [*MEMORYLESS, "ddim_trailing"])
@pytest.mark.parametrize(
    "hook", [Restart(sigma=(0.3, 5.0), times=3), Restart(steps=(0.0, 1.0), times=1), RePaint(3, 3)]
)
def test_each_stage_has_the_noise_of_its_level(scheduler, hook):
    """On data of a single point, where a step is exact: the latents are its own, with noise of just the level's size."""
    mean = torch.tensor([0.5, -0.5, 1.0, -1.0]).reshape(4, 1, 1)
    watch = Watch()
    model = GaussianModel(mean, 0.0, (4, 32, 32))
    found = on_gaussian(model, [hook, watch], scheduler=scheduler, steps=9, n=4)
    assert len(watch.seen) > 9
    for stage, x in zip(watch.stages, watch.seen, strict=True):
        rest = x - stage.signal * mean
        assert float(rest.std()) == pytest.approx(stage.noise, rel=0.03)
        assert abs(float(rest.mean())) < 0.03 * stage.noise
    signal, noise = watch.run.solver.end_level
    assert float((found.latents - signal * mean).std()) == pytest.approx(noise, rel=0.03, abs=1e-5)


@pytest.mark.parametrize("window", [{"steps": (0.2, 0.8)}, {"sigma": (0.2, 0.8)}])
def test_on_flow_matching(window):
    """Noise levels are the flow time there, which ends at 1 and not at infinity."""
    model = GaussianModel(0.3, 0.0, (4, 32, 32), "flow")
    watch = Watch()
    on_gaussian(model, [Restart(**window, times=2), watch], scheduler="flow_euler", steps=10, n=4)
    again = [stage for stage in watch.run.timeline.stages if watch.walked.count(stage.index) > 1]
    assert 4 <= len(again) <= 6
    assert len(watch.walked) == 10 + 2 * len(again)
    assert all(0.2 <= stage.sigma <= 0.8 for stage in again)
    for stage, x in zip(watch.stages, watch.seen, strict=True):
        assert float((x - stage.signal * 0.3).std()) == pytest.approx(stage.noise, rel=0.03)


@pytest.mark.parametrize("hook", [Restart(sigma=(0.1, 2.0), times=4), RePaint(20, 3)])
def test_the_spread_of_the_data_stays_right(hook):
    """With fine steps, of which each is nearly exact."""
    model = GaussianModel(0.5, SPREAD, (4, 24, 24))
    found = on_gaussian(model, [hook], steps=150, n=24)
    assert torch.allclose(spread(found.latents) / SPREAD.flatten(), torch.ones(4).double(), atol=0.02)


class Shifted(Hook):
    """An error in the latents, before the interval."""

    order = 1

    def __init__(self, by):
        self.by = by

    def pre_step(self, state):
        if state.run.x is not None and state.stage.index == 0:
            state.x = state.x + self.by


@pytest.mark.parametrize("times", [0, 1, 3])
@pytest.mark.spread(1)
@pytest.mark.fidelity(
    "hooks/restart",
    source="arXiv:2306.14878, algorithm 1",
    against="the factor by which errors shrink on Gaussian data",
    within="5 %",
    differs="with any first-order scheduler, where the paper has Heun",
)
def test_errors_made_before_shrink_by_the_known_factor(times):
    """An error of latents at the lower level is the same at the upper one, and the exact flow takes it down again by the ratio of
    the spreads there (theorem 3 of the paper, on Gaussian data): once for each time."""
    std, shift = 1.0, 0.5
    model = GaussianModel(0.0, std, (1, 4, 4))
    hook, watch = Restart(sigma=(0.5, 2.0), times=times), Watch()
    hooks = [hook, watch]
    right, wrong = (
        on_gaussian(model, [*hooks, Shifted(by)], scheduler="euler", steps=400, n=2).latents for by in (0.0, shift)
    )
    inside = hook.walk(watch.run.solver, Timeline(watch.run.timeline.stages, 400))
    sigmas = [stage.sigma for stage in watch.run.timeline.stages]
    again = sorted({i for i in inside if inside.count(i) > 1}) or [0]
    high, low = sigmas[again[0]], sigmas[again[-1] + 1]
    ratio = math.sqrt((std**2 + low**2) / (std**2 + high**2)) if times else 1.0
    over_signal = shift / watch.run.timeline.stages[0].signal
    expected = over_signal * std / math.hypot(std, sigmas[0]) * ratio**times
    found = wrong - right
    assert torch.allclose(found, torch.full_like(found, expected), rtol=0.05)


def test_coarse_steps_come_closer_to_the_data():
    """Six Euler steps lose a fifth of the spread, most of it early; going back through the middle wins some of it again."""
    model = GaussianModel(0.5, SPREAD, (4, 32, 32))
    plain, better = (
        spread(on_gaussian(model, hooks, scheduler="euler", steps=6, n=32).latents) / SPREAD.flatten()
        for hooks in ([], [Restart(sigma=(0.05, 2.0), times=8)])
    )
    assert (plain < 0.84).all()
    assert (better - plain).mean() > 0.008
    assert (better > plain - 0.005).all()
    assert (better < 1).all()


# --- beside everything else


@pytest.mark.parametrize("scheduler", MEMORYLESS)
def test_no_time_more_is_no_hook(sd, scheduler):
    plain = run(sd, TextToImage("a"), [1, 2], scheduler=scheduler, steps=5)
    for hook in (Restart(steps=(0.2, 0.8), times=0), RePaint(2, 1)):
        found = run(sd, TextToImage("a"), [1, 2], scheduler=scheduler, steps=5, hooks=[hook])
        assert torch.equal(found.latents, plain.latents)


@pytest.mark.parametrize("scheduler", MEMORYLESS)
@pytest.mark.parametrize("hook", [Restart(steps=(0.2, 0.8), times=2), RePaint(2, 3)])
@pytest.mark.spread(1)
def test_an_image_is_the_same_alone_and_in_any_batch(sd, scheduler, hook):
    together = run(sd, TextToImage("a"), [1, 2, 3], scheduler=scheduler, steps=5, hooks=[hook])
    alone = run(sd, TextToImage("a"), [1, 2, 3], scheduler=scheduler, steps=5, hooks=[hook], batch_size=1)
    assert close(alone.latents, together.latents)
    again = run(sd, TextToImage("a"), [1, 2, 3], scheduler=scheduler, steps=5, hooks=[hook])
    assert torch.equal(again.latents, together.latents)


@pytest.mark.parametrize("scheduler", ["ddpm", "euler_a"])
def test_its_noise_is_its_own(sd, scheduler):
    """Up to the first jump the run is the plain one; the steps' own noise then goes on where it was."""
    plain, hooked = Watch(), Watch()
    run(sd, TextToImage("a"), [1], scheduler=scheduler, steps=6, hooks=[plain])
    run(sd, TextToImage("a"), [1], scheduler=scheduler, steps=6, hooks=[Restart(steps=(0.4, 0.6)), hooked])
    jump = next(i for i, (a, b) in enumerate(pairwise(hooked.walked)) if b <= a)
    assert jump == 3
    for k in range(jump + 1):
        assert torch.equal(plain.seen[k], hooked.seen[k])
    assert not torch.allclose(plain.seen[3], hooked.seen[4], atol=0.1)


@pytest.mark.parametrize("scheduler", MEMORYLESS)
@pytest.mark.spread(2)
def test_inpainting_by_repaint(sd, scheduler):
    task = Inpaint("a", picture(), left_half(), paste_back=False)
    plain, found = (run(sd, task, [1, 2], scheduler=scheduler, steps=8, hooks=hooks) for hooks in ([], [RePaint(2, 3)]))
    assert found.nfe == 2 * (8 + 2 * 2 * 3)
    assert torch.equal(found.latents[..., 4:], plain.latents[..., 4:])  # the picture's
    assert not torch.allclose(found.latents[..., :4], plain.latents[..., :4], atol=0.05)


def test_what_is_kept_stays_at_its_level_after_a_jump():
    """Outside the mask a stage walked again sees the picture with the noise of its level."""
    clean = 0.8 * torch.ones(1, 4, 32, 32, dtype=torch.float64)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    watch = Watch()
    hooks = [RePaint(3, 3), MaskComposite(mask, latents=clean), watch]
    found = on_gaussian(GaussianModel(0.0, 1.0, (4, 32, 32)), hooks, steps=9, n=4)
    for stage, x in list(zip(watch.stages, watch.seen, strict=True))[1:]:
        rest = x[..., 16:] - stage.signal * 0.8
        assert float(rest.std()) == pytest.approx(stage.noise, rel=0.05)
    assert torch.equal(found.latents[..., 16:].double(), clean.expand(4, -1, -1, -1)[..., 16:].float().double())


class Kept(Hook):
    """The noise in what is kept, after each step: [stages, C, h, w / 2]."""

    order = 1000

    def __init__(self, clean):
        self.clean = clean

    def on_start(self, run):
        self.noises, self.start = [], run.start_noise

    def post_step(self, state):
        after = state.stage.index + 1
        if after < len(state.run.timeline):
            level = state.run.timeline[after]
            self.noises.append((state.x[0, ..., 16:] - level.signal * self.clean) / level.noise)


@pytest.mark.parametrize(
    ("hooks", "fresh", "afresh"),
    [
        ([], None, False),
        ([], True, True),
        ([RePaint(3, 2)], None, True),
        ([RePaint(3, 2)], False, False),
        ([RePaint(3, 1)], None, False),
        ([Restart(steps=(0.3, 0.6), times=1)], None, True),
    ],
)
def test_what_is_kept_is_noised_afresh_where_the_run_goes_back(hooks, fresh, afresh):
    """RePaint's published code draws at each step, diffusers' inpainting pipelines once."""
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    composite, kept = MaskComposite(mask, latents=torch.full((1, 4, 32, 32), 0.8), fresh_noise=fresh), Kept(0.8)
    model = GaussianModel(0.0, 1.0, (4, 32, 32))
    found = on_gaussian(model, [*hooks, composite, kept], steps=9, n=2)
    noises = torch.stack(kept.noises).flatten(1)
    alike = torch.corrcoef(noises) - torch.eye(len(noises))
    assert float(alike.abs().max()) < 0.15 if afresh else float(alike.max()) > 0.99
    again = on_gaussian(model, [*hooks, composite], steps=9, n=2)
    assert torch.equal(found.latents, again.latents)


def test_noise_that_is_given_and_drawn_afresh_is_refused():
    where, noise = torch.zeros(1, 1, 8, 8), torch.zeros(1, 4, 8, 8)
    with pytest.raises(ConfigError, match=r"^hooks\.mask_composite: found noise and fresh_noise=True"):
        MaskComposite(where, latents=noise, noise=noise, fresh_noise=True)


@pytest.mark.parametrize(
    "around", [lambda g: g, lambda g: Rescale(Interval(g, steps=(0, 1))), lambda g: PAG(0.0, base=g)]
)
def test_momentum_begins_anew_after_a_jump(sd, around):
    """Against the update written out: the difference, and momentum times that of the stage before unless a jump lies between."""

    class Updates(Hook):
        def on_start(self, run):
            self.found = []

        def post_guidance(self, state):
            p = state.predictions
            self.found.append(
                (state.stage.index, p["cond"].value - p["uncond"].value, state.guided.prediction.value, p)
            )

    watch = Updates()
    guidance = APG(3.0, eta=1, momentum=-0.5, norm_threshold=0, space="epsilon")
    wrapped = around(guidance)
    run_by = LoopSampler(sd, "ddim", guidance=wrapped, hooks=[RePaint(2, 2), watch])
    run_by.sample(TextToImage("a"), seeds=[1], steps=6)
    past, last, jumps = None, None, 0
    for index, difference, guided, predictions in watch.found:
        if last is not None and index <= last:
            past, jumps = None, jumps + 1
        update = difference if past is None else difference - 0.5 * past
        past, last = update, index
        if not isinstance(wrapped, Rescale):
            assert close(guided, predictions["cond"].value + 2 * update)
        else:
            plain = predictions["cond"].value + 2 * update
            assert torch.cosine_similarity(guided.flatten(), plain.flatten(), dim=0) > 1 - 1e-5
    assert jumps == 2


def test_a_feature_cache_starts_anew_after_a_jump(sd):
    hooks = [Restart(steps=(0.25, 0.75), times=1), FeatureCache(every=8)]
    found = run(sd, TextToImage("a"), [1], steps=8, hooks=hooks)
    assert found.trace["feature_cache"] == {"evaluations": 2 * 12, "deep_evaluations": [2 * 2]}


# --- what is refused


@pytest.mark.parametrize("scheduler", ["heun", "pndm", "dpmpp_2m", "unipc", "lms", "dpm2"])
@pytest.mark.parametrize("hook", [Restart(steps=(0.2, 0.8)), RePaint(2, 2)])
def test_schedulers_with_a_memory_are_refused(sd, scheduler, hook):
    with pytest.raises(ConfigError, match=r"^hooks: Re.* needs a scheduler that can go back.*first-order"):
        LoopSampler(sd, scheduler, hooks=[hook])


def test_parity_and_tasks_with_a_way_back_are_refused(sd):
    with pytest.raises(ConfigError, match=r"needs a scheduler that can go back.*without parity"):
        LoopSampler(sd, "ddim", hooks=[RePaint(2, 2)], parity=True)
    with pytest.raises(ConfigError, match=r"^hooks\.repaint: cannot go back .* accepted are tasks that denoise once"):
        run(sd, Inversion("a", picture()), [1], scheduler="ddim", hooks=[RePaint(2, 2)])


def test_two_hooks_with_a_walk_are_refused(sd):
    with pytest.raises(ConfigError, match=r"^hooks: RePaint conflicts with Restart.*timeline"):
        LoopSampler(sd, hooks=[Restart(steps=(0.2, 0.8)), RePaint(2, 2)])


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: Restart(), "restart: found neither or both of sigma and steps"),
        (lambda: Restart((0.1, 2), steps=(0, 1)), "restart: found neither or both"),
        (lambda: Restart((2, 0.1)), r"restart\.sigma: found \[2, 0\.1\]; accepted are two numbers, 0 <= lo < hi"),
        (lambda: Restart((-1, 2)), r"restart\.sigma: found"),
        (lambda: Restart((0.1, float("nan"))), r"restart\.sigma: found"),
        (lambda: Restart((0.1, float("inf"))), r"restart\.sigma: found"),
        (lambda: Restart(0.1), r"restart\.sigma: found 0\.1"),
        (lambda: Restart((0.1, 1, 2)), r"restart\.sigma: found"),
        (lambda: Restart((0.1, 2), times=-1), r"restart\.times: found -1; accepted is a whole number from 0"),
        (lambda: Restart((0.1, 2), times=1.5), r"restart\.times: found 1\.5"),
        (lambda: Restart(steps=(0.8, 0.2)), r"restart\.steps: found \[0\.8, 0\.2\]"),
        (lambda: RePaint(0, 2), r"repaint\.jump_length: found 0; accepted is a whole number from 1"),
        (lambda: RePaint(2, 0), r"repaint\.jump_n_sample: found 0; accepted is a whole number from 1"),
        (lambda: RePaint("2", 2), r"repaint\.jump_length: found '2'"),
    ],
)
def test_settings_it_refuses(make, found):
    with pytest.raises(ConfigError, match=rf"^hooks\.{found}") as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hook", "found"),
    [
        (Restart(sigma=(0.5, 0.51)), r"restart\.sigma: \[0\.5, 0\.51\] holds no two levels of the 5 steps"),
        (Restart(sigma=(50, 100)), r"restart\.sigma: .* accepted is an interval within 0\.0292 to "),
        (Restart(steps=(0.5, 0.55)), r"restart\.steps: \[0\.5, 0\.55\) holds none of the 5 steps"),
        (RePaint(5, 2), r"repaint\.jump_length: found 5 with 5 steps to run; accepted is less"),
    ],
)
def test_intervals_without_a_step(sd, hook, found):
    with pytest.raises(ConfigError, match=rf"^hooks\.{found}") as caught:
        run(sd, TextToImage("a"), [1], steps=5, hooks=[hook])
    assert "\n" not in str(caught.value)
