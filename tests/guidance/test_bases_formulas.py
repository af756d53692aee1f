"""What each way to guide computes: against the same numbers in diffusers where it is right, and against what the papers say."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeZeroStarGuidance,
    MagnitudeAwareGuidance,
    TangentialClassifierFreeGuidance,
)
from guidance_samples import (
    SHAPE,
    guided_x0,
    log_sigmas,
    normal,
    predictions_of,
    relative,
    run_of,
    scales,
    seeds,
    shapes,
    stage_of,
    state_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from research import Hook, LoopSampler
from research.guidance import (
    APG,
    CFG,
    DPS,
    FDG,
    ICG,
    PAG,
    SAG,
    TCFG,
    TSG,
    Autoguidance,
    CFGPlusPlus,
    CFGZero,
    Composable,
    Interval,
    LossGuidance,
    MagnitudeAware,
    PerpNeg,
    Rescale,
    Scales,
    Schedule,
    Threshold,
)
from research.guidance.fdg import laplacian_pyramid
from research.guidance.pairs import inner, parallel
from research.guidance.tcfg import along_shared
from research.sampling import Prediction
from research.tasks import TextToImage, Unconditional

pytestmark = pytest.mark.spread(2)

quick = settings(max_examples=25, deadline=None)
PLAIN_APG = {"eta": 1, "momentum": 0, "norm_threshold": 0}


class Keep(Hook):
    """Branches, predictions and guided prediction of every stage."""

    def on_start(self, run):
        self.stages = []

    def post_guidance(self, state):
        self.stages.append((list(state.branches), dict(state.predictions), state.guided))


def guided(guide, u, c, *, stage=None, start=True):
    """What a guidance makes of two tensors that are its own space's, here epsilon."""
    state = state_of(stage, x=torch.zeros_like(u), guidance=guide)
    if start:
        guide.start(state.run)
    result = guide.combine(state, {"uncond": Prediction(u, "epsilon"), "cond": Prediction(c, "epsilon")})
    assert result.prediction.kind == "epsilon"
    return result.prediction.value


def cosine(a, b):
    return (inner(a, b) / (inner(a, a) * inner(b, b)).sqrt().clamp_min(1e-30)).abs().max().item()


# APG


@quick
@given(seed=seeds, log_sigma=log_sigmas, shape=shapes, scale=scales, space=st.sampled_from(["x0", "flow"]))
def test_apg_with_all_switched_off_is_cfg(seed, log_sigma, shape, scale, space):
    state = state_of(stage_of(math.exp(log_sigma)), seed=seed, shape=shape)
    predictions = predictions_of(state, seed=seed)
    found = guided_x0(APG(scale, **PLAIN_APG, space=space), state, predictions)
    assert torch.equal(found, guided_x0(CFG(scale), state, predictions))


def test_apg_with_all_switched_off_samples_what_cfg_samples(sd):
    def latents(guide):
        return LoopSampler(sd, guidance=guide).sample(TextToImage("a cat"), seeds=[1, 2], steps=4).latents

    assert torch.equal(latents(APG(4.0, **PLAIN_APG)), latents(CFG(4.0)))
    # an eta next to 1 goes the other way round, through x0
    assert relative(latents(APG(4.0, eta=1 - 1e-9, momentum=0, norm_threshold=0)), latents(CFG(4.0))) < 1e-3


@pytest.mark.parametrize(("eta", "momentum", "threshold"), [(0.0, -0.5, 3.0), (0.3, 0.0, 0.0), (1.0, -0.75, 15.0)])
@pytest.mark.fidelity(
    "guidance/apg",
    source="arXiv:2410.02416, algorithm 1",
    against="AdaptiveProjectedGuidance of diffusers",
    within="1e-12",
    differs="works on x0 by default, as the paper; one momentum a user's step",
)
def test_apg_makes_the_same_numbers_as_diffusers(eta, momentum, threshold):
    # the paper's algorithm is c + (scale - 1) * update, which diffusers calls the original formulation with scale - 1
    reference = AdaptiveProjectedGuidance(
        guidance_scale=4.0,
        adaptive_projected_guidance_momentum=momentum,
        adaptive_projected_guidance_rescale=threshold,
        eta=eta,
        use_original_formulation=True,
    )
    guide = APG(5.0, eta=eta, momentum=momentum, norm_threshold=threshold, space="epsilon")
    for step in range(3):
        u, c = normal(10 + step), normal(20 + step)
        reference.set_state(step, 3, torch.tensor(0))
        if step == 0:
            reference.prepare_inputs({"x": (c, u)})
        found = guided(guide, u, c, stage=stage_of(index=step), start=step == 0)
        assert relative(found, reference.forward(c, u).pred) < 1e-12


@quick
@given(seed=seeds, shape=shapes, scale=st.floats(1.5, 20), threshold=st.sampled_from([0.0, 0.5, 100.0]))
def test_apg_goes_orthogonally_to_the_conditional_prediction(seed, shape, scale, threshold):
    shape = (shape[0], 4, *shape[2:])  # with one number an image nothing is orthogonal
    u, c = normal(seed, shape).float(), normal(seed + 1, shape).float()
    update = guided(APG(scale, eta=0, norm_threshold=threshold, space="epsilon"), u, c) - c
    assert cosine(update.double(), c.double()) < 1e-5
    if threshold:
        lengths = inner(update, update).sqrt() / (scale - 1)
        assert (lengths <= threshold * (1 + 1e-5)).all()


def test_apg_remembers_the_step_before_and_forgets_the_run_before():
    guide = APG(3.0, eta=1, momentum=-0.5, norm_threshold=0, space="epsilon")
    pairs = [(normal(i), normal(100 + i)) for i in range(3)]

    def run():
        return [guided(guide, u, c, stage=stage_of(index=i), start=i == 0) for i, (u, c) in enumerate(pairs)]

    first = run()
    past = torch.zeros(SHAPE, dtype=torch.float64)
    for (u, c), found in zip(pairs, first, strict=True):
        past = (c - u) - 0.5 * past
        assert relative(found, c + 2 * past) < 1e-12
    assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_apg_counts_steps_and_no_evaluations():
    """Both evaluations of a second-order step see the past of the step before."""
    guide = APG(3.0, eta=1, momentum=-0.5, norm_threshold=0, space="epsilon")
    first, half = stage_of(index=0), dataclasses.replace(stage_of(index=1), last_of_step=False)
    d = [normal(i) for i in range(3)]
    zero = torch.zeros_like(d[0])
    guided(guide, -d[0], zero, stage=first)
    for i, stage in ((1, half), (2, dataclasses.replace(half, index=2, last_of_step=True))):
        found = guided(guide, -d[i], zero, stage=stage, start=False)
        assert relative(found, 2 * (d[i] - 0.5 * d[0])) < 1e-12


def test_momentum_is_reset_between_runs_of_other_shapes(sd, sd_odd):
    guide = APG(3.0)

    def latents(model, seeds, steps):
        return LoopSampler(model, guidance=guide).sample(TextToImage("a cat"), seeds=seeds, steps=steps).latents

    a = latents(sd, [1, 2], 4)
    latents(sd_odd, [3], 2)
    assert torch.equal(latents(sd, [1, 2], 4), a)
    batches = LoopSampler(sd, guidance=guide).sample(TextToImage("a cat"), seeds=[1, 2], steps=4, batch_size=1)
    assert relative(batches.latents, a) < 1e-5


# CFG++


@pytest.mark.fidelity(
    "guidance/cfg_plus_plus", source="arXiv:2406.08070, algorithm 2", against="its step by hand", within="1e-4"
)
def test_cfg_plus_plus_renoises_with_the_unconditional_noise(sd):
    keep, latents = Keep(), []

    class Walk(Hook):
        def pre_step(self, state):
            latents.append((state.x.clone(), state.stage))

    result = LoopSampler(sd, scheduler="ddim", guidance=CFGPlusPlus(0.4), hooks=[keep, Walk()]).sample(
        TextToImage("a cat"), seeds=[1, 2], steps=5
    )
    after = [x for x, _ in latents[1:]] + [result.latents]
    # the level after the last step is DDIM's first one and not 0
    for (x, stage), (_, predictions, _), found, (_, to) in zip(
        latents[:-1], keep.stages[:-1], after[:-1], latents[1:], strict=True
    ):
        u, c = predictions["uncond"].value, predictions["cond"].value
        clean = (x - stage.noise * (u + 0.4 * (c - u))) / stage.signal
        assert relative(found, to.signal * clean + to.noise * u) < 1e-4


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "ddpm", "euler_a"])
def test_cfg_plus_plus_at_1_is_neither_cfg_nor_no_guidance(sd, scheduler):
    def latents(guide):
        sampler = LoopSampler(sd, scheduler=scheduler, guidance=guide)
        return sampler.sample(TextToImage("a cat"), seeds=[1], steps=4).latents

    found = latents(CFGPlusPlus(1))
    assert all(not torch.equal(found, latents(other)) for other in (CFG(0), CFG(1), CFGPlusPlus(0.5)))


# CFG-Zero*


@pytest.mark.parametrize("scale", [2.0, 7.5])
@pytest.mark.fidelity(
    "guidance/cfg_zero",
    source="arXiv:2503.18886, section 4",
    against="ClassifierFreeZeroStarGuidance of diffusers, on flow predictions",
    within="1e-5",
)
def test_cfg_zero_makes_the_same_numbers_as_diffusers(scale):
    """With both defaults, on flow models, for which diffusers' zero is the paper's: the first step and those after it."""
    reference = ClassifierFreeZeroStarGuidance(guidance_scale=scale)
    for step in range(3):
        state = state_of(stage_of(2.0, index=step), kind="flow")
        u, c = normal(1), normal(2)
        reference.set_state(step, 10, torch.tensor(0))
        guide = CFGZero(scale)
        asked = [branch.name for branch in guide.branches(state)]
        found = guide.combine(state, {name: Prediction({"uncond": u, "cond": c}[name], "flow") for name in asked})
        assert found.prediction.kind == "flow"
        theirs = reference.forward(c, u).pred
        # diffusers computes the projection in fp32
        assert float((found.prediction.value - theirs).norm()) <= 1e-5 * float(theirs.norm())
        assert (float(theirs.norm()) == 0) == (step == 0)


@quick
@given(seed=seeds, shape=shapes, scale=scales)
def test_cfg_zero_fits_the_unconditional_prediction(seed, shape, scale):
    u, c = normal(seed, shape), normal(seed + 1, shape)
    if scale == 1:
        return
    fitted = (guided(CFGZero(scale, zero_steps=0), u, c) - scale * c) / (1 - scale)
    assert relative(fitted, parallel(c, u)) < 1e-9
    assert torch.equal(guided(CFGZero(scale, zero_steps=0), torch.zeros_like(u), c), scale * c)  # nothing to fit


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v", "flow"])
def test_zero_init_stands_still_whatever_the_model_predicts(kind):
    guide = CFGZero(3.0, zero_steps=2)
    for index in range(3):
        state = state_of(stage_of(5.0, index=index), kind=kind)
        predictions = predictions_of(state, kind=kind)
        x0 = guided_x0(guide, state, predictions)
        if index == 2:
            assert len(state.branches) == 2
            continue
        assert [branch.name for branch in state.branches] == ["cond"]
        a, b = state.stage.signal, state.stage.noise
        still = state.x_before / (a + b) if kind == "flow" else a * state.x_before  # signal^2 + noise^2 = 1
        assert relative(x0, still) < 1e-12


def test_zero_init_leaves_the_latents_where_they_are(sd, sd_v):
    """In DDIM's step with v = 0 they only get the next level's size: the direction stays, and nothing blows up."""
    for model in (sd, sd_v):
        after = []

        class Walk(Hook):
            def on_start(self, run):
                after.append(run.x.clone())  # noqa: B023

            def post_step(self, state):
                after.append(state.x.clone())  # noqa: B023

        sampler = LoopSampler(model, scheduler="ddim", guidance=CFGZero(3.0, zero_steps=2), hooks=[Walk()])
        result = sampler.sample(TextToImage("a cat"), seeds=[1, 2], steps=6)
        assert cosine(after[0], after[2]) > 1 - 1e-5
        assert 0.8 < (after[2].norm() / after[0].norm()).item() <= 1 + 1e-5
        assert cosine(after[0], after[3]) < 1 - 1e-5
        assert result.nfe_by_branch == {"cond": 6, "uncond": 4}


AROUND_ZERO_INIT = {
    "rescale": lambda g: Rescale(g, 0.7),
    "rescale of x0": lambda g: Rescale(g, 0.7, space="x0"),
    "threshold": lambda g: Threshold(g, limit=0.1),
    "schedule": lambda g: Schedule(g),
    "interval": lambda g: Interval(g, steps=(0, 1)),
    "pag": lambda g: PAG(3.0, base=g),
    "sag": lambda g: SAG(0.75, base=g),
    "autoguidance": lambda g: Autoguidance(2.0, base=g),
    "loss": lambda g: LossGuidance(10.0, lambda x: x.square().sum((1, 2, 3)), base=g),
    "dps": lambda g: DPS(1.0, lambda x: x.square().sum((1, 2, 3)), sees="latents", base=g),
    "several": lambda g: Rescale(PAG(2.0, base=g), 0.5),
    "scales": lambda g: Scales(g, [2.0, 3.0]),
}


@pytest.mark.parametrize("around", AROUND_ZERO_INIT)
def test_nothing_around_it_undoes_zero_init(sd, around):
    """And nothing more than the one prediction is evaluated for it."""

    class First(Hook):
        def post_step(self, state):
            if state.stage.step == 0:
                firsts.append((state.x, sorted(state.predictions)))

    firsts = []
    for guidance in (CFGZero(3.0), AROUND_ZERO_INIT[around](CFGZero(3.0))):
        sampler = LoopSampler(sd, "ddim", guidance=guidance, hooks=[First()])
        sampler.sample(TextToImage("a cat"), seeds=[1, 2], steps=3)
    (plain, asked), (found, also) = firsts
    assert torch.allclose(found, plain, atol=1e-6)
    assert asked == also == ["cond"]


def test_without_guidance_there_is_no_zero_init(sd):
    """As in pipelines, which then have no guider; a schedule that begins without guidance has."""
    plain, neutral, scheduled = (
        LoopSampler(sd, "ddim", guidance=g).sample(TextToImage("a cat"), seeds=[1], steps=3)
        for g in (CFG(1.0), CFGZero(1.0), Schedule(CFGZero(3.0)))
    )
    assert torch.equal(neutral.latents, plain.latents)
    assert scheduled.nfe_by_branch == {"cond": 3, "uncond": 2}
    assert not torch.allclose(scheduled.latents, plain.latents, atol=1e-2)


def test_zero_init_counts_the_users_steps(sd):
    sampler = LoopSampler(sd, scheduler="heun", guidance=CFGZero(3.0, zero_steps=2))
    result = sampler.sample(TextToImage("a cat"), seeds=[1], steps=5)
    assert result.nfe_by_branch == {"cond": 9, "uncond": 5}


# TCFG


@pytest.mark.parametrize("scale", [2.0, 7.5])
@pytest.mark.fidelity(
    "guidance/tcfg",
    source="arXiv:2503.18137, section 4",
    against="TangentialClassifierFreeGuidance of diffusers",
    within="1e-5",
)
def test_tcfg_makes_the_same_numbers_as_diffusers(scale):
    u, c = normal(1).float(), normal(2).float() + normal(1).float()
    reference = TangentialClassifierFreeGuidance(guidance_scale=scale)
    assert relative(guided(TCFG(scale), u, c), reference.forward(c, u).pred) < 1e-5


@quick
@given(seed=seeds, shape=shapes, nearness=st.floats(0, 1))
def test_tcfg_keeps_what_lies_along_the_first_singular_vector(seed, shape, nearness):
    c = normal(seed, shape)
    u = nearness * c + (1 - nearness) * normal(seed + 1, shape)
    found = along_shared(u, c)
    for i in range(len(u)):
        rows = torch.stack([c[i].flatten(), u[i].flatten()])
        _, sizes, vectors = torch.linalg.svd(rows, full_matrices=False)
        if len(sizes) > 1 and sizes[1] > 0.9 * sizes[0]:
            continue  # no first one among equals
        expected = (rows[1] @ vectors[0]) * vectors[0]
        assert relative(found[i].flatten(), expected) < 1e-6
        if len(sizes) > 1:
            assert abs(found[i].flatten() @ vectors[1]) / rows[1].norm() < 1e-5
    dropped = u - found
    assert (inner(dropped, found).abs() / inner(u, u)).max() < 1e-5


def test_tcfg_of_equal_and_of_empty_predictions():
    u = normal(1)
    assert relative(along_shared(u, u), u) < 1e-12
    zero = torch.zeros_like(u)
    assert torch.equal(along_shared(zero, zero), zero)
    assert torch.isnan(along_shared(u * math.nan, u)).all()  # left to be found by the loop


# FDG


@quick
@given(seed=seeds, shape=shapes, scale=scales, levels=st.integers(1, 5), weight=st.floats(0.1, 2))
def test_fdg_with_equal_weights_is_cfg(seed, shape, scale, levels, weight):
    u, c = normal(seed, shape).float(), normal(seed + 1, shape).float()
    if scale == 1:
        return
    found = guided(FDG(scale, weights=[weight] * levels), u, c)
    expected = u + (1 + (scale - 1) * weight) * (c - u)
    assert relative(found, expected) < 1e-5


@quick
@given(seed=seeds, shape=shapes, levels=st.integers(1, 5))
def test_bands_of_a_pyramid_halve_and_add_up(seed, shape, levels):
    x = normal(seed, shape)
    bands = laplacian_pyramid(x, levels)
    assert len(bands) == levels
    for finer, coarser in itertools.pairwise(bands):
        assert coarser.shape[-2:] == tuple((side + 1) // 2 for side in finer.shape[-2:])
    flat = laplacian_pyramid(torch.full_like(x, 3.0), levels)
    assert all(band.abs().max() < 1e-12 for band in flat[:-1])  # what is flat is coarse
    assert torch.allclose(flat[-1], torch.tensor(3.0, dtype=x.dtype))


def by_matrices(x: torch.Tensor, levels: int) -> list[torch.Tensor]:
    """A Laplacian pyramid as kornia's, written as matrices: each row of them says where a place takes its value from."""

    def blur(n):
        rows = torch.zeros(n, n, dtype=torch.float64)
        for i, (k, weight) in itertools.product(range(n), enumerate((1, 4, 6, 4, 1))):
            j = abs(i + k - 2)  # mirrored at the first and the last place, which are not doubled
            rows[i, j if j < n else 2 * (n - 1) - j] += weight / 16
        return rows

    def halve(n):
        rows = torch.zeros(n // 2, n, dtype=torch.float64)
        for i in range(n // 2):
            rows[i, 2 * i : 2 * i + 2] = 0.5
        return rows

    def double(n):
        rows = torch.zeros(2 * n, n, dtype=torch.float64)
        for i in range(2 * n):
            place = min(max((i + 0.5) / 2 - 0.5, 0), n - 1)
            low = int(place)
            rows[i, low] += 1 - (place - low)
            rows[i, min(low + 1, n - 1)] += place - low
        return rows

    found = []
    for _ in range(levels - 1):
        n = x.shape[-1]
        down, up = halve(n) @ blur(n), blur(n) @ double(n // 2)
        low = down @ x @ down.T
        found.append(x - up @ low @ up.T)
        x = low
    return [*found, x]


@pytest.mark.fidelity(
    "guidance/fdg",
    source="arXiv:2506.19713, section 4 and algorithm 1",
    against="the published pyramid, written as matrices",
    within="1e-12",
)
def test_the_pyramid_of_fdg_is_that_of_the_published_code():
    x = normal(3, (2, 4, 16, 16))
    for ours, theirs in zip(laplacian_pyramid(x, 3), by_matrices(x, 3), strict=True):
        assert relative(ours, theirs) < 1e-12


def test_fdg_weights_are_finest_first():
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    fine = ((rows + columns) % 2 * 2.0 - 1).expand(1, 4, 16, 16).double()
    coarse = torch.cos(rows * math.pi / 16).expand(1, 4, 16, 16).double()
    u = torch.zeros_like(fine)
    for weights, expected in (([1, 0], 5 * fine + coarse), ([0, 1], fine + 5 * coarse)):
        found = guided(FDG(5.0, weights=weights), u, fine + coarse)
        assert relative(found, expected) < 0.1


# MAMBO-G


@pytest.mark.parametrize("alpha", [0.0, 0.5, 8.0])
@pytest.mark.fidelity(
    "guidance/magnitude_aware",
    source="arXiv:2508.03442, section 4",
    against="MagnitudeAwareGuidance of diffusers",
    within="1e-12",
    differs="norms over the whole image, where diffusers takes them over tokens; works on flow by default",
)
def test_magnitude_aware_makes_the_same_numbers_as_diffusers(alpha):
    u, c = normal(1), normal(1) + 0.3 * normal(2)
    reference = MagnitudeAwareGuidance(guidance_scale=6.0, alpha=alpha)
    found = guided(MagnitudeAware(6.0, alpha=alpha, space="epsilon"), u, c)
    # diffusers takes the norm of tokens [N, tokens, channels], and fails with latents [N, C, h, w]
    assert relative(found.flatten(2), reference.forward(c.flatten(2), u.flatten(2)).pred) < 1e-12


@quick
@given(
    seed=seeds,
    scale=st.floats(1.1, 20),
    alpha=st.floats(0, 10),
    size=st.sampled_from([0.0, 1e-6, 0.01, 0.3, 1.0, 3.0, 100.0]),
)
def test_magnitude_aware_lies_between_no_guidance_and_cfg(seed, scale, alpha, size):
    u = normal(seed)
    c = u + size * normal(seed + 1)
    found = guided(MagnitudeAware(scale, alpha=alpha, space="epsilon"), u, c)
    lengths = (inner(found - u, c - u) / inner(c - u, c - u).clamp_min(1e-30)).flatten()
    assert size == 0 or ((lengths >= 1 - 1e-9) & (lengths <= scale * (1 + 1e-9))).all()


# Perp-Neg and composable


@quick
@given(seed=seeds, shape=shapes, scale=st.floats(0.1, 15), weight=st.floats(0.1, 3))
@pytest.mark.fidelity(
    "guidance/perp_neg",
    source="arXiv:2304.04968, section 4",
    against="the property that it is named for",
    within="1e-5",
)
def test_a_negative_prompt_of_perp_neg_is_orthogonal_to_the_positive_one(seed, shape, scale, weight):
    shape = (shape[0], 4, *shape[2:])
    state = state_of(shape=shape, dtype=torch.float32)
    predictions = predictions_of(state, ("uncond", "cond", "negative_1"), seed=seed)
    guide = PerpNeg(scale, prompts=["a"], weights=[weight])
    guide.start(state.run)
    found = guide.combine(state, predictions).prediction.value
    u, c, n = (predictions[name].value for name in ("uncond", "cond", "negative_1"))
    away = (found - u) / scale - (c - u)
    assert (inner(away, c - u).abs() / (inner(n - u, n - u) * inner(c - u, c - u)).sqrt()).max() < 1e-5 * weight
    # away from the negative prompt
    assert (inner(away, n - u) <= 1e-5).all()


def test_a_negative_prompt_that_is_the_positive_one_changes_nothing(sd):
    def latents(guide):
        return LoopSampler(sd, guidance=guide).sample(TextToImage("a cat"), seeds=[1, 2], steps=4).latents

    assert relative(latents(PerpNeg(3.0, prompts=["a cat"])), latents(CFG(3.0))) < 1e-4
    assert relative(latents(PerpNeg(3.0, prompts=["dog"])), latents(CFG(3.0))) > 1e-3


@pytest.mark.fidelity(
    "guidance/composable", source="arXiv:2206.01714, eq. 11 and 12", against="its formula", within="1e-6"
)
def test_composable_follows_the_formula(sd):
    keep = Keep()
    guide = Composable(2.0, prompts=["dog", ["b", "c d"]], weights=[0.5, -0.25])
    LoopSampler(sd, guidance=guide, hooks=[keep]).sample(TextToImage("a cat"), seeds=[1, 2], steps=3)
    for branches, predictions, result in keep.stages:
        assert [branch.name for branch in branches] == ["uncond", "cond", "prompt_1", "prompt_2"]
        u, c, first, second = (predictions[branch.name].value for branch in branches)
        expected = u + 2.0 * ((c - u) + 0.5 * (first - u) - 0.25 * (second - u))
        assert relative(result.prediction.value, expected) < 1e-6
        embeds = branches[3].condition.embeds
        assert not torch.equal(embeds[0], embeds[1])  # one sentence an image


def test_the_tasks_own_prompt_may_be_said_twice(sd):
    def latents(guide):
        return LoopSampler(sd, guidance=guide).sample(TextToImage("a cat"), seeds=[1], steps=4).latents

    doubled = latents(Composable(2.0, prompts=["a cat"], weights=[1.0]))
    assert relative(doubled, latents(CFG(4.0))) < 1e-4


# ICG and TSG


@pytest.mark.parametrize("renew", [True, False])
@pytest.mark.fidelity(
    "guidance/icg",
    source="arXiv:2407.02687, section 4, algorithm 1",
    against="its formula",
    within="1e-6",
    differs="the independent condition is noise with the statistics of the embeddings",
)
def test_the_independent_condition_has_the_statistics_of_the_prompt(sd, renew):
    keep = Keep()
    LoopSampler(sd, scheduler="heun", guidance=ICG(2.0, renew=renew), hooks=[keep]).sample(
        TextToImage("a cat"), seeds=[1, 2], steps=3
    )
    made = []
    for branches, predictions, result in keep.stages:
        drawn, prompt = (branch.condition.embeds for branch in branches)
        assert [branch.name for branch in branches] == ["independent", "cond"]
        for i in range(2):
            assert abs(drawn[i].mean() - prompt[i].mean()) < 0.2 * prompt[i].std()
            assert 0.8 < drawn[i].std() / prompt[i].std() < 1.2
        assert not torch.equal(drawn[0], drawn[1])
        other, c = predictions["independent"].value, predictions["cond"].value
        assert relative(result.prediction.value, other + 2.0 * (c - other)) < 1e-6
        made.append(branches[0].condition)
    # Heun evaluates a step twice, with one condition
    assert [len({id(made[i]) for i in pair}) for pair in ((0, 1), (2, 3))] == [1, 1]
    assert (made[0] is made[2]) is not renew


def test_icg_leaves_the_noise_of_the_image_alone(sd):
    drawn = []

    class Start(Hook):
        def on_start(self, run):
            drawn.append(run.x.clone())

    for guide in (CFG(2.0), ICG(2.0), TSG(2.0)):
        LoopSampler(sd, scheduler="euler_a", guidance=guide, hooks=[Start()]).sample(
            TextToImage("a cat"), seeds=[1, 2], steps=2
        )
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_icg_takes_another_class(class_model):
    keep = Keep()
    labels = [0, 1, 2, 3, 4, 0, 1, 2]
    sampler = LoopSampler(class_model, scheduler="ddpm", guidance=ICG(2.0), hooks=[keep])
    result = sampler.sample(Unconditional(labels), seeds=range(8), steps=8)
    assert result.nfe_by_branch == {"independent": 8, "cond": 8}
    seen = set()
    for branches, _, _ in keep.stages:
        other = branches[0].condition.class_labels.tolist()
        assert all(a != b and 0 <= a < 5 for a, b in zip(other, labels, strict=True))
        seen.update(zip(labels, other, strict=True))
    assert len({a for _, a in seen}) == 5
    assert len(seen) > 15  # of the 20 pairs


def test_tsg_is_told_another_time_for_each_image(sd, pixel):
    for model, task in ((sd, TextToImage("a cat")), (pixel, Unconditional())):
        keep = Keep()
        sampler = LoopSampler(model, scheduler="ddim", guidance=TSG(3.0, strength=0.2), hooks=[keep])
        result = sampler.sample(task, seeds=range(4), steps=5)
        # DDIM on pixels ends at time 0, which is not perturbed and costs one evaluation
        ends_at_0 = len(keep.stages[-1][0]) == 1
        assert ends_at_0 is (model is pixel)
        assert result.nfe_by_branch == {"perturbed": 5 - ends_at_0, "cond": 5}
        for branches, predictions, guided_ in keep.stages[: 5 - ends_at_0]:
            times = branches[0].time
            assert branches[1].time is None
            assert times.shape == (4,)
            assert len(set(times.tolist())) > 1
            assert ((times >= 0) & (times <= 999)).all()
            p, c = predictions["perturbed"].value, predictions["cond"].value
            assert not torch.equal(p, c)
            assert relative(guided_.prediction.value, p + 3.0 * (c - p)) < 1e-6


@quick
@given(sigma=st.floats(0.05, 20), strength=st.floats(0.01, 0.5), alpha=st.floats(0, 1.2))
@pytest.mark.fidelity(
    "guidance/tsg",
    source="arXiv:2407.02687, section 5, algorithm 2",
    against="its formula of the perturbed time",
    within="1e-5",
    differs="the time is perturbed for each image",
)
def test_the_time_of_tsg_is_perturbed_as_in_the_paper(sigma, strength, alpha):
    guide = TSG(2.0, strength=strength, alpha=alpha)
    state = state_of(stage_of(sigma), x=torch.zeros(2, 4, 8, 8))
    guide.start(state.run)
    noise = run_of(2).noise.draw("hook/tsg", ())
    t = state.stage.time
    expected = (t + strength * t**alpha * noise).clamp(0, 999)
    assert torch.allclose(guide.perturbed(state), expected)
