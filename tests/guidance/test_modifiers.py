"""Interval, schedule, renorm, rescale and threshold: around any guidance, and around each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from guidance_samples import (
    SHAPE,
    converted,
    guided_x0,
    kinds,
    log_sigmas,
    normal,
    predictions_of,
    relative,
    scales,
    seeds,
    shapes,
    stage_of,
    state_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import (
    APG,
    CFG,
    FDG,
    PAG,
    CFGPlusPlus,
    CFGZero,
    Guidance,
    Interval,
    NoGuidance,
    PerpNeg,
    Renorm,
    Rescale,
    Schedule,
    Threshold,
)
from research.guidance.renorm import renormed
from research.hooks import Record
from research.sampling import Guided, Hook, Prediction
from research.tasks import TextToImage, Unconditional

pytestmark = pytest.mark.spread(2)

quick = settings(max_examples=25, deadline=None)
BASES = {
    "cfg": CFG,
    "apg": lambda s: APG(s, norm_threshold=3),
    "cfg_zero": lambda s: CFGZero(s, zero_steps=0),
    "fdg": lambda s: FDG(s),
    "cfg_plus_plus": lambda s: CFGPlusPlus(abs(s) % 1),
}
bases = st.sampled_from(sorted(BASES))


def guided(guidance: Guidance, state, predictions) -> Prediction:
    guidance.start(state.run)
    asked = [branch.name for branch in guidance.branches(state)]
    return guidance.combine(state, {name: predictions[name] for name in asked}).prediction


# --- rules for all numbers


@quick
@given(bases, scales, log_sigmas, kinds, seeds, shapes, st.integers(0, 9))
def test_over_everything_it_is_the_base(name, scale, log_sigma, kind, seed, shape, step):
    state = state_of(stage_of(math.exp(log_sigma), index=step), seed=seed, shape=shape, kind=kind)
    predictions = predictions_of(state, seed=seed, kind=kind)
    alone = guided(BASES[name](scale), state, predictions)
    around = {
        "interval by steps": Interval(BASES[name](scale), steps=(0, 1)),
        "interval by sigma": Interval(BASES[name](scale), sigma=(0, math.inf)),
        "interval by log-SNR": Interval(BASES[name](scale), log_snr=(-math.inf, math.inf)),
        "constant schedule": Schedule(BASES[name](scale), "constant"),
        "schedule from and to its own scale": Schedule(BASES[name](scale), "cosine", start=BASES[name](scale).scale),
        "rescale by nothing": Rescale(BASES[name](scale), phi=0),
    }
    for what, modified in around.items():
        found = guided(modified, state, predictions)
        assert found.kind == alone.kind, what
        assert torch.equal(found.value, alone.value), what


@quick
@given(bases, scales, log_sigmas, kinds, seeds, shapes)
def test_over_nothing_it_is_no_guidance(name, scale, log_sigma, kind, seed, shape):
    sigma = math.exp(log_sigma)
    state = state_of(stage_of(sigma, index=5), seed=seed, shape=shape, kind=kind)
    predictions = predictions_of(state, seed=seed, kind=kind)
    for window in ({"steps": (0.6, 1)}, {"sigma": (0, 0.99 * sigma)}, {"log_snr": (1000, 1001)}):
        found = Interval(BASES[name](scale), **window)
        assert guided(found, state, predictions) is predictions["cond"]


@quick
@given(scales, log_sigmas, kinds, seeds, shapes, st.floats(0.05, 1))
def test_rescale_gives_the_spread_of_the_conditional_prediction(scale, log_sigma, kind, seed, shape, phi):
    if math.prod(shape[1:]) < 3:
        shape = (*shape[:2], 3, 3)
    state = state_of(stage_of(math.exp(log_sigma)), seed=seed, shape=shape, kind=kind)
    predictions = predictions_of(state, seed=seed, kind=kind)
    x0 = guided_x0(Rescale(CFG(scale), phi, space="x0"), state, predictions)
    plain = guided_x0(CFG(scale), state, predictions)
    wanted = guided_x0(NoGuidance(), state, predictions)
    spread = [values.flatten(1).std(dim=1) for values in (x0, plain, wanted)]
    assert relative(spread[0], phi * spread[2] + (1 - phi) * spread[1]) < 1e-5
    # direction is kept, image by image
    assert torch.nn.functional.cosine_similarity(x0.flatten(1), plain.flatten(1)).min() > 1 - 1e-6


@quick
@given(kinds, kinds, log_sigmas, seeds, st.floats(0.1, 1), scales)
def test_rescale_and_threshold_do_not_mind_what_the_model_predicts(kind, other, log_sigma, seed, phi, scale):
    state = state_of(stage_of(math.exp(log_sigma)), seed=seed, kind=kind)
    predictions = predictions_of(state, seed=seed, kind=kind)
    for make in (lambda: Rescale(CFG(scale), phi, space="x0"), lambda: Threshold(CFG(scale), 0.9, limit=0.5)):
        one = guided_x0(make(), state, predictions)
        assert relative(guided_x0(make(), state, converted(predictions, other, state)), one) < 1e-6


@quick
@given(scales, log_sigmas, seeds, st.floats(0.05, 1))
def test_rescale_of_predictions_is_that_of_diffusers(scale, log_sigma, seed, phi):
    state = state_of(stage_of(math.exp(log_sigma)), seed=seed)
    p = predictions_of(state, seed=seed)
    u, c = p["uncond"].value, p["cond"].value
    theirs = rescale_noise_cfg(u + scale * (c - u), c, guidance_rescale=phi)
    ours = guided(Rescale(CFG(scale), phi), state, p)
    assert ours.kind == "epsilon"
    assert relative(ours.value, theirs if scale != 1 else c) < 1e-5


@quick
@given(scales, log_sigmas, seeds, shapes, st.sampled_from(["tokens", "rows", "image"]))
@pytest.mark.fidelity(
    "guidance/modifiers/renorm",
    source="diffusers, pipeline of Qwen-Image",
    against="numpy, vector by vector",
    within="1e-6",
    differs="a vector of no length stays",
)
@pytest.mark.fidelity(
    "guidance/modifiers/renorm_rows",
    source="diffusers, pipeline of Lumina 2",
    against="numpy, vector by vector",
    within="1e-6",
    differs="a vector of no length stays",
)
def test_renorm_gives_each_vector_its_length_and_keeps_its_direction(scale, log_sigma, seed, shape, over):
    state = state_of(stage_of(math.exp(log_sigma)), seed=seed, shape=shape, kind="flow")
    p = predictions_of(state, seed=seed, kind="flow")
    u, c = (p[name].value.numpy() for name in ("uncond", "cond"))
    g = u + scale * (c - u)
    axis = {"tokens": 1, "rows": 3, "image": (1, 2, 3)}[over]  # of a network without patches a latent is a token
    length = np.sqrt((g**2).sum(axis=axis, keepdims=True))
    wanted = g * np.sqrt((c**2).sum(axis=axis, keepdims=True)) / length
    found = guided(Renorm(CFG(scale), over), state, p)
    assert found.kind == "flow"
    assert relative(found.value, torch.from_numpy(wanted)) < 1e-6


def test_renorm_takes_the_patches_of_the_network_and_leaves_vectors_of_no_length():
    g, c = normal(1), normal(2)
    g[0, :, 2:4, 4:6] = 0
    found = renormed(g, c, "tokens", 2)
    assert torch.equal(found[0, :, 2:4, 4:6], g[0, :, 2:4, 4:6])
    a, b = found[1, :, 6:8, 0:2], c[1, :, 6:8, 0:2]
    assert math.isclose(float(a.norm()), float(b.norm()), rel_tol=1e-9)
    assert torch.isfinite(found).all()


@quick
@given(seeds, shapes, st.floats(0.01, 1), st.floats(0.05, 4), st.sampled_from(["dynamic", "static"]))
@pytest.mark.fidelity(
    "guidance/modifiers/threshold",
    source="arXiv:2205.11487, section 2.3",
    against="numpy, image by image",
    within="1e-5",
)
def test_threshold_is_imagens_image_by_image(seed, shape, percentile, limit, mode):
    state = state_of(stage_of(0.7), seed=seed, shape=shape)
    x0 = 3 * normal(seed, shape)
    found = guided_x0(Threshold(NoGuidance(), percentile, limit, mode), state, {"cond": Prediction(x0, "x0")}).numpy()
    for image, result in zip(x0.numpy(), found, strict=True):
        q = max(limit, float(np.quantile(np.abs(image), percentile))) if mode == "dynamic" else limit
        np.testing.assert_allclose(result, np.clip(image, -q, q) * (limit / q if mode == "dynamic" else 1), atol=1e-5)
    assert np.abs(found).max() <= limit * (1 + 1e-6)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("linear", [0, 0.25, 0.5, 0.75, 1]),
        ("cosine", [0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1]),
        ("power", [0, 1 / 64, 1 / 8, 27 / 64, 1]),
        ("triangle", [0, 0.5, 1, 0.5, 0]),
        ("constant", [1] * 5),
    ],
)
@pytest.mark.fidelity(
    "guidance/modifiers/schedule", source="arXiv:2404.13040, table 1", against="its shapes", within="exact"
)
def test_shapes_of_schedules(kind, shape):
    schedule = Schedule(CFG(7), kind, power=3)
    assert [schedule.at(k, 5) for k in range(5)] == pytest.approx([1 + 6 * part for part in shape])
    down = Schedule(CFG(7), kind, start=2, end=4, power=3, reverse=True)
    assert [down.at(k, 5) for k in range(5)] == pytest.approx([2 + 2 * part for part in shape[::-1]])
    assert schedule.at(0, 1) == pytest.approx(1 + 6 * shape[4])  # a single step has the end
    assert Schedule(PAG(3), "linear").at(0, 5) == 0  # what is no guidance differs by method


@quick
@given(scales, seeds, st.integers(0, 9), log_sigmas)
def test_schedule_is_the_base_at_the_scale_of_the_step(scale, seed, step, log_sigma):
    state = state_of(stage_of(math.exp(log_sigma), index=step), seed=seed)
    predictions = predictions_of(state, seed=seed)
    base = APG(scale, norm_threshold=2)
    schedule = Schedule(base, "linear", start=0.5)
    found = guided_x0(schedule, state, predictions)
    now = 0.5 + (scale - 0.5) * step / 9
    assert schedule.at(step, 10) == pytest.approx(now)
    assert relative(found, guided_x0(APG(now, norm_threshold=2), state, predictions)) < 1e-9
    assert base.scale == scale


def test_what_any_scale_on_the_way_needs_is_asked_for(pixel):
    assert Schedule(CFG(1.0), "linear", end=5).requires == {"uncond"}
    assert Schedule(CFG(1.0), "linear").requires == frozenset()
    with pytest.raises(ConfigError, match="Schedule needs uncond"):
        LoopSampler(pixel, guidance=Schedule(CFG(1.0), end=5))


# --- in the loop


def sample(model, guidance, scheduler="ddim", steps=8, seeds=(0, 1), hooks=(), **options):
    task = TextToImage("a red fox") if "text" in model.supports else Unconditional()
    sampler = LoopSampler(model, scheduler, guidance=guidance, hooks=list(hooks), **options)
    return sampler.sample(task, seeds=list(seeds), steps=steps)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpm2", "dpmpp_sde", "pndm", "dpmpp_2m", "euler_a"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.spread(3)
def test_the_window_counts_the_users_steps(sd, sd_v, scheduler, prediction):
    """And never evaluations: with two a step, guidance would end half way."""
    model = sd if prediction == "epsilon" else sd_v
    result = sample(model, Interval(CFG(2.5), steps=(0.2, 0.8)), scheduler, steps=10)
    stages = result.trace["stages"]
    inside = [stage for stage in stages if 0.2 <= stage["step"] / 10 < 0.8]
    assert {stage["step"] for stage in inside} == {2, 3, 4, 5, 6, 7}
    assert result.nfe_by_branch == {"cond": len(stages), "uncond": len(inside)}
    assert result.nfe == len(stages) + len(inside)


@pytest.mark.slow
@pytest.mark.fidelity(
    "guidance/modifiers/interval",
    source="arXiv:2404.07724, eq. 5",
    against="the levels of the timeline",
    within="exact",
)
def test_levels_are_those_of_the_timeline(sd):
    for axis, window in (("sigma", (0.5, 5.0)), ("log_snr", (-2.0, 1.5))):
        for scheduler in ("euler", "ddim", "heun"):
            result = sample(sd, Interval(CFG(2.5), **{axis: window}), scheduler, steps=12)
            firsts = {}
            for stage in result.trace["stages"]:
                firsts.setdefault(stage["step"], stage[axis])
            low, high = window
            right = {s for s, at in firsts.items() if (low < at <= high if axis == "sigma" else low <= at < high)}
            assert 0 < len(right) < 12
            count = sum(stage["step"] in right for stage in result.trace["stages"])
            assert result.nfe_by_branch["uncond"] == count


def test_a_window_without_a_step_says_so(sd):
    result = sample(sd, Interval(CFG(2.5), steps=(0.95, 1.0)), steps=8)
    assert any("holds none of the steps" in line for line in result.warnings)
    assert result.nfe_by_branch == {"cond": 8}
    assert torch.equal(result.latents, sample(sd, NoGuidance()).latents)


def test_an_interval_may_leave_the_base_on(sd):
    result = sample(sd, Interval(PAG(2.0, base=CFG(2.5)), steps=(0, 0.5), outside="base"))
    assert result.nfe_by_branch == {"uncond": 8, "cond": 8, "perturbed": 4}
    assert sample(sd, Interval(PAG(2.0, base=CFG(2.5)), steps=(0, 0.5))).nfe_by_branch == {
        "uncond": 4, "cond": 8, "perturbed": 4
    }  # fmt: skip


def test_a_schedule_pays_for_what_its_scales_need(sd):
    result = sample(sd, Schedule(CFG(4.0), "power", power=1.0))
    assert result.nfe_by_branch == {"cond": 8, "uncond": 7}  # the first step's scale is 1
    assert not torch.equal(result.latents, sample(sd, CFG(4.0)).latents)


def test_modifiers_wrap_each_other(sd):
    stack = Rescale(Interval(Schedule(CFG(4.0), "linear"), steps=(0.25, 1.0)), phi=0.5)
    result = sample(sd, stack)
    assert result.nfe_by_branch == {"cond": 8, "uncond": 6}
    # each pair in both orders; where they act on different things the order does not matter
    one, other = (
        sample(sd, g).latents
        for g in (Schedule(Interval(CFG(4.0), steps=(0, 0.5)), "cosine"), Interval(Schedule(CFG(4.0), "cosine"), steps=(0, 0.5)))
    )  # fmt: skip
    assert torch.equal(one, other)


WRAPPED = {
    "interval": lambda g: Interval(g, steps=(0.2, 0.8)),
    "schedule": lambda g: Schedule(g, "cosine", start=0.5),
    "renorm": Renorm,
    "rescale": lambda g: Rescale(g, 0.6),
    "threshold": lambda g: Threshold(g, 0.99, limit=2.0),
}
AROUND = {
    "cfg": lambda: CFG(2.5),
    "apg": lambda: APG(2.5),
    "pag": lambda: PAG(1.5, base=CFG(2.0)),
    "perp_neg": lambda: PerpNeg(2.0, prompts=["blue"]),
}


@pytest.mark.parametrize("base", AROUND)
@pytest.mark.parametrize("modifier", WRAPPED)
@pytest.mark.spread(3)
@pytest.mark.slow
def test_every_modifier_around_every_kind_of_base(sd, sd_v, modifier, base):
    """It changes the base's images, an image is the same alone and in a batch, and nothing stays from run to run."""
    for model, scheduler in ((sd, "dpmpp_2m"), (sd_v, "euler")):
        sampler = LoopSampler(model, scheduler, guidance=WRAPPED[modifier](AROUND[base]()))
        task = TextToImage("a red fox")
        together = sampler.sample(task, seeds=[5, 6, 7], steps=6).latents
        alone = sampler.sample(task, seeds=[6], steps=6).latents
        assert relative(alone[0], together[1]) < 1e-4
        plain = LoopSampler(model, scheduler, guidance=AROUND[base]())
        assert relative(plain.sample(task, seeds=[5, 6, 7], steps=6).latents, together) > 1e-4
        assert torch.equal(sampler.sample(task, seeds=[5, 6, 7], steps=6).latents, together)


def test_thresholds_hold_where_a_recorder_looks(sd):
    limit = 0.7
    for scheduler in ("ddim", "euler", "dpmpp_2m"):
        result = sample(sd, Threshold(CFG(4.0), limit=limit), scheduler, hooks=[Record()])
        assert all(entry["x0_std"] <= limit for entry in result.trace["record"])


def test_a_modifier_of_a_pixel_model(pixel):
    result = sample(pixel, Threshold(NoGuidance(), 0.9), "ddim")
    assert result.nfe == 8
    assert result.latents.shape == (2, *SHAPE[1:][:0], 3, 8, 8)


# --- bad input


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Interval(CFG(3)), "found no window"),
        (lambda: Interval(CFG(3), steps=(0, 1), sigma=(0, 1)), "steps and sigma"),
        (lambda: Interval(CFG(3), steps=(0.8, 0.2)), "lo < hi"),
        (lambda: Interval(CFG(3), steps=(0.5, 0.5)), "lo < hi"),
        (lambda: Interval(CFG(3), steps=(-0.1, 0.5)), "from 0 to 1"),
        (lambda: Interval(CFG(3), steps=(0.1, 1.5)), "from 0 to 1"),
        (lambda: Interval(CFG(3), steps=(0.1, math.nan)), "lo < hi"),
        (lambda: Interval(CFG(3), steps=(0.1,)), "two numbers"),
        (lambda: Interval(CFG(3), steps="01"), "two numbers"),
        (lambda: Interval(CFG(3), steps=0.5), "two numbers"),
        (lambda: Interval(CFG(3), sigma=(-1, 2)), "from 0 to inf"),
        (lambda: Interval(CFG(3), steps=(0, 0.5), outside="cfg"), "none, base"),
        (lambda: Interval(3.0, steps=(0, 0.5)), "wraps 3.0"),
        (lambda: Interval(CFG, steps=(0, 0.5)), "wraps <class"),
        (lambda: Schedule(CFG(3), "sine"), "constant, linear"),
        (lambda: Schedule(CFG(3), start=math.inf), "finite"),
        (lambda: Schedule(CFG(3), "power", power=0), "above 0"),
        (lambda: Schedule(CFG(3), "power", power="2"), "a number above 0"),
        (lambda: Schedule(CFGPlusPlus(0.5), start=0.2, end=7), "0 to 1"),
        (lambda: Rescale(CFG(3), phi=1.2), "from 0 to 1"),
        (lambda: Rescale(CFG(3), phi=math.nan), "from 0 to 1"),
        (lambda: Rescale(CFG(3), space="noise"), "epsilon, x0, v, flow, prediction"),
        (lambda: Renorm(CFG(3), over="channels"), "tokens, rows, image"),
        (lambda: Threshold(CFG(3), percentile=0), "above 0"),
        (lambda: Threshold(CFG(3), percentile=99.5), "to 1"),
        (lambda: Threshold(CFG(3), limit=-1), "above 0"),
        (lambda: Threshold(CFG(3), mode="hard"), "dynamic, static"),
    ],
)  # fmt: skip
def test_bad_settings_are_told_in_a_line(make, words):
    with pytest.raises(ConfigError) as error:
        make()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "guidance" in str(error.value)


def test_without_a_neutral_scale_the_start_is_asked_for():
    with pytest.raises(ConfigError, match=r"schedule\.start: must be given"):
        Schedule(CFGPlusPlus(0.5), "linear")
    assert Schedule(CFGPlusPlus(0.5), "constant").at(3, 10) == 0.5
    assert Schedule(CFGPlusPlus(0.5), "linear", start=0.1).at(9, 10) == pytest.approx(0.5)


# --- the scale in force


class OwnAttribute(CFG):
    """A guidance from outside that reads its attribute, as plugs were once told to."""

    def combine(self, state, predictions):
        u, c = predictions.get("uncond"), predictions["cond"]
        value = c.value if u is None else u.value + self.scale * (c.value - u.value)
        return Guided(Prediction(value, c.kind))


class Seen(Hook):
    """What hooks see of the scale in force, before guidance is asked and after."""

    def on_start(self, run):
        self.before, self.after = [], []

    def pre_step(self, state):
        self.before.append(state.scale)

    def post_step(self, state):
        self.after.append(state.scale)


@pytest.mark.parametrize("scheduler", ["ddim", "heun"])
def test_hooks_see_the_scale_in_force_and_the_guidance_keeps_its_own(sd, scheduler):
    seen, guidance = Seen(), CFG(5)
    schedule = Schedule(guidance, "linear", start=1.5)
    LoopSampler(sd, scheduler=scheduler, guidance=Rescale(schedule), hooks=[seen]).sample(
        TextToImage("a"), seeds=[0], steps=4
    )
    wanted = {round(schedule.at(step, 4), 9) for step in range(4)}
    assert {round(scale, 9) for scale in seen.after} == wanted
    assert set(seen.before) == {5}
    assert guidance.scale == 5


def test_of_two_schedules_the_inner_one_has_the_last_word_on_what_the_outer_one_says(sd):
    seen = Seen()
    both = Schedule(Schedule(CFG(9), "power", power=2), "constant", start=None, end=5)
    LoopSampler(sd, guidance=both, hooks=[seen]).sample(TextToImage("a"), seeds=[0], steps=5)
    inner = Schedule(CFG(5), "power", power=2)
    assert seen.after == pytest.approx([inner.at(step, 5) for step in range(5)])


def test_a_guidance_of_ones_own_that_reads_its_attribute_follows_schedules_too(sd):
    def latents(base):
        sampler = LoopSampler(sd, scheduler="ddim", guidance=Schedule(base, "cosine", start=2))
        return sampler.sample(TextToImage("a"), seeds=[0, 1], steps=4).latents

    mine = OwnAttribute(7)
    assert torch.equal(latents(mine), latents(CFG(7)))
    assert mine.scale == 7


def test_the_scale_of_the_guidance_inside_another_is_its_own(sd):
    seen = Seen()
    inside = CFG(4)
    sampler = LoopSampler(sd, guidance=Schedule(PAG(3, base=inside), "linear"), hooks=[seen])
    scheduled = sampler.sample(TextToImage("a"), seeds=[0], steps=3)
    assert seen.after == pytest.approx([0, 1.5, 3])
    assert scheduled.nfe == 3 * 2 + 2
    assert inside.scale == 4


def test_an_error_leaves_every_scale_as_it_was(sd):
    class Fails(OwnAttribute):
        def combine(self, state, predictions):
            raise RuntimeError(f"at {self.scale}")

    mine = Fails(7)
    with pytest.raises(RuntimeError, match=r"at 2\.0"):
        LoopSampler(sd, guidance=Schedule(mine, "constant", end=2)).sample(TextToImage("a"), seeds=[0], steps=2)
    assert mine.scale == 7


# --- schedules that were found


def test_values_over_the_steps_and_mdts_powered_cosine():
    learned = Schedule(CFG(9.0), values=[1.0, 4.0, 2.0])
    assert [learned.at(step, 5) for step in range(5)] == pytest.approx([1, 2.5, 4, 3, 2])
    assert Schedule(CFG(9.0), values=[3.0]).at(2, 5) == 3
    powered = Schedule(CFG(7.0), "power_cosine", power=4.0)
    for step in range(5):
        part = step / 4  # of the way that MDT counts as 1 - t / 1000
        assert powered.at(step, 5) == pytest.approx(1 + 6 * (1 - math.cos(math.pi * part**4)) / 2)
    for values in ([], "1,2", [1, None], [1, math.nan]):
        with pytest.raises(ConfigError, match=r"schedule\.values: found"):
            Schedule(CFG(3), values=values)
    with pytest.raises(ConfigError, match=r"from 0 to 1"):
        Schedule(CFGPlusPlus(0.5), values=[0.2, 7])


def test_learned_values_pay_for_what_they_need(sd):
    found = sample(sd, Schedule(CFG(1.0), values=[1, 1, 4, 0]))
    assert found.nfe_by_branch == {"cond": 7, "uncond": 5}
