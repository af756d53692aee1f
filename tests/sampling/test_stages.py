"""Stages and timelines: levels in closed form, the numbering of steps, and slicing by strength."""

from __future__ import annotations

import functools
import math

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.scheduler_kinds import of_each_kind
from support.tiny_models import text_scheduler

from research.errors import ConfigError
from research.sampling import Timeline, kept_steps
from research.solvers import SolverFactory, scheduler_names

CONFIG = dict(text_scheduler().config)
NAMES = [name for name in scheduler_names() if not name.startswith("flow")]
TRAIN = 1000


def timeline(name: str, steps: int, strength: float = 1.0, parity: bool = False, **options) -> Timeline:
    return factory(name, parity, **options)().timeline(steps, strength=strength)


@functools.cache
def factory(name: str, parity: bool, **options) -> SolverFactory:
    return SolverFactory(name, options, CONFIG, parity=parity)  # DPM2 takes a tenth of a second to construct


def alphas_cumprod() -> np.ndarray:
    """The scaled-linear schedule of Stable Diffusion, in closed form."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, TRAIN, dtype=np.float64) ** 2
    return np.cumprod(1 - betas)


@pytest.mark.parametrize("steps", [1, 4, 7, 20])
def test_ddim_levels_are_variance_preserving(steps):
    found, bars = timeline("ddim", steps), alphas_cumprod()
    expected = [(TRAIN // steps) * i + 1 for i in range(steps)][::-1]  # leading spacing, offset 1
    assert [stage.time for stage in found] == expected
    assert [int(stage.t) for stage in found] == expected
    for stage, t in zip(found, expected, strict=True):
        assert stage.signal == pytest.approx(math.sqrt(bars[t]), rel=1e-5)
        assert stage.noise == pytest.approx(math.sqrt(1 - bars[t]), rel=1e-5)
        assert stage.sigma == pytest.approx(math.sqrt((1 - bars[t]) / bars[t]), rel=1e-5)
        assert stage.log_snr == pytest.approx(math.log(bars[t] / (1 - bars[t])), abs=1e-4)
        assert stage.last_of_step


@pytest.mark.parametrize("steps", [1, 4, 7, 20])
def test_eulers_levels(steps):
    found, bars = timeline("euler", steps, timestep_spacing="linspace"), alphas_cumprod()
    times = np.linspace(0, TRAIN - 1, steps)[::-1]
    sigmas = np.interp(times, np.arange(TRAIN), np.sqrt((1 - bars) / bars))
    for stage, t, sigma in zip(found, times, sigmas, strict=True):
        assert stage.time == pytest.approx(t, abs=1e-3)
        assert stage.sigma == pytest.approx(sigma, rel=1e-4)
        assert stage.signal**2 + stage.noise**2 == pytest.approx(1.0)
        assert stage.log_snr == pytest.approx(-2 * math.log(sigma), abs=1e-3)


def test_the_log_snr_compares_scalings():
    """The same timestep is the same level, whether latents are scaled as DDIM or as Euler does."""
    for a, b in zip(timeline("ddim", 10), timeline("euler", 10, timestep_spacing="leading"), strict=True):
        assert a.time == b.time
        assert a.log_snr == pytest.approx(b.log_snr, abs=1e-3)
        assert a.sigma == pytest.approx(b.sigma, rel=1e-3)


@pytest.mark.parametrize("name", of_each_kind(NAMES))
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.spread(12)
def test_what_holds_for_all(name, steps):
    found = timeline(name, steps)
    assert [stage.index for stage in found] == list(range(len(found)))
    assert found.n_steps == found.steps_run == steps
    assert found.first_stage == 0
    numbers = [stage.step for stage in found]
    assert sorted(set(numbers)) == list(range(steps))
    assert numbers == sorted(numbers)
    last = [stage.step for stage in found if stage.last_of_step]
    assert last == list(range(steps)), "each step is complete once"
    assert all(stage.sigma > 0 and math.isfinite(stage.log_snr) for stage in found)
    sigmas = [stage.sigma for stage in found]
    assert [stage.sigma_next for stage in found] == [*sigmas[1:], 0.0]
    ends = [stage.sigma_next for stage in found if stage.last_of_step]
    assert ends == sorted(ends, reverse=True)


@pytest.mark.parametrize("name", ["heun", "dpm2", "dpm2_a", "dpmpp_sde"])
def test_second_order_steps_have_two_stages_but_for_the_last(name):
    assert [stage.step for stage in timeline(name, 4)] == [0, 0, 1, 1, 2, 2, 3]


def test_levels_within_a_heun_step():
    """It looks ahead to the level where the step ends, and the next step starts there."""
    found = timeline("heun", 3)
    levels = [stage.sigma for stage in timeline("euler", 3)]
    expected = [levels[0], levels[1], levels[1], levels[2], levels[2]]
    assert [stage.sigma for stage in found] == pytest.approx(expected, rel=1e-4)
    assert found[1].sigma_next == found[2].sigma


def test_levels_within_a_dpm2_step():
    """Its second evaluation is at the geometric mean of the levels."""
    found = timeline("dpm2", 3)
    for first, second, third in zip(found.stages[0::2], found.stages[1::2], found.stages[2::2], strict=False):
        assert second.sigma == pytest.approx(math.sqrt(first.sigma * third.sigma), rel=1e-4)


def test_pndm_without_runge_kutta_repeats_its_second_timestep():
    found = timeline("pndm", 20)
    assert len(found) == 21
    assert [stage.step for stage in found] == [0, 0, *range(1, 20)]
    assert found[1].time == found[2].time


def test_pndm_with_runge_kutta_takes_four_for_each_of_three_steps():
    found = timeline("pndm", 10, skip_prk_steps=False)
    assert [stage.step for stage in found] == [0] * 4 + [1] * 4 + [2] * 4 + list(range(3, 10))


# --- strength


def test_strength_rounding():
    assert kept_steps(100, 0.29) == 29
    assert kept_steps(100, 0.29, parity=True) == 28  # int(100 * 0.29), as the pipelines have it
    assert kept_steps(20, 0.01) == 0
    assert kept_steps(20, 0) == 0
    assert kept_steps(20, 1) == 20


@given(steps=st.integers(1, 1000), hundredths=st.integers(0, 100))
def test_hundredths_are_taken_at_their_word(steps, hundredths):
    assert kept_steps(steps, hundredths / 100) == steps * hundredths // 100
    assert kept_steps(steps, hundredths / 100, parity=True) == int(steps * (hundredths / 100))


@given(steps=st.integers(1, 1000), a=st.floats(0, 1), b=st.floats(0, 1))
def test_more_strength_never_keeps_fewer(steps, a, b):
    low, high = sorted((a, b))
    assert 0 <= kept_steps(steps, low) <= kept_steps(steps, high) <= steps


@pytest.mark.parametrize("strength", [math.nan, 1.01, -0.01, True, "0.5", None, math.inf])
def test_a_strength_that_is_none(strength):
    with pytest.raises(ConfigError, match=r"strength: found .*from 0 to 1"):
        kept_steps(10, strength)


@pytest.mark.parametrize("name", of_each_kind(NAMES))
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.spread(12)
def test_a_slice_is_the_end_of_the_full_timeline(name, strength):
    full, part = timeline(name, 10), timeline(name, 10, strength)
    kept = kept_steps(10, strength)
    assert part.steps_run == kept
    assert part.n_steps == 10
    tail = full.stages[part.first_stage :]
    own_warm_up = name == "pndm"  # an evaluation more in its slices too: tests/solvers/test_corrections.py
    if not own_warm_up:
        assert [(s.step, s.time, s.sigma, s.sigma_next) for s in part] == [
            (s.step, s.time, s.sigma, s.sigma_next) for s in tail
        ]
    if kept:
        assert part[0].index == 0
        starts = part.first_stage == 0 or full[part.first_stage - 1].last_of_step
        assert own_warm_up or starts, "starts where a step starts"


def test_timesteps_live_where_they_are_asked_for():
    assert timeline("euler", 3)[0].t.device == torch.device("cpu")
    assert timeline("euler", 3)[0].t.dim() == 0


def test_the_installed_diffusers_still_counts_as_expected():
    """Where this fails, a release changed what the numbering above is built on."""
    heun = diffusers.HeunDiscreteScheduler()
    heun.set_timesteps(5)
    assert len(heun.timesteps) == 9
    assert diffusers.PNDMScheduler().order == 1
