"""What all ways to guide have in common: neutral scales, costs, spaces, batches, schedulers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from guidance_samples import (
    converted,
    guided_x0,
    kinds,
    log_sigmas,
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

from research import LoopSampler, guidance
from research.errors import ConfigError
from research.guidance import (
    APG,
    CFG,
    FDG,
    ICG,
    TCFG,
    TSG,
    CFGPlusPlus,
    CFGZero,
    Composable,
    Guidance,
    Interval,
    MagnitudeAware,
    NoGuidance,
    PerpNeg,
    Schedule,
)
from research.sampling import Prediction, convert
from research.tasks import TextToImage, Unconditional

pytestmark = pytest.mark.spread(2)

quick = settings(max_examples=12, deadline=None)

NEUTRAL_AT_1 = {
    "apg": APG,
    "cfg_zero": lambda s: CFGZero(s, zero_steps=0),
    "tcfg": TCFG,
    "fdg": FDG,
    "magnitude_aware": MagnitudeAware,
    "icg": ICG,
    "tsg": TSG,
}
LINEAR = {
    "apg": lambda s: APG(s, eta=1, momentum=0, norm_threshold=0),
    "fdg": lambda s: FDG(s, weights=(1.0, 0.3, 0.6)),
    "magnitude_aware": lambda s: MagnitudeAware(s, alpha=0),
    "composable": lambda s: Composable(s, prompts=["a", "b"], weights=[0.5, -0.7]),
    "cfg_plus_plus": lambda s: CFGPlusPlus(abs(s) % 1),
    "perp_neg": lambda s: PerpNeg(abs(s), prompts=["a", "b"], weights=[0.5, 0.7]),  # angles of differences
    "icg": lambda s: ICG(s),
    "tsg": lambda s: TSG(abs(s)),
}
IN_A_SPACE = {
    "apg": lambda s, space: APG(s, eta=0.3, momentum=-0.5, norm_threshold=3, space=space),
    "cfg_zero": lambda s, space: CFGZero(s, zero_steps=0, space=space),
    "tcfg": lambda s, space: TCFG(s, space=space),
    "magnitude_aware": lambda s, space: MagnitudeAware(s, alpha=2, space=space),
}
# moderate scales: what random weights make of others says nothing
SAMPLED = {
    "cfg_plus_plus": lambda: CFGPlusPlus(0.6),
    "apg": lambda: APG(2.5, norm_threshold=2),
    "cfg_zero": lambda: CFGZero(2.5, zero_steps=1),
    "tcfg": lambda: TCFG(2.5),
    "fdg": lambda: FDG(2.5),
    "magnitude_aware": lambda: MagnitudeAware(2.5, alpha=1),
    "perp_neg": lambda: PerpNeg(1.5, prompts=["dog", "a b"], weights=[0.5, 0.25]),
    "composable": lambda: Composable(1.5, prompts=["dog", "a b"], weights=[0.5, -0.25]),
    "icg": lambda: ICG(1.5),
    "tsg": lambda: TSG(2.5),
}
NAMES = ("uncond", "cond", "independent", "perturbed", "negative_1", "negative_2", "prompt_1", "prompt_2")


def sample(model, guide, *, scheduler="ddim", seeds=(1, 2, 3), steps=4, prompt="a cat", **arguments):
    sampler = LoopSampler(model, scheduler=scheduler, guidance=guide)
    return sampler.sample(TextToImage(prompt, **arguments), seeds=list(seeds), steps=steps)


# neutral scales and costs


@pytest.mark.parametrize("method", NEUTRAL_AT_1)
@quick
@given(seed=seeds, log_sigma=log_sigmas, shape=shapes, kind=kinds)
def test_scale_1_is_the_conditional_prediction(method, seed, log_sigma, shape, kind):
    state = state_of(stage_of(math.exp(log_sigma)), seed=seed, shape=shape)
    predictions = predictions_of(state, seed=seed, kind=kind)
    guide = NEUTRAL_AT_1[method](1.0)
    assert [branch.name for branch in guide.branches(state)] == ["cond"]
    guided = guide.combine(state, {"cond": predictions["cond"]})
    assert guided.prediction is predictions["cond"]
    assert guided.renoise is None


@pytest.mark.parametrize("method", NEUTRAL_AT_1)
def test_scale_1_costs_one_evaluation(sd, method):
    result = sample(sd, NEUTRAL_AT_1[method](1.0))
    assert result.nfe_by_branch == {"cond": 4}
    assert torch.equal(result.latents, sample(sd, NoGuidance()).latents)


@pytest.mark.parametrize("method", SAMPLED)
@pytest.mark.spread(4)
def test_modifiers_work_around_each(sd, method):
    assert SAMPLED[method]().neutral == (1.0 if method in NEUTRAL_AT_1 else None)
    # scales that every method takes
    scheduled = sample(sd, Schedule(SAMPLED[method](), kind="linear", start=0.0, end=0.75))
    assert torch.isfinite(scheduled.latents).all()
    limited = sample(sd, Interval(SAMPLED[method](), steps=(0.5, 1.0)))
    assert limited.nfe_by_branch["cond"] == 4
    assert {n for name, n in limited.nfe_by_branch.items() if name != "cond"} == {2}


@pytest.mark.parametrize(
    "guide",
    [
        APG(0, eta=1, momentum=0, norm_threshold=0),
        MagnitudeAware(0, alpha=0),
        FDG(0, weights=[1, 1]),
        CFGPlusPlus(0),
        PerpNeg(0, prompts=["dog"]),
        Composable(0, prompts=["dog"]),
    ],
    ids=lambda guide: type(guide).__name__,
)
def test_scale_0_is_the_unconditional_prediction(sd, guide):
    expected = sample(sd, CFG(0))
    found = sample(sd, guide)
    assert relative(found.latents, expected.latents) < 1e-4
    if isinstance(guide, CFGPlusPlus | PerpNeg | Composable):
        assert found.nfe_by_branch == {"uncond": 4}
        assert torch.equal(found.latents, expected.latents)


@pytest.mark.parametrize(
    ("guide", "names"), [(ICG(0), {"independent": 4}), (TSG(0), {"perturbed": 4})], ids=["icg", "tsg"]
)
def test_scale_0_is_the_weak_prediction_alone(sd, guide, names):
    assert sample(sd, guide).nfe_by_branch == names


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_what_each_costs(sd, scale):
    two = {"uncond": 4, "cond": 4}
    assert sample(sd, CFGPlusPlus(min(scale, 1))).nfe_by_branch == two  # at 1 it is renoised with the other's noise
    three = sample(sd, Composable(scale, prompts=["dog", "b"], weights=[1, 0])).nfe_by_branch
    assert three == {**two, "prompt_1": 4}  # a weight of 0 is not evaluated
    assert sample(sd, PerpNeg(scale, prompts=["dog", "b"])).nfe_by_branch == {**two, "negative_1": 4, "negative_2": 4}


# spaces


@pytest.mark.parametrize("method", LINEAR)
@quick
@given(seed=seeds, log_sigma=log_sigmas, shape=shapes, kind=kinds, scale=scales, kept=st.booleans())
def test_linear_methods_are_the_same_whatever_the_model_predicts(method, seed, log_sigma, shape, kind, scale, kept):
    state = state_of(stage_of(math.exp(log_sigma), kept=kept), seed=seed, shape=shape)
    predictions = predictions_of(state, NAMES, seed=seed)
    guide = LINEAR[method](scale)
    expected = guided_x0(guide, state, predictions)
    found = guided_x0(guide, state, converted(predictions, kind, state))
    assert relative(found, expected) < 1e-9


@pytest.mark.parametrize("space", ["x0", "epsilon", "v", "flow"])
@pytest.mark.parametrize("method", IN_A_SPACE)
@settings(max_examples=5, deadline=None)
@given(seed=seeds, log_sigma=log_sigmas, kind=kinds, scale=scales)
def test_methods_in_a_space_are_the_same_whatever_the_model_predicts(method, space, seed, log_sigma, kind, scale):
    state = state_of(stage_of(math.exp(log_sigma)), seed=seed)
    predictions = predictions_of(state, seed=seed)
    guide = IN_A_SPACE[method](scale, space)
    expected = guided_x0(guide, state, predictions)
    found = guided_x0(guide, state, converted(predictions, kind, state))
    assert relative(found, expected) < 1e-6


@pytest.mark.parametrize("method", IN_A_SPACE)
def test_spaces_are_not_the_same(method):
    state = state_of(stage_of(2.0))
    predictions = predictions_of(state)
    x0, epsilon = (guided_x0(IN_A_SPACE[method](3.0, space), state, predictions) for space in ("x0", "epsilon"))
    assert relative(x0, epsilon) > 1e-2
    own = guided_x0(IN_A_SPACE[method](3.0, "prediction"), state, predictions)
    assert relative(own, epsilon) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", SAMPLED)
def test_half_precision_stays_close_and_keeps_its_dtype(method, dtype):
    stage = stage_of(14.6)  # the noisiest level of Stable Diffusion: x0 is a small difference of large numbers
    state = state_of(stage, dtype=dtype)
    predictions = {name: Prediction(p.value.to(dtype), p.kind) for name, p in predictions_of(state, NAMES).items()}
    wide_state = state_of(stage, x=state.x_before.double())
    wide = {name: Prediction(p.value.double(), p.kind) for name, p in predictions.items()}
    guide = SAMPLED[method]()
    guide.zero_steps = 0
    values = []
    for each, given_ in ((state, predictions), (wide_state, wide)):
        guide.start(each.run)
        names = [branch.name for branch in guide.branches(each)]
        result = guide.combine(each, {name: given_[name] for name in names}).prediction
        values.append(convert(result, "epsilon", each.x_before, each.stage).value)
    half, exact = values
    assert half.dtype == dtype
    assert relative(half.double(), exact) < 5 * torch.finfo(dtype).eps


# sampling


@pytest.mark.parametrize("model_name", ["sd", "sd_v"])
@pytest.mark.parametrize("method", SAMPLED)
@pytest.mark.spread(2)
def test_an_image_is_the_same_alone_and_in_a_batch(request, model_name, method):
    model = request.getfixturevalue(model_name)
    prompts = ["a cat", "dog", "b"]
    together = sample(model, SAMPLED[method](), prompt=prompts)
    for i, seed in enumerate((1, 2, 3)):
        alone = sample(model, SAMPLED[method](), seeds=[seed], prompt=prompts[i])
        # one image runs through other kernels than three
        assert relative(together.latents[i : i + 1], alone.latents) < 1e-5
    other = sample(model, SAMPLED[method](), prompt=prompts, seeds=[1, 2, 3]).latents
    assert torch.equal(other, together.latents)


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "scheduler",
    ["euler_a", "dpmpp_2m", "heun", *(pytest.param(s, marks=_SLOW) for s in ("ddim", "euler", "pndm", "unipc"))],
)
@pytest.mark.parametrize("method", SAMPLED)
@pytest.mark.spread(2)
def test_every_scheduler_and_prediction_type(sd, sd_v, method, scheduler):
    for model in (sd, sd_v):
        if method == "cfg_plus_plus" and scheduler in {"heun", "pndm", "unipc"}:
            with pytest.raises(ConfigError, match=rf"CFGPlusPlus needs .*CFG\+\+ kind.*{scheduler}"):
                sample(model, SAMPLED[method](), scheduler=scheduler)
            continue
        guided = sample(model, SAMPLED[method](), scheduler=scheduler, seeds=[1])
        plain = sample(model, NoGuidance(), scheduler=scheduler, seeds=[1])
        assert torch.isfinite(guided.latents).all()
        assert relative(guided.latents, plain.latents) > 1e-6  # random weights hardly look at the prompt
        assert guided.nfe_by_branch["cond"] == plain.nfe_by_branch["cond"]


@pytest.mark.parametrize("method", SAMPLED)
@pytest.mark.spread(4)
def test_one_object_serves_several_runs(sd, sd_v, method):
    guide = SAMPLED[method]()
    a = sample(sd, guide).latents
    sample(sd_v, guide, seeds=[5], steps=3, scheduler="ddim")
    assert torch.equal(sample(sd, guide).latents, a)


@pytest.mark.parametrize("method", SAMPLED)
def test_each_has_a_config_that_makes_it(method):
    folder = Path(guidance.__file__).parents[2] / "conf" / "guidance"
    text = (folder / f"{method}.yaml").read_text()
    assert text.startswith("# ")
    config = yaml.safe_load(text)
    cls = getattr(guidance, config.pop("_target_").removeprefix("research.guidance."))
    assert next(iter(config)) == "scale"
    made = cls(**config)
    assert isinstance(made, Guidance)
    assert type(made) is type(SAMPLED[method]())


def test_a_model_without_prompts_is_refused_where_they_are_needed(pixel):
    for method in ("apg", "cfg_zero", "tcfg", "fdg", "magnitude_aware", "perp_neg", "composable", "icg"):
        with pytest.raises(ConfigError, match=r"^guidance: .*tiny-ddpm"):
            LoopSampler(pixel, scheduler="ddpm", guidance=SAMPLED[method]()).sample(Unconditional(), seeds=[0], steps=2)
