"""Grids against diffusers' own, and against the formulas of k-diffusion, ComfyUI and the papers, written anew."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st

from research import sigmas as grids
from research.errors import ConfigError
from research.sigmas.grid import smallest
from research.solvers.levels import TrainedLevels, trained_levels

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
ZERO = {**SD, "rescale_betas_zero_snr": True}
MODELS = {
    "noise": trained_levels(SD),
    "zero terminal": trained_levels(ZERO),
    "flow": trained_levels({}, flow=True),
    "shifted flow": trained_levels({"shift": 3.0}, flow=True),
}
NOISE, FLOW = MODELS["noise"], MODELS["flow"]
EVERYWHERE: dict[str, Any] = {
    "karras": grids.Karras,
    "exponential": grids.Exponential,
    "polyexponential": grids.Polyexponential,
    "edm": grids.EDM,
    "beta": grids.Beta,
    "beta over sigmas": lambda **o: grids.Beta(over="sigmas", **o),
    "normal": grids.Normal,
    "sgm_uniform": grids.SgmUniform,
    "log_snr_uniform": grids.LogSnrUniform,
    "cosine": grids.Cosine,
    "laplace": grids.Laplace,
    "linear_quadratic": grids.LinearQuadratic,
    "kl_optimal": grids.KLOptimal,
}
WHOLE: dict[str, Any] = {"simple": grids.Simple, "ddim_uniform": grids.DDIMUniform}


def sigmas(grid: Any, steps: int, trained: TrainedLevels = NOISE) -> np.ndarray:
    return np.array([level.sigma for level in grid.levels(trained, steps)])


# -- what holds for all


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(EVERYWHERE)),
    model=st.sampled_from(sorted(MODELS)),
    end=st.sampled_from(["zero", "smallest"]),
    steps=st.one_of(st.integers(1, 60), st.integers(1, 1000), st.just(1000)),
)
def test_grids_fall_from_the_largest_level_to_the_end_in_as_many_steps_as_asked(name, model, end, steps):
    trained = MODELS[model]
    levels = EVERYWHERE[name](end=end).levels(trained, steps)
    found = [level.sigma for level in levels]
    assert levels.steps == levels.n_steps == steps
    assert all(later < earlier for earlier, later in pairwise(found))
    largest = 80.0 if name == "edm" and model == "zero terminal" else trained.sigma_max
    assert found[0] == pytest.approx(largest, rel=1e-9)
    least = smallest(trained)
    if end == "zero":
        assert (found[-1], levels[-1].signal) == (0, 1)
    else:
        assert found[-1] == pytest.approx(least, rel=1e-9)
    assert all(sigma >= least * (1 - 1e-9) for sigma in found[:-1])
    times = [level.time for level in levels][:-1]
    assert all(0 <= time <= trained.n_timesteps for time in times)
    assert times == sorted(times, reverse=True)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    model=st.sampled_from(sorted(MODELS)),
    end=st.sampled_from(["zero", "smallest"]),
    steps=st.integers(1, 999),
)
def test_grids_of_whole_timesteps_fall_too(name, model, end, steps):
    levels = WHOLE[name](end=end).levels(MODELS[model], steps)
    found = [level.sigma for level in levels]
    assert levels.steps == steps
    assert all(later < earlier for earlier, later in pairwise(found))
    assert all(level.time == int(level.time) for level in levels) or model == "shifted flow"
    with pytest.raises(ConfigError, match="whole timesteps"):
        WHOLE[name](end=end).levels(MODELS[model], 1001)


# -- diffusers


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50])
@pytest.mark.parametrize(
    ("grid", "flag"),
    [
        (grids.Karras(), "use_karras_sigmas"),
        (grids.Exponential(), "use_exponential_sigmas"),
        (grids.Polyexponential(), "use_exponential_sigmas"),
        (grids.Beta(over="sigmas"), "use_beta_sigmas"),
    ],
)
def test_curves_equal_those_of_euler_in_diffusers(grid, flag, steps):
    theirs = EulerDiscreteScheduler(**SD, **{flag: True}, timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    if steps > 1:  # of one step, linspace gives timestep 0 or 999 by class
        np.testing.assert_allclose(sigmas(grid, steps), theirs.sigmas.numpy(), rtol=1e-6, atol=1e-7)
        own = [level.time for level in grid.levels(NOISE, steps)][:-1]
        np.testing.assert_allclose(own, theirs.timesteps.numpy(), atol=2e-2)


@pytest.mark.parametrize("steps", [2, 5, 24])
@pytest.mark.parametrize(
    ("grid", "flag"),
    [
        (grids.Karras(), "use_karras_sigmas"),
        (grids.Exponential(), "use_exponential_sigmas"),
        (grids.Beta(over="sigmas"), "use_beta_sigmas"),
    ],
)
def test_curves_of_flow_models_equal_those_of_flow_match_euler(grid, flag, steps):
    theirs = FlowMatchEulerDiscreteScheduler(**{flag: True})
    theirs.set_timesteps(steps)
    np.testing.assert_allclose(sigmas(grid, steps, FLOW), theirs.sigmas.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("steps", [2, 6, 25])
def test_log_snr_uniform_equals_lu_lambdas(steps):
    theirs = DPMSolverMultistepScheduler(**SD, use_lu_lambdas=True, timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    np.testing.assert_allclose(sigmas(grids.LogSnrUniform(), steps), theirs.sigmas.numpy(), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("steps", [2, 4, 10, 28])
def test_normal_equals_linspace_spacing(steps):
    theirs = EulerDiscreteScheduler(**SD, timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    levels = grids.Normal().levels(NOISE, steps)
    np.testing.assert_allclose([level.time for level in levels][:-1], theirs.timesteps.numpy(), atol=1e-4)
    # between two timesteps, k-diffusion is linear in log-sigma where diffusers is linear in sigma
    expected = np.exp(np.interp(np.linspace(999, 0, steps), np.arange(1000), np.log(NOISE.sigmas)))
    np.testing.assert_allclose([level.sigma for level in levels], [*expected, 0], rtol=1e-6)


@pytest.mark.parametrize("steps", [2, 5, 10, 20])
def test_ddim_uniform_equals_leading_spacing(steps):
    theirs = EulerDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1)
    theirs.set_timesteps(steps)
    np.testing.assert_allclose(sigmas(grids.DDIMUniform(), steps), theirs.sigmas.numpy(), rtol=1e-6)


@pytest.mark.parametrize(("model", "key"), [("sd15", "StableDiffusion"), ("sdxl", "StableDiffusionXL")])
def test_published_levels_are_those_of_diffusers(model, key):
    found = sigmas(grids.AYS(model), 10)
    np.testing.assert_allclose(found, AysSchedules[f"{key}Sigmas"], rtol=1e-4)
    # the table of timesteps is the same one
    times = [level.time for level in grids.AYS(model).levels(NOISE, 10)][:-1]
    np.testing.assert_allclose(times, AysSchedules[f"{key}Timesteps"], atol=1.5)


def test_published_levels_of_video_need_a_model_that_knows_them():
    wide = TrainedLevels(tuple(np.geomspace(0.002, 700, 1000).tolist()), 1000)
    np.testing.assert_allclose(
        sigmas(grids.AYS("svd"), 10, wide), AysSchedules["StableDiffusionVideoSigmas"], rtol=1e-6
    )
    with pytest.raises(ConfigError, match=r"begins at 700; this model knows sigmas from 0\.02917 to 14\.615"):
        grids.AYS("svd").levels(NOISE, 10)
    with pytest.raises(ConfigError, match="predicts flow"):
        grids.AYS().levels(FLOW, 10)


@pytest.mark.parametrize("steps", [2, 6, 15, 40])
def test_published_levels_between_counts_follow_the_authors_page(steps):
    table = np.log([*AysSchedules["StableDiffusionSigmas"][:-1], 0.029])
    expected = np.exp(np.interp(np.linspace(0, 10, steps + 1), np.arange(11), table))
    found = sigmas(grids.AYS(end="smallest"), steps)
    np.testing.assert_allclose(found[1:-1], expected[1:-1], rtol=1e-6)
    assert found[-1] == NOISE.sigma_min


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("steps", [2, 7, 28])
def test_flow_shift_equals_flow_match_euler(shift, steps):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    for grid, trained in (
        (grids.FlowShift(shift), FLOW),
        (grids.FlowShift(), trained_levels({"shift": shift}, flow=True)),
    ):
        np.testing.assert_allclose(sigmas(grid, steps, trained), theirs.sigmas.numpy(), rtol=2e-6)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (1024, 768)])
def test_flow_shift_by_size_equals_flux(height, width):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = calculate_shift(height // 16 * (width // 16))
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 12, 12), mu=mu)
    found = sigmas(grids.FlowShift(height=height, width=width, spacing="trailing"), 12, FLOW)
    np.testing.assert_allclose(found, theirs.sigmas.numpy(), rtol=1e-6)


def test_flow_shift_to_a_terminal_equals_ltx():
    theirs = FlowMatchEulerDiscreteScheduler(shift=2.0, shift_terminal=0.1)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 9, 9))
    found = sigmas(grids.FlowShift(2.0, spacing="trailing", terminal=0.1), 9, FLOW)
    np.testing.assert_allclose(found, theirs.sigmas.numpy(), rtol=1e-6)


def test_flow_shift_is_for_flow_models():
    with pytest.raises(ConfigError, match="predicts noise"):
        grids.FlowShift(3.0).levels(NOISE, 10)


# -- formulas


def table(model: str) -> np.ndarray:
    """Levels by place, smallest first: what ComfyUI calls sigmas of a model."""
    trained = MODELS[model]
    if not trained.flow:
        return np.array(trained.sigmas)
    time = np.arange(1, 1001) / 1000
    return trained.shift * time / (1 + (trained.shift - 1) * time)


@pytest.mark.parametrize("model", ["noise", "flow", "shifted flow"])
@pytest.mark.parametrize("steps", [1, 4, 10, 25, 50])
def test_simple_and_sgm_uniform_equal_comfyui(model, steps):
    levels = table(model)
    simple = [levels[999 - math.floor(i * 1000 / steps)] for i in range(steps)]
    np.testing.assert_allclose(sigmas(grids.Simple(), steps, MODELS[model]), [*simple, 0], rtol=1e-6)
    places = np.linspace(999, 0, steps + 1)[:-1]
    uniform = np.exp(np.interp(places, np.arange(1000), np.log(levels)))
    if model != "noise":  # times are linear there
        time = (places + 1) / 1000
        uniform = MODELS[model].shift * time / (1 + (MODELS[model].shift - 1) * time)
    np.testing.assert_allclose(sigmas(grids.SgmUniform(), steps, MODELS[model]), [*uniform, 0], rtol=1e-6)


@pytest.mark.parametrize("steps", [4, 10, 20])
def test_ddim_uniform_equals_comfyui_where_the_steps_divide(steps):
    expected = [table("noise")[1 + i * (1000 // steps)] for i in range(steps)][::-1]
    np.testing.assert_allclose(sigmas(grids.DDIMUniform(), steps), [*expected, 0], rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 6, 20, 50])
def test_beta_follows_the_quantiles_and_is_half_a_timestep_from_comfyui(steps):
    places = scipy.stats.beta.ppf(1 - np.arange(steps) / steps, 0.6, 0.6) * 999
    expected = np.exp(np.interp(places, np.arange(1000), np.log(table("noise"))))
    levels = grids.Beta().levels(NOISE, steps)
    np.testing.assert_allclose([level.sigma for level in levels], [*expected, 0], rtol=1e-6)
    assert all(abs(level.time - round(place)) <= 0.5 + 1e-9 for level, place in zip(levels, places, strict=False))


@pytest.mark.parametrize("steps", [2, 6, 30])
@pytest.mark.parametrize("rho", [0.5, 2.0])
def test_polyexponential_equals_k_diffusion(steps, rho):
    low, high = NOISE.sigma_min, NOISE.sigma_max
    ramp = np.linspace(1, 0, steps) ** rho
    expected = np.exp(ramp * (np.log(high) - np.log(low)) + np.log(low))
    np.testing.assert_allclose(sigmas(grids.Polyexponential(rho=rho), steps), [*expected, 0], rtol=1e-6)


@pytest.mark.parametrize("model", ["noise", "flow"])
@pytest.mark.parametrize("steps", [2, 6, 30])
def test_kl_optimal_is_even_in_the_arctangent(model, steps):
    angles = np.arctan(sigmas(grids.KLOptimal(), steps, MODELS[model])[:-1])
    low, high = np.arctan(table(model)[[0, -1]])
    np.testing.assert_allclose(angles, np.linspace(high, low, steps), rtol=1e-6)


@pytest.mark.parametrize("steps", [2, 6, 30])
def test_cosine_is_even_in_the_time_of_its_schedule(steps):
    signal = 1 / np.sqrt(1 + sigmas(grids.Cosine(), steps)[:-1] ** 2)
    offset = 0.008
    time = np.arccos(signal * math.cos(offset / (1 + offset) * math.pi / 2)) * 2 / math.pi * (1 + offset) - offset
    np.testing.assert_allclose(np.diff(time), np.full(steps - 1, np.diff(time).mean()), rtol=1e-6)
    np.testing.assert_allclose(sigmas(grids.Cosine(s=0.0), steps), sigmas(grids.KLOptimal(), steps), rtol=1e-6)


@pytest.mark.parametrize(("mu", "b"), [(0.0, 0.5), (-1.0, 1.0), (4.0, 0.3)])
def test_laplace_has_even_quantiles_of_the_cut_distribution(mu, b):
    logs = np.log(sigmas(grids.Laplace(mu=mu, b=b), 20)[:-1])
    upper = scipy.stats.laplace.sf(logs, mu, b)
    np.testing.assert_allclose(np.diff(upper), np.full(19, (upper[-1] - upper[0]) / 19), rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 40])
def test_linear_quadratic_follows_movie_gen(steps):
    even, threshold = steps // 2, 0.025
    flow = sigmas(grids.LinearQuadratic(), steps, FLOW)
    if even:
        np.testing.assert_allclose(1 - flow[: even + 1], np.arange(even + 1) * threshold / even, atol=1e-9)
    second = np.diff(flow[even:], 2)
    if len(second):  # one parabola to the end, which goes on with the same slope
        np.testing.assert_allclose(second, np.full(len(second), second[0]), rtol=1e-6)
        slope = flow[even] - flow[even + 1] + second[0] / 2
        np.testing.assert_allclose(slope, threshold / even, rtol=1e-6)
    np.testing.assert_allclose(sigmas(grids.LinearQuadratic(), steps), flow * NOISE.sigma_max, rtol=1e-6)


def test_edm_is_cut_to_what_the_model_knows():
    np.testing.assert_allclose(sigmas(grids.EDM(), 10), sigmas(grids.Karras(), 10))
    wide = TrainedLevels(tuple(np.geomspace(0.001, 200, 1000).tolist()), 1000)
    found = sigmas(grids.EDM(), 18, wide)
    ramp = np.arange(18) / 17
    expected = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(found, [*expected, 0], rtol=1e-6)


# -- lists and files


def test_a_list_of_sigmas_ends_at_zero_whether_it_is_said_or_not():
    said, left_out = grids.Given([14.6, 6.5, 1.0, 0]), grids.Given([14.6, 6.5, 1.0])
    assert said.steps == left_out.steps == 3
    np.testing.assert_allclose(sigmas(said, 3), [14.6, 6.5, 1.0, 0])
    np.testing.assert_allclose(sigmas(left_out, 3), [14.6, 6.5, 1.0, 0])
    kept = grids.Given([14.6, 6.5, 1.0], end="smallest")
    np.testing.assert_allclose(sigmas(kept, 2), [14.6, 6.5, 1.0])


def test_a_list_of_timesteps_has_the_levels_of_diffusers():
    theirs = EulerDiscreteScheduler(**SD)
    theirs.set_timesteps(timesteps=[999, 700, 250, 20])
    levels = grids.Given(timesteps=[999, 700, 250, 20]).levels(NOISE, 4)
    np.testing.assert_allclose([level.sigma for level in levels], theirs.sigmas.numpy(), rtol=1e-6)
    assert [level.time for level in levels][:-1] == [999, 700, 250, 20]
    flow = grids.Given(timesteps=[1000, 500]).levels(FLOW, 2)
    assert [level.sigma for level in flow] == [1.0, 0.5, 0.0]


def test_lists_come_as_tensors_and_arrays_too():
    import torch

    assert (
        grids.Given(torch.tensor([2.0, 1.0, 0.0])) == grids.Given(np.array([2.0, 1.0, 0.0])) == grids.Given([2, 1, 0])
    )


def test_a_file_holds_a_list(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("sigmas: [14.6, 3.0, 0.4, 0.0]\nmethod: by hand\n")
    np.testing.assert_allclose(sigmas(grids.File(str(file)), 3), [14.6, 3.0, 0.4, 0])
    with pytest.raises(ConfigError, match=r"steps: found 5 with .*my.yaml of 3 steps; accepted is 3"):
        grids.File(str(file)).levels(NOISE, 5)
    file.write_text("levels: 3")
    with pytest.raises(ConfigError, match="holds no levels"):
        grids.File(str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        grids.File(str(tmp_path / "none.yaml"))


# -- what is refused


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([14.6, 1.0, 2.0, 0], "level 3 of the list: found 2, which rises from 1"),
        ([14.6, 1.0, 1.0, 0], "level 3 of the list: found 1, which comes twice"),
        ([14.6, math.nan], r"sigmas.sigmas\[1\]: found nan"),
        ([14.6, -1.0], r"sigmas.sigmas\[1\]: found -1.0"),
        ([0.0], "is no step"),
        ([], "one number or more"),
        ("14", "a list of numbers"),
        ([20.0, 1.0], r"found 20, beyond what the model knows; accepted are sigmas from 0.02917 to 14.615"),
        ([14.0, 0.001], "found 0.001, beyond what the model knows"),
        ([14.0, 0.0, 0.0], "0 before the end"),
    ],
)
def test_lists_that_no_run_can_visit_are_refused(values, said):
    def walk() -> None:
        given = grids.Given(values)
        given.levels(NOISE, given.steps)

    with pytest.raises(ConfigError, match=said):
        walk()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: grids.Karras(rho=0), "sigmas.rho"),
        (lambda: grids.Karras(end="one"), "sigmas.end: found 'one'; accepted: zero, smallest"),
        (lambda: grids.Karras(sigma_min=-1), "sigmas.sigma_min"),
        (lambda: grids.Karras(sigma_max=50.0).levels(NOISE, 5), "sigmas.sigma_max: found 50; .*0.02917 to 14.615"),
        (lambda: grids.Karras(sigma_max=1.5).levels(FLOW, 5), "flow times above 0, up to 1"),
        (lambda: grids.Karras(sigma_min=2.0, sigma_max=1.0).levels(NOISE, 5), "sigmas.sigma_min: found 2"),
        (lambda: grids.Karras().levels(NOISE, 0), "steps: found 0"),
        (lambda: grids.Beta(alpha=0), "sigmas.alpha"),
        (lambda: grids.Laplace(b=0), "sigmas.b"),
        (lambda: grids.Cosine(s=-1), "sigmas.s"),
        (lambda: grids.LinearQuadratic(threshold=1), "sigmas.threshold"),
        (lambda: grids.AYS("sd3"), "sigmas.model: found 'sd3'; accepted: sd15, sdxl, svd"),
        (lambda: grids.FlowShift(height=512), "both or none"),
        (lambda: grids.FlowShift(2.0, height=512, width=512), "sigmas.shift"),
        (lambda: grids.Given(), "neither"),
        (lambda: grids.Given([1.0], [5]), "both"),
        (lambda: grids.Given(timesteps=[1200, 3]).levels(NOISE, 2), r"sigmas.timesteps\[0\]: found 1200; .*0 to 999"),
        (lambda: grids.Given([2.0, 1.0]).levels(NOISE, 5), "steps: found 5 with the list of 2 steps; accepted is 2"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(build, said):
    with pytest.raises(ConfigError, match=said):
        build()
