"""The exact model, and that schedulers converge on it as fast as their order says."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from gaussians import MEAN, POINT, STD, WIDE, error

from research import LoopSampler
from research.sampling.prediction import to_x0
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask, measure

pytestmark = pytest.mark.spread(2)

SMOOTH = GaussianModel(MEAN, torch.tensor([1.0, 1.5, 2.0, 3.0]).reshape(4, 1, 1), (4, 8, 8))
KARRAS = {"use_karras_sigmas": True}
TO_THE_END = {**KARRAS, "final_sigmas_type": "sigma_min"}


# --- the model


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0", "flow"])
def test_the_denoiser_is_the_conditional_mean(kind):
    """Against a regression of x0 on x over many draws."""
    model = GaussianModel(0.7, 0.4, (1, 1, 1), kind)
    scheduler = "flow_euler" if kind == "flow" else "ddim"
    solver = model.solvers(scheduler)()
    stage = solver.timeline(10)[6]
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(200_000, 1, 1, 1, generator=generator, dtype=torch.float64) for _ in "ab")
    clean = model.sample_clean(clean)
    x = stage.signal * clean + stage.noise * noise

    class Run:
        pass

    run = Run()
    run.solver = solver
    (prediction,) = model.denoiser(run).predict(x, stage, [_Branch()]).values()
    assert prediction.kind == kind
    found = to_x0(prediction, x, stage)
    slope = float(((x - x.mean()) * (clean - clean.mean())).mean() / x.var())
    right = clean.mean() + slope * (x - x.mean())
    assert float((found - right).abs().max()) < 0.02
    assert float((found - clean).square().mean()) <= float((0.98 * found - clean).square().mean())


class _Branch:
    name = "cond"


def test_levels_are_those_of_the_training_schedule():
    bars = DDIMScheduler.from_config(WIDE.scheduler_config).alphas_cumprod.double()
    for t in (0, 1, 500, 999):
        signal, noise = WIDE.level(t)
        assert signal == pytest.approx(math.sqrt(float(bars[t])), rel=1e-9)
        assert math.hypot(signal, noise) == pytest.approx(1)
        assert WIDE.timestep_of(signal, noise) == pytest.approx(t, abs=1e-6)
    sigmas = [noise / signal for signal, noise in map(WIDE.level, (10, 10.5, 11))]
    assert sigmas[1] == pytest.approx(math.sqrt(sigmas[0] * sigmas[2]))


def test_a_zero_terminal_snr_has_no_signal():
    model = GaussianModel(MEAN, STD, prediction="v", scheduler_config={"rescale_betas_zero_snr": True})
    assert model.level(999) == (0.0, 1.0)
    for parity in (False, True):
        found = measure(model, "ddim_trailing", 40, seeds=[0], parity=parity)
        assert found.path < 0.05


def test_transport_keeps_the_marginals():
    start, end = (0.3, 0.9), (0.8, 0.6)
    x = start[0] * WIDE.mean + WIDE.spread(*start) * torch.randn(400, 4, 16, 16, dtype=torch.float64)
    there = WIDE.transport(x, start, end)
    assert torch.allclose(WIDE.transport(there, end, start), x)
    spread = (there - end[0] * WIDE.mean).flatten(2).transpose(0, 1).flatten(1).std(dim=1)
    assert torch.allclose(spread, (0.64 * STD.flatten().double() ** 2 + 0.36).sqrt(), rtol=0.02)


@pytest.mark.parametrize("parity", [False, True])
def test_it_is_a_model_like_others(parity):
    task = GaussianTask(0.5)
    result = LoopSampler(WIDE, "heun", parity=parity).sample(task, seeds=[3, 4], steps=10, batch_size=1)
    assert result.nfe == 9
    assert result.images[0].size == (16, 16)
    assert result.latents.shape == (2, 4, 16, 16)
    assert len(task.starts) == len(task.ends) == 2


# --- orders


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("ddim", {"timestep_spacing": "linspace"}, 1),
        ("euler", KARRAS, 1),
        ("heun", KARRAS, 2),
        ("dpm2", KARRAS, 2),
        ("dpmpp_2m", TO_THE_END, 2),
        ("dpmpp_2s", TO_THE_END, 2),
        ("deis", KARRAS, 2),
        ("unipc", TO_THE_END, 3),  # order 2 and a corrector
        ("unipc", {**TO_THE_END, "solver_order": 3}, 4),
        ("lms", KARRAS, 3),
    ],
)
@pytest.mark.spread(3)
def test_the_error_falls_as_the_order_says(name, options, order):
    coarse, fine = (error(SMOOTH, name, steps, options=options).path for steps in (16, 32))
    assert fine < 0.05
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.45)


@pytest.mark.parametrize(("name", "options", "order"), [
    ("ddim", {"timestep_spacing": "trailing"}, 1), ("euler", KARRAS, 1), ("heun", KARRAS, 2), ("dpmpp_2s", TO_THE_END, 2),
    ("deis", KARRAS, 2), ("unipc", TO_THE_END, 2), ("lms", KARRAS, 2),
])  # fmt: skip
@pytest.mark.spread(2)
def test_also_in_a_slice(name, options, order):
    """Multistep methods begin a slice with a step of first order, which costs the higher ones something."""
    coarse, fine = (error(SMOOTH, name, steps, options=options, strength=0.5).path for steps in (16, 32))
    assert fine < 0.02
    assert math.log2(coarse / fine) > order - 0.4


@pytest.mark.parametrize(
    "name",
    [
        "ddim",
        "ddim_trailing",
        "pndm",
        "lms",
        "euler",
        "heun",
        "dpm2",
        "dpmpp_2m",
        "dpmpp_2m_karras",
        "dpmpp_2s",
        "deis",
        "unipc",
    ],
)
@pytest.mark.parametrize("strength", [1.0, 0.35])
@pytest.mark.spread(4)
def test_on_a_point_nothing_is_lost(name, strength):
    """Straight trajectories: whatever is lost there is a level or a timestep that is wrong."""
    for steps in (7, 13):
        assert error(POINT, name, steps, strength=strength).path < 2e-6


@pytest.mark.parametrize("name", ["ddpm", "euler_a", "dpmpp_2m_sde"])
def test_schedulers_that_add_noise_keep_the_spread(name):
    options = {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True} if name == "dpmpp_2m_sde" else {}
    model = GaussianModel(MEAN, 1.5, (4, 16, 16))
    assert abs(error(model, name, 60, options=options).std) < 0.06
