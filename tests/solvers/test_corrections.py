"""Upstream's faults are put right outside parity mode, kept in it, and named there. Errors against exact answers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from gaussians import POINT, WIDE, error
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import text_scheduler

from research.errors import SamplingError
from research.sampling import Guided, NoiseSource, Prediction
from research.sampling.timeline import kept_steps
from research.solvers import DiffusersSolver, SolverFactory

pytestmark = pytest.mark.spread(2)

CONFIG = dict(text_scheduler().config)
SPACINGS = ("leading", "linspace", "trailing")


def solver_of(name, parity=False, **options):
    return SolverFactory(name, options, CONFIG, parity=parity)()


def both(*args, **kwargs) -> tuple[float, float]:
    """The errors of upstream and of ours."""
    return error(*args, parity=True, **kwargs).path, error(*args, **kwargs).path


# --- DDIM: on to the next of its own timesteps (on a point, DDIM's step has no error of its own)


@pytest.mark.parametrize(
    ("spacing", "steps", "upstream"), [("linspace", 20, 1e-2), ("trailing", 13, 3e-4), ("trailing", 80, 2e-3)]
)
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_ddim_steps_to_its_own_next_timestep(spacing, steps, upstream, strength):
    theirs, ours = both(POINT, "ddim", steps, strength=strength, options={"timestep_spacing": spacing})
    assert theirs > upstream
    assert ours < 1e-6


def test_ddim_converges_on_spread_data_too():
    options = {"timestep_spacing": "linspace"}
    theirs, ours = both(WIDE, "ddim", 80, options=options)
    assert ours < theirs / 2
    assert ours < error(WIDE, "ddim", 40, options=options).path / 1.7


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_noise_of_eta_fits_the_levels_too(eta):
    options = {"timestep_spacing": "linspace", "eta": eta}
    theirs, ours = (error(POINT, "ddim", 20, options=options, parity=p).std for p in (True, False))
    assert abs(theirs) > 0.5
    assert abs(ours) < 0.06  # of 1024 numbers


@pytest.mark.parametrize("options", [{}, {"thresholding": True, "sample_max_value": 1e6}])
def test_also_where_no_table_is_used(options):
    """Thresholding with a bound that nothing meets: the scheduler's own steps."""
    options = {"timestep_spacing": "linspace", **options}
    solver = solver_of("ddim", **options)
    timeline = solver.timeline(20)
    assert isinstance(solver, DiffusersSolver) == ("thresholding" in options)
    clean, noise = torch.full((1, 4, 2, 2), 0.5), torch.ones(1, 4, 2, 2)
    for stage, following in zip(timeline, [*timeline.stages[1:], None], strict=True):
        x = stage.signal * clean + stage.noise * noise
        x = solver.step(Guided(Prediction(noise, "epsilon")), x, stage, NoiseSource([0])).x
        signal, level = (following.signal, following.noise) if following else solver.end_level
        assert torch.allclose(x, signal * clean + level * noise, atol=1e-5)


@given(
    steps=st.integers(1, 60),
    strength=st.floats(0.05, 1),
    spacing=st.sampled_from(SPACINGS),
    eta=st.sampled_from([0.0, 0.7]),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.slow
def test_any_step_of_ddim_leads_to_the_level_of_the_next(steps, strength, spacing, eta):
    solver = solver_of("ddim", timestep_spacing=spacing, eta=eta)
    timeline = solver.timeline(steps, strength=strength)
    assert len(timeline) == kept_steps(steps, strength)
    ends = [(s.signal, s.noise) for s in timeline.stages[1:]] + [solver.end_level]
    for stage, (signal, noise), update in zip(timeline, ends, solver.table.rows if timeline else (), strict=False):
        ((_, of_output),) = update.outputs or ((0, 0.0),)
        ((_, of_x),) = update.latents
        # clean latents keep the signal, and noise the level, of which eta renews a part
        assert of_x * stage.signal == pytest.approx(signal, rel=1e-4)
        left = of_x * stage.noise + of_output
        assert math.hypot(left, update.noise) == pytest.approx(noise, rel=1e-3, abs=1e-5)


class Mine(DDIMScheduler):
    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)


def test_a_step_of_somebody_elses_is_left_alone():
    scheduler = Mine.from_config(CONFIG, timestep_spacing="linspace")
    solver = SolverFactory(scheduler, None, CONFIG)()
    timeline = solver.timeline(20)
    x = torch.ones(1, 4, 2, 2)
    solver.start(NoiseSource([0]))
    # of clean latents without noise the upstream step makes another level than the next of its schedule
    clean = Prediction(torch.zeros_like(x), "epsilon")
    reached = solver.step(Guided(clean), timeline[0].signal * x, timeline[0], NoiseSource([0])).x
    assert float(reached.mean()) != pytest.approx(timeline[1].signal, rel=1e-3)


# --- PNDM


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("strength", [0.3, 0.5])
@pytest.mark.parametrize("options", [{}, {"skip_prk_steps": False}], ids=["plms", "runge-kutta"])
def test_pndm_warms_up_in_its_slice(spacing, strength, options):
    options = {"timestep_spacing": spacing, **options}
    assert error(POINT, "pndm", 20, strength=strength, options=options).path < 1e-6
    ours = error(WIDE, "pndm", 20, strength=strength, options=options).path
    assert ours < 0.02
    if not options.get("skip_prk_steps", True):
        return  # upstream's slice begins in the middle of a Runge-Kutta step
    theirs, _ = both(WIDE, "pndm", 20, strength=strength, options=options)
    assert ours < theirs / 2


@pytest.mark.parametrize(("kept", "evaluations"), [(1, 1), (2, 3), (5, 6)])
def test_a_slice_of_pndm_counts_as_a_whole_run_does(kept, evaluations):
    timeline = solver_of("pndm").timeline(10, strength=kept / 10)
    assert len(timeline) == evaluations
    assert timeline.steps_run == kept
    assert timeline[0].step == 10 - kept
    times = [s.time for s in timeline]
    assert times == ([times[0], times[1], *times[1:2], *times[3:]] if kept > 1 else times)
    assert [s.last_of_step for s in timeline] == [i > 0 or kept == 1 for i in range(evaluations)]


@pytest.mark.parametrize("kept", [1, 2, 3, 4, 10])
def test_runge_kutta_needs_four_steps(kept):
    timeline = solver_of("pndm", skip_prk_steps=False).timeline(10, strength=kept / 10)
    assert len(timeline) == {1: 1, 2: 3, 3: 4, 4: 13, 10: 19}[kept]
    assert timeline.steps_run == kept


# --- LMS, and rounded timesteps


@pytest.mark.parametrize(("steps", "strength", "factor"), [(50, 0.1, 20), (20, 0.3, 10), (40, 0.5, 10)])
@pytest.mark.spread(1)
def test_lms_takes_no_more_history_than_it_has(steps, strength, factor):
    theirs, ours = both(WIDE, "lms", steps, strength=strength)
    assert ours < theirs / factor
    assert ours < 0.02


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2s", "deis", "unipc"])
@pytest.mark.parametrize("sigmas", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_the_model_is_told_the_timestep_of_the_level(name, sigmas):
    theirs, ours = both(
        POINT, name, 10, options={sigmas: True, "final_sigmas_type": "sigma_min"} if name != "deis" else {sigmas: True}
    )
    assert theirs > 1e-4
    assert ours < 1e-6


@pytest.mark.parametrize("name", ["dpmpp_2m", "euler", "heun", "unipc"])
def test_cosine_betas_and_karras_sigmas_work(name):
    config = {**CONFIG, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"}
    solver = SolverFactory(name, {"use_karras_sigmas": True}, config)()
    for strength in (1.0, 0.4):
        timeline = solver.timeline(25, strength=strength)
        starts = [s for s in timeline if s.index == 0 or timeline[s.index - 1].last_of_step]
        assert len(starts) == kept_steps(25, strength)
        times, sigmas = [s.time for s in starts], [s.sigma for s in starts]
        assert sigmas == sorted(sigmas, reverse=True)
        assert len(set(sigmas)) == len(sigmas)
        assert times == sorted(times, reverse=True)


# --- what parity says


@pytest.mark.parametrize(
    ("name", "options", "steps", "strength", "word"),
    [
        ("ddim", {"timestep_spacing": "linspace"}, 20, 1.0, "12633"),
        ("ddim_trailing", {}, 13, 1.0, "12633"),
        ("pndm", {}, 20, 0.5, "warm-up"),
        ("pndm", {"timestep_spacing": "linspace"}, 20, 1.0, "next one of its schedule"),
        ("lms", {}, 20, 0.5, "5630"),
        ("dpmpp_2m_karras", {}, 20, 1.0, "rounded"),
    ],
)
def test_parity_names_the_fault_that_it_keeps(name, options, steps, strength, word):
    solver = solver_of(name, parity=True, **options)
    solver.timeline(steps, strength=strength)
    assert len(solver.notes) == 1
    assert word in solver.notes[0]
    native = solver_of(name, **options)
    native.timeline(steps, strength=strength)
    assert not native.notes


@pytest.mark.parametrize("name", ["ddim", "pndm", "lms", "euler", "heun", "dpm2", "dpmpp_2m", "unipc", "deis", "ddpm"])
def test_nothing_is_said_where_nothing_is_wrong(name):
    solver = solver_of(name, parity=True)
    solver.timeline(20)
    assert not solver.notes


# --- on the whole


def test_the_third_order_survives_a_last_step_of_no_length():
    options = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "solver_order": 3}
    with pytest.raises(SamplingError, match="not finite"):
        error(WIDE, "dpmpp_2m", 20, options=options, parity=True)
    assert error(WIDE, "dpmpp_2m", 20, options=options).path < 0.01


@pytest.mark.parametrize("name", ["ddim", "pndm", "lms"])
def test_a_solver_can_make_another_timeline(name):
    """What was changed for the first does not reach into the second."""
    again, fresh = solver_of(name, timestep_spacing="linspace"), solver_of(name, timestep_spacing="linspace")
    again.timeline(20, strength=0.4)
    first, second = again.timeline(7, strength=0.9), fresh.timeline(7, strength=0.9)
    assert [(s.time, s.sigma, s.step) for s in first] == [(s.time, s.sigma, s.step) for s in second]
    assert again.table == fresh.table
