"""The CFG++ kinds of euler, euler_a, dpmpp_2m and dpmpp_2s_a give what their formulas give, and nobody else pays for them.

With the guided data prediction D and the unconditional one U, all of latents over their scale (see `references`): Euler's and its
ancestral kind are ComfyUI's ``sample_euler_cfg_pp`` and ``sample_euler_ancestral_cfg_pp`` (on flow models with this project's
own ancestral noise), those of DPM-Solver++ what the authors of CFG++ publish (arXiv:2406.08070, ``latent_sdxl.py`` for 2M,
``latent_diffusion.py`` for 2S).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from references import alpha, ancestral, lam, sigma_of
from test_solver_references import SHAPE, Given, drawing, grid, start

from research import LoopSampler
from research.errors import ConfigError, SamplingError
from research.guidance import CFG, CFGPlusPlus, Interval, NoGuidance
from research.sampling import Guided, NoiseSource, Prediction
from research.sampling.prediction import convert
from research.sigmas import Karras
from research.solvers import LinearSolver, SolverFactory, Update
from research.solvers.linear import to_data
from research.solvers.native.dpmpp import DPMpp
from research.tasks import TextToImage
from research.testing.gaussian import SCHEDULE, TYPES

NAMES = ["euler", "euler_a", "dpmpp_2m", "dpmpp_2s_a"]
KINDS = ["epsilon", "x0", "v", "flow"]


def unconditional(y: torch.Tensor, sigma: float) -> torch.Tensor:
    """A made-up data prediction."""
    return torch.tanh(y / (1 + sigma)) + 0.1 * math.cos(4 * sigma)


def guided(y: torch.Tensor, sigma: float) -> torch.Tensor:
    """Another, far from it."""
    return unconditional(y, sigma) + 0.4 * torch.sin(3 * y.flip(-1) / (1 + sigma)) + 0.3


def both(y: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    return guided(y, sigma), unconditional(y, sigma)


def euler(y, sigmas, draw, flow):
    for s, t in itertools.pairwise(sigmas):
        d, u = both(y, s)
        y = alpha(t, flow) * d + t * (y - alpha(s, flow) * u) / s
    return y


def lowered(s: float, t: float, flow: bool) -> tuple[float, float, float]:
    """The level below, and what latents there and noise are multiplied by to be at ``t``."""
    if not flow:
        down, up = ancestral(s, t, 1.0)
        return down, 1.0, up
    down = t * t / s
    ratio = (1 - t) / (1 - down)
    return down, ratio, math.sqrt(t**2 - (down * ratio) ** 2)


def euler_a(y, sigmas, draw, flow):
    for s, t in itertools.pairwise(sigmas):
        d, u = both(y, s)
        if t == 0:
            y = d
            continue
        down, ratio, up = lowered(s, t, flow)
        y = ratio * (alpha(down, flow) * d + down * (y - alpha(s, flow) * u) / s) + up * draw(s, t)
    return y


def dpmpp_2m(y, sigmas, draw, flow):
    old, few = None, len(sigmas) - 1 < 15
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        d, u = both(y, s)
        last = i + 2 == len(sigmas) and (few or t == 0)  # as diffusers' class lowers the order
        new = alpha(t, flow) * d + t * (y - alpha(s, flow) * u) / s
        if i and not last and lam(sigmas[i - 1], flow) > -math.inf:
            h = lam(t, flow) - lam(s, flow)
            r = (lam(s, flow) - lam(sigmas[i - 1], flow)) / h
            new = new - alpha(t, flow) * math.expm1(-h) * (u - old) / (2 * r)
        y, old = new, u
    return y


def dpmpp_2s_a(y, sigmas, draw, flow):
    for s, t in itertools.pairwise(sigmas):
        d, u = both(y, s)
        if t == 0:
            y = d
            continue
        down, ratio, up = lowered(s, t, flow)
        if alpha(s, flow):
            half = (lam(down, flow) - lam(s, flow)) / 2
            mid = sigma_of(lam(s, flow) + half, flow)
            inner = mid / s * y - alpha(mid, flow) * math.expm1(-half) * u
            d, u = both(inner, mid)
        y = ratio * (alpha(down, flow) * d + down / s * y - down / s * alpha(s, flow) * u) + up * draw(s, t)
    return y


REFERENCES = {"euler": euler, "euler_a": euler_a, "dpmpp_2m": dpmpp_2m, "dpmpp_2s_a": dpmpp_2s_a}


def config(kind: str) -> dict[str, Any]:
    if kind == "flow":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    return {**SCHEDULE, "prediction_type": TYPES[kind]}


def sampled(name: str, kind: Any, sigmas: list[float], renoised: bool = True, dtype=torch.float64) -> torch.Tensor:
    """By the native solver, over the last level's scale."""
    flow = kind == "flow"
    solver = SolverFactory(name, {}, config(kind), sigmas=Given(sigmas))()
    timeline, noise = solver.timeline(len(sigmas) - 1), NoiseSource((1, 2))
    solver.start(noise)
    x = (start() * (1.0 if flow else sigmas[0] * timeline[0].signal)).to(dtype)
    for stage in timeline:
        scale = 1.0 if flow else stage.signal
        told = [
            convert(Prediction(clean, "x0"), kind, x.double(), stage) for clean in both(x.double() / scale, stage.sigma)
        ]
        told = [Prediction(each.value.to(dtype), kind) for each in told]
        x = solver.step(Guided(told[0], told[1] if renoised else None), x, stage, noise).x
    return x.double() / (1.0 if flow else solver.end_level[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.spread(2)
@pytest.mark.fidelity(
    "guidance/cfg_plus_plus",
    source="arXiv:2406.08070, official code",
    against="formulas of euler, euler_a (ComfyUI), dpmpp_2m, dpmpp_2s_a (official) on models of four kinds",
    within="1e-5 of the spread",
    differs="from ComfyUI's dpmpp_2m_cfg_pp and dpmpp_2s_ancestral_cfg_pp, whose differences mix both predictions",
)
def test_it_is_its_formula(name, kind):
    for steps, end in ((1, 0.0), (2, 0.0), (7, 0.0), (16, 0.02)):
        sigmas = grid(steps, kind == "flow", end)
        y = start() * (1.0 if kind == "flow" else sigmas[0])
        expected = REFERENCES[name](y, sigmas, drawing(sigmas, False), kind == "flow")
        found = sampled(name, kind, sigmas)
        assert float((found - expected).abs().max()) < 1e-5 * float(expected.std())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.spread(4)
def test_in_single_precision_too(name, kind):
    sigmas = grid(8, kind == "flow")
    y = start() * (1.0 if kind == "flow" else sigmas[0])
    expected = REFERENCES[name](y, sigmas, drawing(sigmas, False), kind == "flow")
    found = sampled(name, kind, sigmas, dtype=torch.float32)
    assert float((found - expected).abs().max()) < 2e-4 * float(expected.std())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_no_plain_guidance(name):
    sigmas = grid(7, False)
    assert float((sampled(name, "epsilon", sigmas) - sampled(name, "epsilon", sigmas, False)).abs().max()) > 0.05


# --- in the loop


@pytest.mark.slow
@pytest.mark.parametrize("levels", [None, "karras"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.spread(4)
def test_a_batch_is_its_images_and_scale_0_is_the_unconditional_picture(sd, name, levels):
    sigmas = Karras() if levels else None

    def made(guidance: Any, *seeds: int) -> torch.Tensor:
        sampler = LoopSampler(sd, name, guidance=guidance, sigmas=sigmas)
        return sampler.sample(TextToImage("a cat"), seeds=list(seeds), steps=5).latents

    together = made(CFGPlusPlus(0.6), 1, 2)
    assert torch.allclose(made(CFGPlusPlus(0.6), 2), together[1:], atol=1e-4)
    assert torch.equal(made(CFGPlusPlus(0.6), 1, 2), together)
    assert torch.equal(made(CFGPlusPlus(0.0), 1), made(CFG(0.0), 1))
    assert not torch.allclose(together[:1], made(CFG(0.6), 1), atol=1e-5)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2s_a"])
def test_stages_with_and_without_it_share_a_history(sd, name):
    """Outside of its window there is one prediction, and the history goes on with it."""
    guidance = Interval(CFGPlusPlus(0.6), steps=(0.0, 0.5))
    found = LoopSampler(sd, name, guidance=guidance).sample(TextToImage("a cat"), seeds=[1], steps=6).latents
    plain = LoopSampler(sd, name, guidance=NoGuidance()).sample(TextToImage("a cat"), seeds=[1], steps=6).latents
    assert found.isfinite().all()
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_clipped_predictions_imply_the_noise(clip):
    """Where data predictions are cut, so is that of the noise to go along: the step is the formula with what is left."""
    solver = SolverFactory(DPMpp(clip=clip), {}, config("epsilon"))()
    timeline, noise = solver.timeline(4), NoiseSource((1,))
    stage, after = timeline[0], timeline[1]
    x, d, u = (torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(i)).double() for i in range(3))
    told = [convert(Prediction(each, "x0"), "epsilon", x, stage) for each in (d, u)]
    if clip is not None:
        d, u = d.clamp(-clip, clip), u.clamp(-clip, clip)
    expected = after.signal * d + after.noise / stage.noise * (x - stage.signal * u)
    torch.testing.assert_close(solver.step(Guided(*told), x, stage, noise).x, expected, rtol=1e-9, atol=1e-9)


# --- who has such a kind


@pytest.mark.parametrize(
    ("solver", "has"),
    [(DPMpp(1), True), (DPMpp(2), True), (DPMpp(2, kind="heun"), True), (DPMpp(3), False), (DPMpp(2, sde=True), False)],
)
def test_of_which_orders_there_is_one(solver, has):
    assert ("renoise" in SolverFactory(solver, {}, config("epsilon"))().supports) is has


def test_a_solver_of_ones_own_says_what_leads():
    class Mine(LinearSolver):
        lead: bool = False

        def update(self, levels, i):
            weights = {0: 1.0} if not i else {0: 1.5, 1: -0.5}
            step = to_data(levels[i], levels[i + 1], weights)
            return dataclasses.replace(step, lead=levels[i + 1].signal) if self.lead else step

    class Leading(Mine):
        lead = True

    assert "renoise" not in SolverFactory(Mine(), {}, config("epsilon"))().supports
    assert "renoise" in SolverFactory(Leading(), {}, config("epsilon"))().supports
    assert Update({0: 1.0}, lead=2.0).scaled(0.5).lead == 1.0


def test_it_is_refused_by_its_reason(sd):
    with pytest.raises(ConfigError, match=r"CFGPlusPlus needs a scheduler with a CFG\+\+ kind") as caught:
        LoopSampler(sd, "dpmpp_2m", guidance=CFGPlusPlus(0.6), parity=True)
    assert "\n" not in str(caught.value)
    solver = SolverFactory("heun", {}, config("epsilon"))()
    timeline, x = solver.timeline(3), torch.zeros(1, 4, 2, 2)
    for stage in timeline[:2]:
        prediction = Prediction(x, "epsilon")
        if not stage.index:
            x = solver.step(Guided(prediction, prediction), x, stage, NoiseSource((1,))).x
            continue
        with pytest.raises(SamplingError, match="heun cannot go along a noise of the guidance's own"):
            solver.step(Guided(prediction, prediction), x, stage, NoiseSource((1,)))
