"""What a solver offers tasks: whether it is deterministic, the pipelines' slices, and noise added to pictures."""

from __future__ import annotations

import diffusers
import pytest
import torch
from support.scheduler_kinds import OWN, of_each_kind, upstream_names
from support.tiny_models import text_scheduler

from research.errors import ConfigError
from research.sampling import Guided, NoiseSource, Prediction
from research.solvers import SolverFactory, ddim_step, resolve

CONFIG = dict(text_scheduler().config)
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
STOCHASTIC = {
    "ddpm", "dpm2_a", "dpmpp_2m_sde", "dpmpp_2s_a", "dpmpp_3m_sde", "dpmpp_sde", "er_sde", "euler_a", "lcm", "restart",
    "sa_solver", "seeds_2", "seeds_3", "tcd",
}  # fmt: skip
NAMES = [name for name in upstream_names() if name != "tcd"]  # pipelines set its eta to 0


def solver_of(name: str, parity: bool = False, **options):
    return SolverFactory(name, options, FLOW if name.startswith("flow") else CONFIG, parity=parity)()


def unused(name: str, **options):
    spec = resolve(name)
    config = FLOW if name.startswith("flow") else CONFIG
    return getattr(diffusers, spec.class_name).from_config(config, **{**spec.options, **options})


def normal(seed: int, n: int = 2) -> torch.Tensor:
    return torch.randn((n, 4, 3, 5), generator=torch.Generator().manual_seed(seed))


@pytest.mark.spread(10)
@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("name", of_each_kind(NAMES))
def test_whether_steps_add_noise(name, parity):
    assert ("deterministic" in solver_of(name, parity).supports) == (name not in STOCHASTIC)


@pytest.mark.parametrize("name", sorted(OWN))
def test_which_of_the_project_add_noise(name):
    assert ("deterministic" in solver_of(name).supports) == (name not in STOCHASTIC)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("ddim", {"eta": 0.0}, True),
        ("ddim", {"eta": 0.01}, False),
        ("euler", {"s_churn": 0.0}, True),
        ("euler", {"s_churn": 1.0}, False),
        ("dpmpp_2m", {"algorithm_type": "sde-dpmsolver++"}, False),
        ("dpmpp_sde", {"noise_sampler_seed": 3}, False),
        ("TCDScheduler", {}, False),  # its own eta is 0.3
        ("TCDScheduler", {"eta": 0.0}, True),
        ("IPNDMScheduler", {}, True),
        ("SASolverScheduler", {}, False),
    ],
)
def test_options_decide_it_too(name, options, expected):
    before = torch.get_rng_state()
    assert ("deterministic" in solver_of(name, **options).supports) == expected
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.spread(20)
@pytest.mark.parametrize("name", of_each_kind(n for n in NAMES if not n.startswith("flow")))
@pytest.mark.parametrize(("steps", "strength"), [(10, 0.3), (10, 0.99), (7, 1.0), (100, 0.29), (4, 0.1)])
def test_parity_slices_as_the_pipelines_do(name, steps, strength):
    scheduler = unused(name)
    if name == "lcm" and steps == 100:
        pytest.skip("more than it can make")
    scheduler.set_timesteps(steps)
    begin = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
    begin = min(begin, len(scheduler.timesteps))  # Heun has one stage fewer
    expected = scheduler.timesteps[begin:]
    solver = solver_of(name, parity=True)
    timeline = solver.timeline(steps, strength=strength, by_strength=True)
    assert [stage.time for stage in timeline] == expected.tolist()
    if hasattr(scheduler, "set_begin_index"):
        assert solver.scheduler.begin_index == begin


def test_text_to_image_pipelines_do_not_say_where_they_begin():
    solver = solver_of("euler", parity=True)
    solver.timeline(5)
    assert solver.scheduler.begin_index is None


@pytest.mark.parametrize("name", of_each_kind(NAMES))
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_noise_is_added_as_the_pipelines_do(name, strength):
    """Before the first step and, as inpainting has it, after each: equal bit for bit."""
    if name == "dpmpp_sde":
        pytest.skip("its steps are covered with a seed of its own below")
    _compare_noise(name, strength)


def test_noise_is_added_as_the_pipelines_do_with_brownian_trees():
    _compare_noise("dpmpp_sde", 0.6, noise_sampler_seed=4)


def _compare_noise(name, strength, **options):
    steps = 6
    scheduler, solver = unused(name, **options), solver_of(name, parity=True, **options)
    timeline = solver.timeline(steps, strength=strength, by_strength=True)
    scheduler.set_timesteps(steps)
    begin = (steps - int(steps * strength)) * scheduler.order
    times = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    kwargs = {"generator": NoiseSource([1, 2], parity=True).generators("step")} if solver._takes_generator else {}
    noise = NoiseSource([1, 2], parity=True)
    solver.start(noise)

    def upstream(clean, drawn, t):
        if hasattr(scheduler, "add_noise"):
            return scheduler.add_noise(clean, drawn, t)
        return scheduler.scale_noise(clean, t, drawn)

    clean, drawn = normal(1), normal(2)
    theirs = upstream(clean, drawn, times[:1].repeat(2))
    ours = solver.add_noise(clean, drawn, timeline[0])
    assert torch.equal(ours, theirs)
    for i, (stage, t) in enumerate(zip(timeline, times, strict=True)):
        output = normal(10 + i)
        if hasattr(scheduler, "scale_model_input"):
            assert torch.equal(solver.scale_input(ours, stage), scheduler.scale_model_input(theirs, t))
        theirs = scheduler.step(output, t, theirs, return_dict=False, **kwargs)[0]
        ours = solver.step(Guided(Prediction(output, solver.kind)), ours, stage, noise).x
        assert torch.equal(ours, theirs)
        following = timeline[i + 1] if i + 1 < len(timeline) else None
        known = clean if following is None else upstream(clean, drawn, torch.tensor([times[i + 1]]))
        assert torch.equal(solver.add_noise(clean, drawn, following), known)


@pytest.mark.parametrize("name", of_each_kind(NAMES))
def test_natively_noise_is_added_to_the_level_of_the_stage(name):
    solver = solver_of(name)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 2e-3)):
        clean, drawn = normal(1).to(dtype), normal(2).to(dtype)
        for stage in solver.timeline(5, strength=0.6):
            found = solver.add_noise(clean, drawn, stage)
            expected = stage.signal * clean.double() + stage.noise * drawn.double()
            assert found.dtype == dtype
            assert float((found - expected).norm() / expected.norm()) < tolerance
        assert solver.add_noise(clean, drawn, None) is clean


def test_a_scheduler_without_noise_levels_cannot_start_from_a_picture():
    for parity in (False, True):
        solver = solver_of("IPNDMScheduler", parity=parity)
        stage = solver.timeline(5)[0]
        with pytest.raises(ConfigError, match="IPNDMScheduler cannot start from a picture"):
            solver.add_noise(normal(1), normal(2), stage)


@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_the_closed_form_step_is_ddims(kind):
    options = {"prediction_type": "v_prediction"} if kind == "v" else {}
    solver = solver_of("ddim", **options)
    timeline = solver.timeline(10)
    x, output = normal(1), normal(2)
    first, second = timeline[0], timeline[1]
    found = ddim_step(x, Prediction(output, kind), first, second.signal, second.noise)
    stepped = solver.step(Guided(Prediction(output, kind)), x, first, NoiseSource([1, 2])).x
    assert torch.allclose(found, stepped, rtol=1e-4, atol=1e-5)
    clean = ddim_step(x, Prediction(output, kind), first, 1.0, 0.0)
    there = first.signal * clean + first.noise * normal(3)
    assert torch.isfinite(there).all()


# --- steps without memory

FORGETFUL = {"tcd", "ddpm", "ddim", "ddim_trailing", "euler", "euler_a", "lcm", "flow_euler"}


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("name", of_each_kind(NAMES))
def test_which_forget_their_past(name, parity):
    supports = solver_of(name, parity).supports
    assert ("first-order" in supports) == (name in FORGETFUL)
    assert ("revisits" in supports) == (name in FORGETFUL and not parity)
    assert "noise-levels" in supports


@pytest.mark.parametrize("name", of_each_kind(NAMES))
def test_which_go_along_a_noise_of_the_guidances_own(name):
    kinds = FORGETFUL | {"dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2s_a"}
    assert ("renoise" in solver_of(name).supports) == (name in kinds)
    assert ("renoise" in solver_of(name, parity=True).supports) == (name in FORGETFUL)


@pytest.mark.parametrize("name", sorted(OWN))
def test_which_of_the_project_do(name):
    assert ("renoise" in solver_of(name).supports) == (name == "dpmpp_2s_a")


def test_memory_is_a_matter_of_options_too():
    assert "first-order" in solver_of("dpmpp_2m", solver_order=1).supports
    assert "noise-levels" not in solver_of("IPNDMScheduler").supports


@pytest.mark.parametrize("name", of_each_kind(sorted(FORGETFUL)))
def test_a_step_may_be_taken_again(name):
    """In any order and with other steps between, a stage does what it does in its turn."""
    x, output = normal(0), normal(1)

    def steps(order):
        solver = solver_of(name)
        timeline = solver.timeline(6, device=torch.device("cpu"))
        found = {}
        for index in order:
            stage = timeline[index]
            solver.start(noise := NoiseSource([0, 1]))  # its own noise each time
            solver.scale_input(x, stage)
            guided = Guided(Prediction(output, solver.kind))
            found.setdefault(index, []).append(solver.step(guided, x, stage, noise).x)
        return found

    once, again = steps(range(6)), steps([0, 1, 2, 1, 2, 3, 4, 0, 5])
    for index, [right] in once.items():
        for found in again[index]:
            torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("name", of_each_kind(sorted(FORGETFUL)))
def test_a_step_along_the_same_noise_is_the_step(name, parity):
    x, output = normal(0), normal(1)
    found = []
    for renoise in (False, True):
        solver = solver_of(name, parity)
        stage = solver.timeline(6, device=torch.device("cpu"))[0]
        solver.start(noise := NoiseSource([0, 1]))
        prediction = Prediction(output, solver.kind)
        solver.scale_input(x, stage)
        found.append(solver.step(Guided(prediction, prediction if renoise else None), x, stage, noise).x)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])
def test_a_step_along_another_noise_is_ddims(parity, kind):
    """x0 of one prediction and the noise of another, at the level the step leads to (arXiv:2010.02502, eq. 12)."""
    x, clean, epsilon = normal(0), normal(1), normal(2)
    solver = solver_of("ddim", parity)
    timeline = solver.timeline(8, device=torch.device("cpu"))
    stage, after = timeline[2], timeline[3]
    from research.sampling import convert

    guided = Guided(
        convert(Prediction(clean, "x0"), kind, x, stage), convert(Prediction(epsilon, "epsilon"), kind, x, stage)
    )
    found = solver.step(guided, x, stage, NoiseSource([0, 1])).x
    torch.testing.assert_close(found, after.signal * clean + after.noise * epsilon, rtol=1e-4, atol=1e-4)
