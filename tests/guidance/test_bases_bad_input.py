"""Ways to guide refuse what cannot work: in one line that names the setting, what was found and what is accepted."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import APG, FDG, ICG, TCFG, TSG, CFGPlusPlus, CFGZero, Composable, MagnitudeAware, PerpNeg
from research.tasks import TextToImage, Unconditional

SCALED = [CFGPlusPlus, APG, CFGZero, TCFG, FDG, MagnitudeAware, PerpNeg, Composable, ICG, TSG]
PROMPTED = [PerpNeg, Composable]


def message(make, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        make(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("method", SCALED)
@pytest.mark.parametrize("scale", [math.nan, math.inf, "3", None, True, [3.0]])
def test_a_scale_that_is_none(method, scale):
    extra = {"prompts": ["dog"]} if method in PROMPTED else {}
    assert message(method, scale, **extra).startswith(f"guidance.scale: found {scale!r}; accepted")


@pytest.mark.parametrize("scale", [-0.01, 1.01, 7.5])
def test_cfg_plus_plus_takes_scales_from_0_to_1(scale):
    text = message(CFGPlusPlus, scale)
    assert text.startswith(f"guidance.scale: found {scale}")
    assert "from 0 to 1" in text


@pytest.mark.parametrize("make", [lambda s: PerpNeg(s, prompts=["dog"]), TSG])
def test_negative_scales_where_the_paper_has_none(make):
    assert message(make, -1.0).startswith("guidance.scale: found -1.0;")


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (APG, {"eta": math.nan}),
        (APG, {"momentum": -1.0}),
        (APG, {"momentum": 1}),
        (APG, {"momentum": "fast"}),
        (APG, {"norm_threshold": -1}),
        (APG, {"norm_threshold": math.inf}),
        (APG, {"space": "pixels"}),
        (CFGZero, {"zero_steps": -1}),
        (CFGZero, {"zero_steps": 1.5}),
        (CFGZero, {"zero_steps": True}),
        (CFGZero, {"space": "score"}),
        (TCFG, {"space": None}),
        (MagnitudeAware, {"alpha": -0.1}),
        (MagnitudeAware, {"alpha": math.nan}),
        (MagnitudeAware, {"space": 3}),
        (FDG, {"weights": []}),
        (FDG, {"weights": [0, 0.0]}),
        (FDG, {"weights": [1, -0.5]}),
        (FDG, {"weights": [1, math.nan]}),
        (FDG, {"weights": "high"}),
        (ICG, {"renew": 1}),
        (ICG, {"renew": "each"}),
        (TSG, {"strength": 0}),
        (TSG, {"strength": -0.1}),
        (TSG, {"alpha": math.inf}),
    ],
)
def test_settings_out_of_range(method, settings):
    (key,) = settings
    text = message(method, 0.5, **settings)
    assert text.startswith(f"guidance.{key}: found ")
    assert "accepted" in text


@pytest.mark.parametrize("method", PROMPTED)
@pytest.mark.parametrize(
    ("prompts", "weights", "key"),
    [
        ([], None, "prompts"),
        ((), [], "prompts"),
        (["dog", " "], None, "prompts"),
        ([["a", ""]], None, "prompts"),
        ([[]], None, "prompts"),
        (3, None, "prompts"),
        ([3], None, "prompts"),
        (None, None, "prompts"),
        (["dog", "cat"], [1.0], "weights"),
        (["dog"], [1.0, 2.0], "weights"),
        (["dog"], [], "weights"),
        (["dog"], [math.nan], "weights"),
        (["dog"], ["much"], "weights"),
        (["dog"], [0.0], "weights"),
        (["dog", "cat"], [0, 0], "weights"),
    ],
)
def test_prompts_and_weights_that_do_not_fit(method, prompts, weights, key):
    text = message(method, 2.0, prompts=prompts, weights=weights)
    assert text.startswith(f"guidance.{key}: found ")
    assert "accepted" in text


def test_weights_that_sum_to_nothing():
    assert "sum to nothing" in message(Composable, 2.0, prompts=["dog", "cat"], weights=[1, -1])
    assert "from 0" in message(PerpNeg, 2.0, prompts=["dog", "cat"], weights=[1, -0.5])


def test_one_prompt_and_one_weight_may_come_alone():
    one = PerpNeg(2.0, prompts="dog", weights=0.5)
    assert (one.negatives.prompts, one.negatives.weights) == (["dog"], (0.5,))


@pytest.mark.parametrize("method", PROMPTED)
def test_a_list_of_prompts_of_another_length_than_the_images(sd, method):
    guide = method(2.0, prompts=[["dog", "cat"]])
    with pytest.raises(ConfigError, match=r"guidance\.prompts: found 2 sentences for 3 images"):
        LoopSampler(sd, guidance=guide).sample(TextToImage("a"), seeds=[1, 2, 3], steps=1)


def test_a_list_of_prompts_is_cut_with_the_batches(sd):
    guide = PerpNeg(2.0, prompts=[["dog", "cat", "b"]])
    sampler, task = LoopSampler(sd, guidance=guide), TextToImage("a")
    whole = sampler.sample(task, seeds=[1, 2, 3], steps=3).latents
    parts = sampler.sample(task, seeds=[1, 2, 3], steps=3, batch_size=2).latents
    assert (whole - parts).norm() / whole.norm() < 1e-5


def outline(**settings):
    return SimpleNamespace(**{"name": "an-outline", "supports": frozenset({"pixels"}), "n_classes": None, **settings})


def test_icg_is_checked_before_weights_load():
    solver = SimpleNamespace(supports=frozenset(), name="ddim")
    for model in (outline(), outline(n_classes=1), outline(name="m", n_classes=0)):
        assert "ICG needs a model with prompts or with at least two classes" in message(ICG(2.0).check, model, solver)
        ICG(1.0).check(model, solver)  # no guidance
    for model in (outline(n_classes=2), outline(supports=frozenset({"text"}))):
        ICG(2.0).check(model, solver)


@pytest.mark.parametrize("scheduler", ["heun", "dpmpp_3m", "dpmpp_2m_sde", "pndm", "unipc", "lms", "deis"])
def test_cfg_plus_plus_names_the_scheduler_it_cannot_use(sd, scheduler):
    text = message(LoopSampler, sd, scheduler=scheduler, guidance=CFGPlusPlus(0.5))
    assert "CFGPlusPlus needs a scheduler with a CFG++ kind (ddim" in text
    assert scheduler in text


@pytest.mark.parametrize("method", [APG, CFGZero, TCFG, FDG, MagnitudeAware])
def test_a_model_without_prompts_takes_scale_1_alone(pixel, method):
    assert "needs uncond" in message(LoopSampler, pixel, scheduler="ddpm", guidance=method(2.0))
    LoopSampler(pixel, scheduler="ddpm", guidance=method(1.0)).sample(Unconditional(), seeds=[0], steps=1)
