"""Classifier-free guidance: what it computes, what it costs, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from research import Hook, LoopSampler
from research.errors import ConfigError
from research.guidance import CFG, Guidance, NoGuidance
from research.sampling import Branch, Guided, Prediction
from research.tasks import TextToImage, Unconditional


class Keep(Hook):
    """The predictions and the guided one of every stage."""

    def on_start(self, run):
        self.kept = []

    def post_guidance(self, state):
        self.kept.append((dict(state.predictions), state.guided.prediction.value.clone()))


def sample(model, guidance, *hooks, steps=3, negative=None, **arguments):
    sampler = LoopSampler(model, scheduler="ddim", guidance=guidance, hooks=hooks, **arguments)
    return sampler.sample(TextToImage("a cat", negative), seeds=[1, 2], steps=steps)


@pytest.mark.parametrize("scale", [-1.5, 0.25, 0.5, 1.5, 7.5, np.float32(3.0), np.int64(2)])
@pytest.mark.fidelity(
    "guidance/cfg",
    source="arXiv:2207.12598, eq. 6",
    against="its formula",
    within="equal to the bit",
    differs="scale 0 and 1 cost one evaluation",
)
def test_the_formula(sd, scale):
    keep = Keep()
    result = sample(sd, CFG(scale), keep)
    assert result.nfe_by_branch == {"uncond": 3, "cond": 3}
    for predictions, guided in keep.kept:
        u, c = predictions["uncond"].value, predictions["cond"].value
        assert not torch.equal(u, c)
        # to rounding: outside parity it is one operation
        assert torch.allclose(guided, u + float(scale) * (c - u), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["sd", "sd_v"])
def test_a_scale_between_0_and_1_lies_between(request, kind):
    """Where diffusers pipelines take 0.5 as 1."""
    model = request.getfixturevalue(kind)
    # one step is linear in the prediction, and so in the scale
    none, half, full = (sample(model, CFG(scale), steps=1).latents for scale in (0, 0.5, 1))
    assert torch.allclose(half, (none + full) / 2, atol=1e-4)
    assert not torch.allclose(half, full, atol=1e-4)


def test_scale_1_is_no_guidance_and_costs_one_evaluation(sd):
    result = sample(sd, CFG(1.0))
    assert result.nfe_by_branch == {"cond": 3}
    for other in (sample(sd, NoGuidance()), sample(sd, None)):
        assert torch.equal(result.latents, other.latents)
        assert other.nfe == 3


def test_scale_0_is_the_negative_prompt_alone(sd):
    result = sample(sd, CFG(0), negative="dog")
    assert result.nfe_by_branch == {"uncond": 3}
    as_prompt = LoopSampler(sd, scheduler="ddim").sample(TextToImage("dog"), seeds=[1, 2], steps=3)
    assert torch.equal(result.latents, as_prompt.latents)
    assert result.warnings == []


def test_no_negative_prompt_is_the_empty_sentence(sd):
    assert torch.equal(sample(sd, CFG(3.0)).latents, sample(sd, CFG(3.0), negative="").latents)
    assert not torch.equal(sample(sd, CFG(3.0)).latents, sample(sd, CFG(3.0), negative="dog").latents)


@pytest.mark.parametrize("guidance", [CFG(1.0), NoGuidance(), None])
@pytest.mark.slow
def test_a_negative_prompt_that_is_not_used_is_said(sd, guidance):
    result = sample(sd, guidance, negative="dog")
    (warning,) = result.warnings
    assert "negative_prompt" in warning
    assert torch.equal(result.latents, sample(sd, guidance).latents)
    assert sample(sd, guidance).warnings == []
    assert sample(sd, CFG(2.0), negative="dog").warnings == []


def test_a_guidance_of_ones_own_that_uses_it_is_not_warned_of(sd):
    class Late(Guidance):
        """Asks for the negative prompt in the last stage only."""

        def branches(self, state):
            name = "uncond" if state.stage.index == 2 else "cond"
            return [Branch(name, state.run.conditions[name])]

        def combine(self, state, predictions):
            return Guided(next(iter(predictions.values())))

    result = sample(sd, Late(), negative="dog")
    assert result.nfe_by_branch == {"cond": 2, "uncond": 1}
    assert result.nfe == 3
    assert result.warnings == []


def test_guidance_may_be_done_in_x0(sd):
    """CFG is linear, so doing it on clean estimates gives the same picture."""

    class InX0(CFG):
        def combine(self, state, predictions):
            return super().combine(state, {k: convert_to_x0(p, state) for k, p in predictions.items()})

    def convert_to_x0(prediction, state):
        from research.sampling import convert

        return convert(prediction, "x0", state.x_before, state.stage)

    plain, other = (sample(sd, g).latents for g in (CFG(3.0), InX0(3.0)))
    assert (plain - other).norm() / plain.norm() < 1e-3


def test_one_object_may_serve_several_samplers(sd, sd_v):
    shared = CFG(2.0)
    expected = [sample(model, CFG(2.0)).latents for model in (sd, sd_v, sd)]
    found = [sample(model, shared).latents for model in (sd, sd_v, sd)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "3", None, True, [3], 1j])
def test_a_scale_that_is_none(scale):
    with pytest.raises(ConfigError, match=r"guidance\.scale: found .*accepted is a finite number"):
        CFG(scale)


def test_a_model_without_prompts_refuses_before_it_samples(pixel):
    with pytest.raises(ConfigError, match="CFG needs uncond"):
        LoopSampler(pixel, scheduler="ddpm", guidance=CFG(3.0))


def test_a_condition_that_the_task_does_not_have(pixel):
    class Asks(Guidance):
        def start(self, run):
            run.conditions["depth"]

    with pytest.raises(ConfigError, match="'depth'"):
        LoopSampler(pixel, scheduler="ddpm", guidance=Asks()).sample(Unconditional(), seeds=[0], steps=1)


def test_the_prediction_keeps_its_kind(sd_v):
    class Look(Hook):
        def post_guidance(self, state):
            assert state.guided.prediction.kind == "v"
            assert isinstance(state.predictions["cond"], Prediction)

    sample(sd_v, CFG(3.0), Look())
