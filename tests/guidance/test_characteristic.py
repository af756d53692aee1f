"""Characteristic guidance: the authors' iteration by hand, what its solution is, and runs of it."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from guidance_samples import normal, relative, run_of, stage_of, state_of

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import CFG, CharacteristicGuidance, Interval
from research.sampling import Prediction
from research.sampling.prediction import convert
from research.tasks import TextToImage


def noise_of(x, name):
    """Noise predictions of latents [N, C, h, w] of variance 1, and of nothing else."""
    slope, shift = (1.3, -0.1) if "uncond" in name else (0.8, 0.3)
    return torch.tanh(slope * x + shift) * (1 + 0.2 * torch.sin(3 * x)) + 0.2 * x.mean((1, 2, 3), keepdim=True)


def stages(kept=True):
    return [stage_of(sigma, kept=kept, index=k) for k, sigma in enumerate((14.0, 4.0, 1.5))]


def found(guidance, kind="epsilon", kept=True, rows=(0, 1)):
    """What it makes of three stages of a made-up network: predictions, shifts, and what was evaluated."""
    run = run_of(len(rows), kind=kind)
    run.timeline = SimpleNamespace(stages=stages(kept))

    def predict(x, stage, branches):
        size = math.hypot(stage.signal, stage.noise)
        told = {b.name: Prediction(noise_of(x / size, b.name), "epsilon") for b in branches}
        return {name: convert(p, kind, x, stage) for name, p in told.items()}

    run.denoiser, run.solver.scale_input = SimpleNamespace(predict=predict), lambda x, stage: x
    guidance.start(run)
    made, shifts = [], []
    for k, stage in enumerate(run.timeline.stages):
        x = normal(k)[list(rows)] * math.hypot(stage.signal, stage.noise)
        state = state_of(stage, x=x, run=run)
        given = state.predict(guidance.branches(state))
        made.append(convert(guidance.combine(state, given).prediction, "epsilon", x, stage).value)
        shifts.append(guidance._shift)
    return made, shifts, run


def by_hand(k, x, before, scale, bases, regularisation, least_share):
    """The authors' inner loop at latents [N, C, h, w] of signal 1, for one image."""
    sigma = stages()[k].noise / stages()[k].signal
    size = math.hypot(1, sigma)

    def pull(d):
        e_u, e_c = noise_of((x + scale * d) / size, "uncond"), noise_of((x + (scale - 1) * d) / size, "cond")
        return (e_u - e_c) * sigma

    parts = -pull(torch.zeros_like(x))
    if bases:
        at = torch.linspace(0, 1, bases + 1, dtype=torch.float64)
        edges = torch.quantile(parts.flatten(2), at, dim=-1)[..., None, None]
        edges[-1] += 1  # the greatest is in the last part
        parts = torch.stack([parts * ((parts >= lo) & (parts < hi)) for lo, hi in pairwise(edges)])
        vectors = [p * (torch.arange(p.shape[1]) == c)[None, :, None, None] for p in parts for c in range(p.shape[1])]
    else:
        vectors = [parts]
    vectors = [v / v.norm() for v in vectors if v.norm()]
    share = 1 / (1 + sigma**2)
    target = (regularisation * (least_share / share) * 0.5) ** 0.5
    root = torch.tensor([(max(5, regularisation) * 0.5) ** 0.5]).double()
    d, points, errors = before, [], []
    for turn in range(50):
        wanted = pull(d)
        if turn:
            wanted = sum(v * (v * wanted).sum() / (1 + root**2 / 0.5) for v in vectors)
        point = torch.cat([d.flatten(), root])
        error = torch.cat([(d - wanted).flatten(), 0.4 * (root - target)])
        if error.square().mean().sqrt() < 1e-4:
            return d
        points.append(point)
        errors.append(error)
        if len(points) > 1:
            last = slice(-3 if bases else -2, None)
            steps_x = torch.stack(points[last], 1).diff(dim=1)
            steps_e = torch.stack(errors[last], 1).diff(dim=1)
            weights = torch.linalg.lstsq(steps_e, error[:, None]).solution
            point, error = point - (steps_x @ weights)[:, 0], error - (steps_e @ weights)[:, 0]
        point = point - error
        d, root = point[:-1].reshape(d.shape), point[-1:]
    return torch.zeros_like(d)


@pytest.mark.parametrize("bases", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
@pytest.mark.fidelity(
    "guidance/characteristic",
    source="arXiv:2312.07586, section 5; CharacteristicGuidanceWebUI",
    against="the authors' inner loop, written out (their settings but for what the guidance is asked for), stage by stage",
    within="1e-6",
    differs="the regularisation counts from the noisiest stage of the run; what is not finite has not converged",
)
def test_the_shift_is_that_of_the_authors_iteration(bases):
    scale, regularisation = 4.0, 2.0
    made, shifts, run = found(CharacteristicGuidance(scale, bases=bases, regularisation=regularisation))
    least = 1 / (1 + 14.0**2)
    before, was = torch.zeros(2, 4, 8, 8).double(), None
    for k, stage in enumerate(stages()):
        x, sigma = normal(k) * math.hypot(1, stage.noise / stage.signal), stage.noise / stage.signal
        begin = before if was is None else before * (sigma / was) ** 2
        images = range(2)
        before = torch.cat(
            [by_hand(k, x[i : i + 1], begin[i : i + 1], scale, bases, regularisation, least) for i in images]
        )
        was = sigma
        assert before.flatten(1).norm(dim=1).min() > 0.1
        assert relative(shifts[k], before) < 1e-6
        size = math.hypot(1, sigma)
        u, c = noise_of((x + scale * before) / size, "uncond"), noise_of((x + (scale - 1) * before) / size, "cond")
        assert relative(made[k], u + scale * (c - u)) < 1e-6
    assert run.nfe["cond"] == run.nfe["uncond"] > 20
    assert not run.warnings


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flow", "v", "x0"])
def test_it_is_the_same_whatever_is_predicted_and_however_latents_are_scaled(kind):
    wanted = found(CharacteristicGuidance(6.0))[0]
    for kept in (True, False):
        for one, other in zip(found(CharacteristicGuidance(6.0), kind, kept)[0], wanted, strict=True):
            assert relative(one, other) < 1e-6


@pytest.mark.slow
def test_an_image_does_not_depend_on_the_others():
    both, alone = found(CharacteristicGuidance(9.0)), found(CharacteristicGuidance(9.0), rows=(1,))
    assert all(relative(one[:1], two[1:]) < 1e-9 for one, two in zip(alone[0], both[0], strict=True))


def test_where_it_is_not_found_it_is_cfg_and_said():
    made, shifts, run = found(CharacteristicGuidance(6.0, iterations=1))
    assert not any(shift.any() for shift in shifts)
    for k, value in enumerate(made):
        u, c = noise_of(normal(k), "uncond"), noise_of(normal(k), "cond")
        assert relative(value, u + 6.0 * (c - u)) < 1e-6
    assert run.nfe == {"uncond": 3, "cond": 3}
    assert "1 did not find the shift of every image at every stage, first at step 1; CFG there" in run.warnings[0]


def test_gaussians_are_guided_to_where_both_agree():
    """Linear networks ``e = (x - mean) * s``: without damping both clean estimates agree at the solution, by its equation."""
    stage = stage_of(1.0)
    guidance = CharacteristicGuidance(4.0, regularisation=0.0, tolerance=1e-9)
    run = run_of(2)
    run.timeline = SimpleNamespace(stages=[stage])

    def predict(x, stage, branches):
        return {b.name: Prediction((x - (1.0 if b.name == "cond" else -1.0)) * 0.7, "epsilon") for b in branches}

    run.denoiser, run.solver.scale_input = SimpleNamespace(predict=predict), lambda x, stage: x
    guidance.start(run)
    state = state_of(stage, run=run)
    guidance.combine(state, state.predict(guidance.branches(state)))
    d = guidance._shift * stage.signal
    u, c = (
        predict(state.x + s * d, stage, [SimpleNamespace(name=n)])[n].value for s, n in ((4.0, "uncond"), (3.0, "cond"))
    )
    assert relative(stage.noise * (u - c), d) < 1e-6


@pytest.mark.slow
def test_off_again_and_shorter(sd):
    def run(guidance, seeds=(1, 2), scheduler="ddim"):
        return LoopSampler(sd, scheduler, guidance=guidance).sample(TextToImage("a cat"), seeds=list(seeds), steps=3)

    guidance = CharacteristicGuidance(6.0, iterations=12, regularisation=5.0)
    first, cfg = run(guidance), run(CFG(6.0))
    assert torch.equal(run(CharacteristicGuidance(1.0)).latents, run(None).latents)
    assert torch.equal(run(guidance).latents, first.latents)
    assert relative(first.latents, cfg.latents) > 1e-5
    assert relative(run(CharacteristicGuidance(6.0, until=0.01, iterations=1)).latents, cfg.latents) < 1e-5
    assert torch.isfinite(run(guidance, scheduler="heun").latents).all()
    assert torch.isfinite(run(Interval(guidance, steps=[0.3, 1.0])).latents).all()


def test_settings_that_cannot_be():
    for key, value in (
        ("scale", 0.5), ("iterations", 0), ("tolerance", 0), ("regularisation", -1), ("reach", 0), ("bases", -1),
        ("reuse", 1.1), ("until", 0), ("iterations", 2.5),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"guidance\.{key}: found"):
            CharacteristicGuidance(**{key: value})
