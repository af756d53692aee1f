"""Noise levels that are counted, laid out and checked outside parity: surplus steps, beta levels, levels that are no numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from scipy import stats
from support.scheduler_kinds import of_each_kind

from research import LoopSampler
from research.errors import ConfigError, SamplingError
from research.guidance import CFG, Interval
from research.hooks import LatentTransform
from research.solvers import SolverFactory, scheduler_names
from research.tasks import ImageToImage, TextToImage
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import measure

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"}
TRAILING = {"timestep_spacing": "trailing"}
SURPLUS = [n for n in range(1, 1001) if len(np.arange(1000, 0, -1000 / n)) > n]


def spaced(names: Any) -> list[str]:
    """Names whose class has a spacing to choose, and takes any count."""
    return [n for n in names if n not in ("lcm", "tcd") and not n.startswith("flow") and can(n)]


def can(name: str) -> bool:
    try:
        SolverFactory(name, TRAILING, SD)
    except ConfigError:
        return False
    return True


# --- trailing spacing


def test_there_are_as_many_such_counts_as_reported():
    assert len(SURPLUS) == 62
    assert SURPLUS[:5] == [61, 103, 121, 122, 201]


@pytest.mark.parametrize("name", of_each_kind(spaced(scheduler_names())))
@pytest.mark.parametrize("steps", [61, 998])
@pytest.mark.spread(3)
def test_trailing_spacing_has_the_steps_that_were_asked_for(name, steps):
    timeline = SolverFactory(name, TRAILING, SD)().timeline(steps)
    beside = SolverFactory(name, TRAILING, SD)().timeline(steps - 1)
    order = 2 if len(beside) > 1.5 * (steps - 1) else 1
    assert len(timeline) == len(beside) + order
    assert [timeline[-1].step, timeline.n_steps] == [steps - 1, steps]
    assert {stage.step for stage in timeline} == set(range(steps))
    assert min(stage.time for stage in timeline) >= 0
    assert timeline[-1].sigma_next == beside[-1].sigma_next


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm2", "dpmpp_2m", "pndm", "unipc"])
@pytest.mark.spread(4)
@pytest.mark.slow
def test_it_is_as_exact_as_with_a_step_less(name):
    model = GaussianModel(torch.tensor(0.5), torch.tensor(0.3), (1, 4, 4), "epsilon", TRAILING)
    with_surplus, without = (measure(model, name, steps, seeds=range(4)).path for steps in (61, 60))
    assert with_surplus < 1.1 * without + 1e-6


@pytest.mark.slow
def test_in_parity_the_surplus_is_a_step(sd):
    result = LoopSampler(sd, "ddim", TRAILING, parity=True).sample(TextToImage("a"), seeds=[0], steps=61)
    assert [result.nfe, result.trace["stages"][-1]["step"]] == [62, 61]
    assert any("makes 62 of 61 steps" in warning for warning in result.warnings)


@pytest.mark.slow
def test_windows_and_strength_count_the_steps(sd):
    guidance = Interval(CFG(3.0), steps=(0.6, 1.0))
    result = LoopSampler(sd, "euler", TRAILING, guidance=guidance).sample(TextToImage("a"), seeds=[0], steps=61)
    assert result.nfe_by_branch == {"cond": 61, "uncond": 61 - math.ceil(0.6 * 61)}
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    result = LoopSampler(sd, "euler", TRAILING).sample(ImageToImage("a", picture, 0.4), seeds=[0], steps=61)
    assert result.nfe == int(61 * 0.4)


# --- beta levels


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "unipc", "heun", "dpm2", "deis"])
@pytest.mark.parametrize("config", [SD, LINEAR, COSINE], ids=["sd", "linear", "cosine"])
@pytest.mark.spread(2)
def test_beta_levels_lie_at_the_quantiles_of_the_timesteps(name, config):
    steps = 20
    timeline = SolverFactory(name, {"use_beta_sigmas": True}, config)().timeline(steps)
    starts = [stage for i, stage in enumerate(timeline) if i == 0 or timeline[i - 1].last_of_step]
    bars = DDIMScheduler(**{**config, "prediction_type": "epsilon"}).alphas_cumprod.double().numpy()
    wanted = 999 * stats.beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6)
    levels = np.exp(np.interp(wanted, np.arange(1000), 0.5 * np.log((1 - bars) / bars)))
    assert [stage.sigma for stage in starts] == pytest.approx(levels.tolist(), rel=2e-3)
    # two of a multistep solver's own: it may begin below the last timestep
    assert [stage.time for stage in starts] == pytest.approx(wanted.tolist(), abs=0.6)


def test_in_parity_they_are_diffusers(sd):
    timeline = SolverFactory("euler", {"use_beta_sigmas": True}, LINEAR, parity=True)().timeline(20)
    upstream = EulerDiscreteScheduler(**LINEAR, use_beta_sigmas=True)
    upstream.set_timesteps(20)
    assert [stage.sigma for stage in timeline] == pytest.approx(upstream.sigmas[:-1].tolist(), rel=1e-5)


# --- levels that are no numbers, or stand still


class LosesALevel(DDIMScheduler):
    """Has a level that is no number."""

    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        found = super().add_noise(original_samples, noise, timesteps)
        return torch.where((timesteps == 501)[:, None], torch.full_like(found, math.nan), found)


def test_a_level_that_is_no_number_is_told_before_the_run():
    scheduler = LosesALevel(**SD, steps_offset=1)
    with pytest.raises(ConfigError, match=r"noise level of LosesALevel at step 5, t = 501, is no number"):
        SolverFactory(scheduler, None, SD)().timeline(10)


def test_a_multistep_solver_that_would_stand_still_is_refused():
    options = {"timestep_spacing": "leading", "steps_offset": 1}
    with pytest.raises(ConfigError, match=r"dpmpp_2m visits the noise level .* twice, at steps 1 and 2"):
        SolverFactory("dpmpp_2m", options, SD)().timeline(1000)
    SolverFactory("ddim", options, SD)().timeline(990)


def test_a_long_run_ends_soon_after_latents_that_are_no_numbers(sd):
    seen = []

    def spoil(x: torch.Tensor, state: Any) -> torch.Tensor:
        seen.append(state.stage.index)
        return x * math.nan if state.stage.index == 5 else x

    with pytest.raises(SamplingError, match=r"after stage 5, step 6 of 1000"):
        LoopSampler(sd, "ddim", TRAILING, hooks=[LatentTransform(spoil)]).sample(
            TextToImage("a"), seeds=[0], steps=1000
        )
    assert len(seen) < 64
