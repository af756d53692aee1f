"""Guidance by history and by the noise level: their formulas, over steps, and what is left as it was."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from guidance_samples import normal, predictions_of, relative, stage_of, state_of, x0_of
from scipy.fft import dctn, idctn

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import (
    CFG,
    SMCCFG,
    TSG,
    TSR,
    CFGZero,
    EpsilonScaling,
    HiGS,
    Interval,
    MimicThreshold,
    Momentum,
    NoGuidance,
)
from research.sampling import Prediction, convert
from research.tasks import TextToImage
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask

SIGMAS = (8.0, 3.0, 1.0, 0.4)


def walk(guidance, kind="flow", space="x0"):
    """What a guidance makes of random predictions at four stages, and the predictions, in a space."""
    found = []
    for step, sigma in enumerate(SIGMAS):
        state = state_of(stage_of(sigma, index=step, n_steps=4), seed=step, kind=kind)
        given = predictions_of(state, seed=50 + step, kind=kind)
        if step == 0:
            guidance.start(state.run)
        state.branches = guidance.branches(state)
        p = guidance.combine(state, {b.name: given[b.name] for b in state.branches}).prediction
        as_space = [
            convert(each, space, state.x_before, state.stage).value for each in (given["uncond"], given["cond"], p)
        ]
        found.append((state, *as_space))
    return found


@pytest.mark.parametrize("kind", ["flow", "epsilon"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.fidelity(
    "guidance/modifiers/momentum",
    source="arXiv:2602.20360, algorithm 1",
    against="its formula; no official code was found",
    within="1e-9",
    differs="one average a user's step; velocities of other models by conversion",
)
def test_momentum_leads_away_from_the_average_of_velocities(normalise, kind):
    past = None
    for _, u, c, found in walk(Momentum(CFG(3.0), 0.7, 0.6, normalise), kind, "flow"):
        v = u + 3.0 * (c - u)
        if past is None:
            past, wanted = v, v
        else:
            m = past
            if normalise:
                m = m * (v.flatten(1).norm(dim=1) / m.flatten(1).norm(dim=1))[:, None, None, None]
            wanted = v + 0.7 * (v - m)
            past = 0.4 * v + 0.6 * past
        assert relative(found, wanted) < 1e-9


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.fidelity(
    "guidance/modifiers/higs",
    source="arXiv:2509.22300, algorithms 2 and 3",
    against="its formula, with scipy's cosine transform; no official code was found",
    within="1e-6",
    differs="time is noise / (signal + noise)",
)
def test_higs_adds_high_frequencies_of_what_is_new(eta):
    past = None
    for state, u, c, found in walk(HiGS(CFG(2.0), 1.5, 0.75, eta, 0.05, (0.4, 1.0)), "epsilon", "x0"):
        d = (u + 2.0 * (c - u)).numpy()
        wanted = d
        time = state.stage.noise / (state.stage.signal + state.stage.noise)
        if past is not None and 0.4 < time <= 1:
            new = d - past
            share = (new * d).sum((1, 2, 3), keepdims=True) / (d * d).sum((1, 2, 3), keepdims=True)
            new = new - (1 - eta) * share * d
            radius = np.hypot(np.arange(8)[:, None] / 8, np.arange(8) / 8)
            kept = dctn(new, axes=(2, 3), norm="ortho") / (1 + np.exp(-50 * (radius - 0.05)))
            wanted = d + 1.5 * math.sqrt((time - 0.4) / 0.6) * idctn(kept, axes=(2, 3), norm="ortho")
        past = 0.75 * d + (0.25 * past if past is not None else 0)
        assert relative(found, torch.from_numpy(wanted)) < 1e-6


@pytest.mark.fidelity(
    "guidance/smc_cfg",
    source="arXiv:2603.03281, section 4",
    against="the step of the authors' code (CFG-Ctrl), written out; run apart, equal",
    within="1e-9",
    differs="counts the user's steps",
)
def test_smc_cfg_corrects_the_difference():
    before = None
    for _, u, c, found in walk(SMCCFG(4.0, 0.1, 0.2), "flow", "flow"):
        e = c - u
        before = e if before is None else before
        before = e - 0.2 * torch.sign((e - before) + 0.1 * before)
        assert relative(found, u + 4.0 * before) < 1e-9
    assert all(relative(found, u + 4.0 * (c - u)) < 1e-12 for _, u, c, found in walk(SMCCFG(4.0, 0.1, 0.0), "v", "v"))


def test_further_evaluations_of_a_step_see_the_same_past():
    first, half = stage_of(index=0), dataclasses.replace(stage_of(index=1), last_of_step=False)
    for guidance in (Momentum(NoGuidance(), 1.0, 0.5, space="prediction"), SMCCFG(2.0, 0.1, 0.1)):
        found = []
        for seed, stage in ((1, first), (2, half), (2, dataclasses.replace(half, index=2, last_of_step=True))):
            state = state_of(stage, seed=seed)
            if stage is first:
                guidance.start(state.run)
            given = {name: Prediction(normal(seed + k), "epsilon") for k, name in enumerate(("uncond", "cond"))}
            found.append(guidance.combine(state, given).prediction.value)
        assert torch.equal(found[1], found[2])


@pytest.mark.parametrize("kind", ["flow", "epsilon", "v", "x0"])
@pytest.mark.fidelity(
    "guidance/modifiers/epsilon_scaling",
    source="arXiv:2308.15321, section 5",
    against="its formula; the authors' ADM-ES divides so by a constant",
    within="1e-9",
    differs="latents that are noise alone are left",
)
@pytest.mark.fidelity(
    "guidance/modifiers/tsr",
    source="arXiv:2510.01184, eq. 8 and 10",
    against="the ratio of the authors' schedulers, written out; the variance of Gaussians that it promises",
    within="1e-9",
)
def test_noise_is_scaled_whatever_the_model_predicts(kind):
    for step, (_, _, c, found) in enumerate(walk(EpsilonScaling(NoGuidance(), 1.02, 1.08), kind, "epsilon")):
        assert relative(found, c / (1.02 + 0.02 * step)) < 1e-9
    for state, _, c, found in walk(TSR(NoGuidance(), 4.0, 0.5), kind, "epsilon"):
        a, b = state.stage.signal**2, state.stage.noise**2
        assert relative(found, c * (a * 0.25 + b) / (a * 0.25 / 4.0 + b)) < 1e-9


def test_tsr_samples_the_variance_that_it_promises():
    model = GaussianModel(0.3, 0.7, (4, 6, 6), "flow")
    spreads = {}
    for k in (1.0, 4.0):
        sampler = LoopSampler(model, "flow_heun", guidance=TSR(NoGuidance(), k, 0.7))
        latents = sampler.sample(GaussianTask(), seeds=range(16), steps=60).latents
        spreads[k] = float(latents.std())
        assert abs(float(latents.mean()) - 0.3) < 0.05
    assert spreads[4.0] == pytest.approx(spreads[1.0] / 2, rel=0.03)


def mimicked(cond, uncond, scale, mimic, percentile, separate, measure, start):
    """As the published code reads, for one image."""
    targets = [uncond + (cond - uncond) * s for s in (mimic, scale)]
    m, g = (t.reshape(len(t), -1) for t in targets)
    m_centred, g_centred = m - m.mean(1, keepdims=True), g - g.mean(1, keepdims=True)
    axis = 1 if separate else None
    if measure == "std":
        aim, own = m_centred.std(axis, ddof=1, keepdims=True), g_centred.std(axis, ddof=1, keepdims=True)
    else:
        aim = np.abs(m_centred).max(axis, keepdims=True)
        own = np.quantile(np.abs(g_centred), percentile, axis, keepdims=True)
    if start == "zero":
        return (g * aim / own).reshape(cond.shape)
    if measure == "std":
        return (g_centred / own * aim + g.mean(1, keepdims=True)).reshape(cond.shape)
    limit = np.maximum(own, aim)
    return (np.clip(g_centred, -limit, limit) / limit * aim + g.mean(1, keepdims=True)).reshape(cond.shape)


@pytest.mark.parametrize("start", ["mean", "zero"])
@pytest.mark.parametrize("measure", ["max", "std"])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.fidelity(
    "guidance/modifiers/mimic_threshold",
    source="sd-dynamic-thresholding, dynthres_core.py",
    against="that code's steps in numpy, image by image; run apart, equal to 1e-5",
    within="1e-6",
    differs="ranges over all channels are of each image",
)
@pytest.mark.spread(3)
def test_mimic_threshold_is_that_of_the_published_code(separate, measure, start):
    state = state_of(stage_of(0.8))
    given = predictions_of(state)
    guidance = MimicThreshold(CFG(12.0), 4.0, 0.9, separate, measure, start, phi=0.75)
    found = x0_of(guidance.combine(state, given).prediction, state).numpy()
    u, c = (x0_of(given[name], state).numpy() for name in ("uncond", "cond"))
    for k in range(len(u)):
        wanted = mimicked(c[k], u[k], 12.0, 4.0, 0.9, separate, measure, start)
        wanted = 0.75 * wanted + 0.25 * (u[k] + 12.0 * (c[k] - u[k]))
        np.testing.assert_allclose(found[k], wanted, atol=1e-6 * np.abs(wanted).max())


MODIFIERS = {
    "momentum": lambda g, on=True: Momentum(g, 0.5 * on),
    "higs": lambda g, on=True: HiGS(g, 1.5 * on),
    "epsilon_scaling": lambda g, on=True: EpsilonScaling(g, 1.05 if on else 1.0),
    "tsr": lambda g, on=True: TSR(g, 2.0 if on else 1.0),
    "mimic": lambda g, on=True: MimicThreshold(g, 1.5, phi=float(on)),
}


@pytest.mark.parametrize("name", MODIFIERS)
@pytest.mark.spread(2)
def test_off_alone_again_and_around_others(name, sd):
    def run(guidance, seeds=(1, 2)):
        return LoopSampler(sd, "ddim", guidance=guidance).sample(TextToImage("a cat"), seeds=list(seeds), steps=4)

    make = MODIFIERS[name]
    plain, guidance = run(CFG(3.0)), make(CFG(3.0))
    found = run(guidance)
    assert torch.equal(run(make(CFG(3.0), on=False)).latents, plain.latents)
    assert found.nfe_by_branch == plain.nfe_by_branch
    assert relative(found.latents, plain.latents) > 1e-4
    assert relative(run(guidance, [2]).latents[0], found.latents[1]) < 1e-4
    assert torch.equal(run(guidance).latents, found.latents)
    assert torch.isfinite(run(make(Interval(CFGZero(3.0), steps=(0, 0.5)))).latents).all()


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Momentum(CFG(3), beta=1), r"momentum\.beta"),
        (lambda: HiGS(CFG(3), window=(0.5, 0.4)), r"higs\.window"),
        (lambda: HiGS(CFG(3), alpha=0), r"higs\.alpha"),
        (lambda: EpsilonScaling(CFG(3), 0), r"epsilon_scaling\.scaling"),
        (lambda: TSR(CFG(3), k=-1), r"tsr\.k"),
        (lambda: MimicThreshold(CFG(3), measure="ad"), r"mimic_threshold\.measure"),
        (lambda: SMCCFG(3, slope=0), r"guidance\.slope"),
    ],
)
def test_settings_that_cannot_be(make, key):
    with pytest.raises(ConfigError, match=rf"{key}: found"):
        make()


def test_mimicking_needs_an_unconditional_prediction(sd):
    with pytest.raises(ConfigError, match="mimics a scale of CFG; TSG asks for no"):
        LoopSampler(sd, guidance=MimicThreshold(TSG(2.0)))
