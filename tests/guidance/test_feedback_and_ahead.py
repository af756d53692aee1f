"""Feedback guidance and Rectified-CFG++: their steps by hand."""

from __future__ import annotations

import math

import pytest
import torch
from guidance_samples import normal, predictions_of, relative, run_of, stage_of, state_of, x0_of

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import FeedbackGuidance, RectifiedCFGPlusPlus
from research.sampling import Prediction
from research.sampling.timeline import Timeline
from research.tasks import TextToImage


@pytest.mark.parametrize("kind", ["epsilon", "x0"])
@pytest.mark.fidelity(
    "guidance/feedback",
    source="arXiv:2506.06085, algorithm 1",
    against="the update of the authors' sampler (FBG_using_edm2), written out for the levels of a run",
    within="1e-5",
)
def test_the_scale_follows_the_posterior(kind):
    mix, temperature, offset, most = 0.95, 0.02, -0.1, 6.0
    guidance = FeedbackGuidance(most, mix, temperature, offset)
    least = math.log((1 - mix) * most / (most - 1))
    log, before, scales = torch.zeros(2), None, []
    for step, sigma in enumerate((5.0, 3.0, 1.5, 0.7)):
        state = state_of(stage_of(sigma, index=step), seed=step, dtype=torch.float32, kind=kind)
        given = predictions_of(state, seed=30 + 7 * step, kind=kind)
        if step == 0:
            guidance.start(state.run)
        state.branches, state.predictions = guidance.branches(state), given
        found = x0_of(guidance.combine(state, given).prediction, state)
        u, c = (x0_of(given[name], state) for name in ("uncond", "cond"))
        x = state.x_before / state.stage.signal
        if before is not None:
            was, x_was, u_was, c_was = before
            variance = (was**2 - sigma**2) * sigma**2 / was**2
            means = [sigma**2 / was**2 * x_was + (was**2 - sigma**2) / was**2 * d for d in (c_was, u_was)]
            errors = [((x - mean) ** 2).sum((1, 2, 3)) for mean in means]
            log = (log - temperature / (2 * variance) * (errors[0] - errors[1]) + offset).clamp(least, 3.0)
        scale = log.exp() / (log.exp() - (1 - mix))
        scales.append(scale)
        assert relative(found, u + scale[:, None, None, None] * (c - u)) < 1e-5
        before = sigma, x, u, c
    assert all((scale <= most * (1 + 1e-4)).all() for scale in scales)
    assert len({round(float(s), 4) for scale in scales for s in scale}) > 4


def test_what_is_not_said_is_as_the_authors_set_it():
    """Their functions, written out for EDM's levels."""
    n, rho = 16, 7
    levels = [(80 ** (1 / rho) + k / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho for k in range(n)]
    temperature, offset = FeedbackGuidance(mix=0.99, t_0=0.5, t_1=0.4).rates(levels)
    assert offset == pytest.approx(math.log(0.01 * 3 / 2) / (0.5 * n))
    spreads = [0.0] * n
    for k in range(n - 1):
        spreads[n - k - 1] = (levels[k] ** 2 - levels[k + 1] ** 2) * levels[k + 1] ** 2 / levels[k] ** 2
    spread = spreads[6] + (0.4 * n - 6) * (spreads[7] - spreads[6])
    assert temperature == pytest.approx(abs(2 * spread / 10 * offset))


@pytest.mark.parametrize("kind", ["flow", "epsilon"])
@pytest.mark.fidelity(
    "guidance/rectified_cfg",
    source="arXiv:2510.07631, algorithm 1",
    against="its step by hand, which the authors' pipeline of Stable Diffusion 3 takes but for the time told",
    within="1e-6",
    differs="the next level's time is told; after the last stage the correction is the stage's own",
)
def test_the_correction_is_that_where_the_conditional_velocity_leads(kind):
    if kind == "flow":
        levels = [(0.2, 0.8), (0.5, 0.5)]
    else:
        levels = [(math.cos(a), math.sin(a)) for a in (1.2, 0.7)]
    stages = tuple(
        type(stage_of())(
            index=k, step=k, n_steps=2, t=torch.tensor(900.0 - 400 * k), time=900.0 - 400 * k, sigma=b / a, sigma_next=0.1,
            log_snr=0.0, signal=a, noise=b, last_of_step=True,
        )
        for k, (a, b) in enumerate(levels)
    )  # fmt: skip

    def network(x, t, name):
        return torch.sin(x * (1.5 if "uncond" in name else 1.0)) * (1 + t / 1000)

    class Model:
        def predict(self, x, stage, branches):
            return {b.name: Prediction(network(x, stage.time, b.name), kind) for b in branches}

    run = run_of(2, kind=kind)
    run.timeline = Timeline(stages, n_steps=2)
    run.denoiser, run.solver.scale_input = Model(), lambda x, stage: x
    guidance = RectifiedCFGPlusPlus(1.7)
    state = state_of(stages[0], x=normal(5).float(), run=run)
    found = guidance.combine(state, state.predict(guidance.branches(state))).prediction.value
    x, (a, b) = state.x, levels[0]
    c = network(x, 900.0, "cond")
    if kind == "flow":
        led = x + (levels[1][1] - b) * c  # Euler's step
    else:
        led = levels[1][0] * (x - b * c) / a + levels[1][1] * c
    wanted = c + 1.7 * (network(led, 500.0, "cond") - network(led, 500.0, "uncond"))
    assert relative(found, wanted) < 1e-6
    assert run.nfe == {"cond": 1, "ahead_cond": 1, "ahead_uncond": 1}
    last = state_of(stages[1], x=normal(6).float(), run=run)
    found = guidance.combine(last, last.predict(guidance.branches(last))).prediction.value
    c, u = (network(last.x, 500.0, name) for name in ("cond", "uncond"))
    assert relative(found, c + 1.7 * (c - u)) < 1e-6


@pytest.mark.parametrize("make", [lambda s: RectifiedCFGPlusPlus(s - 1), FeedbackGuidance])
def test_off_alone_and_again(make, sd):
    def run(guidance, seeds=(1, 2), scheduler="ddim"):
        return LoopSampler(sd, scheduler, guidance=guidance).sample(TextToImage("a cat"), seeds=list(seeds), steps=3)

    plain, guidance = run(None), make(4.0)
    found = run(guidance)
    assert torch.equal(run(make(1.0)).latents, plain.latents)
    assert relative(found.latents, plain.latents) > 1e-4
    assert relative(run(guidance, [2]).latents[0], found.latents[1]) < 1e-4
    assert torch.equal(run(guidance).latents, found.latents)
    assert torch.isfinite(run(guidance, scheduler="heun").latents).all()


def test_settings_that_cannot_be():
    for make, key in (
        (lambda: FeedbackGuidance(0.5), "scale"),
        (lambda: FeedbackGuidance(mix=1), "mix"),
        (lambda: FeedbackGuidance(temperature=-1), "temperature"),
        (lambda: RectifiedCFGPlusPlus(-1), "scale"),
    ):
        with pytest.raises(ConfigError, match=rf"guidance\.{key}: found"):
            make()
