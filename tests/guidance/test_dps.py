"""Diffusion posterior sampling against its algorithm written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from guidance_samples import normal, stage_of, state_of
from torch import Tensor

from research import LoopSampler
from research.errors import ConfigError, SamplingError
from research.guidance import CFG, DPS, Interval, LossGuidance, NoGuidance, Rescale, Threshold
from research.sampling.interfaces import Guided
from research.sampling.noise import STEP, NoiseSource
from research.sampling.prediction import Prediction
from research.tasks import TextToImage
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask

SHAPE = (4, 6, 6)
MEAN, STD = 0.3, 0.7
TARGET = normal(7, SHAPE)


def residual(x: Tensor) -> Tensor:
    """The squared norm of what a half that is known differs by."""
    return (x - TARGET.to(x))[..., :3].square().flatten(1).sum(1)


@pytest.mark.parametrize(("name", "cls"), [("ddim", DDIMScheduler), ("ddpm", DDPMScheduler)])
@pytest.mark.fidelity(
    "guidance/dps_super_resolution",
    source="arXiv:2209.14687, algorithm 1",
    against="the algorithm written out",
    within="1e-4",
)
@pytest.mark.fidelity(
    "guidance/dps_inpaint", source="arXiv:2209.14687, algorithm 1", against="the algorithm written out", within="1e-4"
)
def test_it_is_algorithm_one(name: str, cls: Any) -> None:
    """arXiv:2209.14687: the scheduler's step, and then zeta times the gradient of the norm at the latents before it."""
    model = GaussianModel(MEAN, STD, SHAPE, dtype=torch.float32)
    task = GaussianTask(pure_noise=True)
    LoopSampler(model, name, guidance=DPS(0.4, residual, sees="latents")).sample(task, seeds=[0, 1], steps=8)

    scheduler = cls.from_config(dict(model.scheduler_config))
    scheduler.set_timesteps(8)
    drawn = NoiseSource([0, 1], torch.device("cpu")).generators(STEP)
    more = {"generator": drawn} if name == "ddpm" else {}
    x = task.starts[0]
    for t in scheduler.timesteps:
        leaf = x.detach().requires_grad_()
        bar = scheduler.alphas_cumprod[int(t)]
        a, b = bar.sqrt(), (1 - bar).sqrt()
        clean = MEAN + a * STD**2 / (a**2 * STD**2 + b**2) * (leaf - a * MEAN)
        norms = residual(clean).sqrt()
        (gradient,) = torch.autograd.grad(norms.sum(), leaf)
        epsilon = ((leaf - a * clean) / b).detach()
        x = scheduler.step(epsilon, t, x, **more).prev_sample - 0.4 * gradient
    assert float((task.ends[0] - x).norm() / x.norm()) < 1e-4
    plain = GaussianTask(pure_noise=True)
    LoopSampler(model, name).sample(plain, seeds=[0, 1], steps=8)
    known = [float(residual(ends[0]).mean()) for ends in (task.ends, plain.ends)]
    assert known[0] < 0.9 * known[1]


def shift_of(guidance: Any, *, kept: bool) -> tuple[Tensor, Guided]:
    """The move of latents at one level to another in a scaling, brought back to DDPM's."""
    stage, after = stage_of(2.0, kept=kept), stage_of(1.2, kept=kept)
    latents = normal(3, (2, *SHAPE))
    n = math.hypot(stage.signal, stage.noise)
    state = state_of(stage, x=n * latents)
    state.run.solver.end_level = (after.signal, after.noise)
    guidance.start(state.run)
    state.x_before = state.x.requires_grad_()
    with torch.enable_grad():
        predictions = {"cond": Prediction(torch.tanh(state.x_before / n), "x0")}
        guided = guidance.combine(state, predictions)
    return guided.shift / math.hypot(after.signal, after.noise), guided


def test_in_another_scaling_of_the_latents_it_is_the_same_move() -> None:
    led = DPS(0.4, residual, sees="latents")
    here, there = (shift_of(led, kept=kept)[0] for kept in (True, False))
    torch.testing.assert_close(here, there)
    leaf = normal(3, (2, *SHAPE)).requires_grad_()
    (gradient,) = torch.autograd.grad(residual(torch.tanh(leaf)).sqrt().sum(), leaf)
    torch.testing.assert_close(here, -0.4 * gradient)


def test_what_stands_around_it_hands_the_move_on() -> None:
    def made() -> DPS:
        return DPS(0.4, residual, sees="latents")

    alone, guided = shift_of(made(), kept=True)
    assert guided.prediction.kind == "x0"
    for around in (Rescale(made()), Threshold(made()), LossGuidance(0.1, residual, base=made())):
        torch.testing.assert_close(shift_of(around, kept=True)[0], alone)
    torch.testing.assert_close(shift_of(DPS(0.4, residual, sees="latents", base=made()), kept=True)[0], 2 * alone)


def test_scale_zero_is_the_base_and_a_window_is_kept(sd: Any) -> None:
    def run(guidance: Any) -> Any:
        sampler = LoopSampler(sd, "ddim", guidance=guidance)
        return sampler.sample(TextToImage("pizza"), seeds=[0, 1], steps=4)

    def loss(pixels: Tensor) -> Tensor:
        return (pixels - 0.5).square().sum((1, 2, 3))

    plain = run(CFG(2))
    assert torch.equal(run(DPS(0.0, loss, base=CFG(2))).latents, plain.latents)
    led = run(DPS(0.5, loss, base=CFG(2)))
    assert led.nfe_by_branch == plain.nfe_by_branch
    assert not torch.allclose(led.latents, plain.latents, atol=1e-3)
    last = run(Interval(DPS(0.5, loss), steps=(0.75, 1)))
    assert not torch.allclose(last.latents, run(NoGuidance()).latents, atol=1e-4)


def test_schedulers_with_a_memory_and_losses_below_zero_are_refused(sd: Any) -> None:
    with pytest.raises(ConfigError, match=r"^guidance: DPS needs a first-order scheduler"):
        LoopSampler(sd, "dpmpp_2m", guidance=DPS(1.0, residual))
    led = DPS(1.0, lambda x: -x.square().flatten(1).sum(1), sees="latents")
    with pytest.raises(SamplingError, match=r"accepted with DPS are squared norms, from 0"):
        LoopSampler(sd, "ddim", guidance=led).sample(TextToImage("a"), seeds=[0], steps=2)
