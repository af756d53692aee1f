"""Native solvers give what the classes that they stand for give, and stand for them only where they do."""

from __future__ import annotations

import copy
import functools
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scheduler_kinds import of_each_kind
from support.tiny_models import text_scheduler

from research import Hook, LoopSampler
from research.errors import SamplingError
from research.guidance import CFG
from research.sampling import Guided, NoiseSource, Prediction
from research.sampling.noise import STEP
from research.solvers import DiffusersSolver, SolverFactory, resolve
from research.solvers.native.counterparts import COUNTERPARTS
from research.solvers.native_solver import NativeSolver
from research.tasks import TextToImage

pytestmark = pytest.mark.spread(2)

CONFIG = dict(text_scheduler().config)
V_CONFIG = dict(text_scheduler("v_prediction").config)
DETERMINISTIC = [
    "ddim", "ddim_trailing", "deis", "dpm2", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2s", "euler", "heun", "lms", "pndm", "unipc",
]  # fmt: skip
STOCHASTIC = ["ddpm", "dpm2_a", "dpmpp_2m_sde", "euler_a", "lcm", "sa_solver"]
CORRECTED = ("unipc", "sa_solver")  # a corrector meets latents that were changed since

SHAPE = (4, 3, 5)
TOLERANCE = 1e-4


@functools.cache
def _factory(name: str, v: bool, options: tuple) -> SolverFactory:
    return SolverFactory(name, dict(options), V_CONFIG if v else CONFIG)


def fresh(name: str, steps: int, strength: float = 1.0, v: bool = False, **options: Any):
    """A solver ready for its first step, and its timeline."""
    solver = _factory(name, v, tuple(options.items()))()
    return solver, solver.timeline(steps, strength=strength)


def own_steps(name: str, steps: int, strength: float = 1.0, v: bool = False, **options: Any):
    """The diffusers scheduler itself, set up as a pipeline would, and its timesteps."""
    scheduler = copy.deepcopy(_unused(name, v, tuple(options.items())))
    scheduler.set_timesteps(steps)
    if name == "dpm2_a":
        in_full_precision(scheduler)
    _, timeline = fresh(name, steps, strength, v, **options)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(timeline.first_stage)
    return scheduler, scheduler.timesteps[timeline.first_stage :]


def in_full_precision(scheduler: Any) -> None:
    """The lower levels of a ``KDPM2AncestralDiscreteScheduler`` by its own formulas in float64.

    It has them in fp32 as a root of a difference, which keeps three digits where a step leads across most levels.
    """
    above = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2]]).double()
    below = above.roll(-1)
    below[-1] = 0.0
    up = (below**2 * (above**2 - below**2) / above**2) ** 0.5
    down = (below**2 - up**2) ** 0.5
    down[-1] = 0.0
    between = above.log().lerp(down.log(), 0.5).exp()
    between[-2:] = 0.0
    for key, values in (("sigmas_interpol", between), ("sigmas_down", down), ("sigmas_up", up)):
        table = torch.cat([values[:1], values[1:].repeat_interleave(2), values[-1:]]).float()
        found = getattr(scheduler, key)
        assert found.shape == table.shape
        assert torch.allclose(found.nan_to_num(), table.nan_to_num(), atol=1e-3)
        setattr(scheduler, key, table)


@functools.cache
def _unused(name: str, v: bool, options: tuple):
    spec = resolve(name)
    cls = getattr(diffusers, spec.class_name)
    return cls.from_config(V_CONFIG if v else CONFIG, **{**spec.options, **dict(options)})


def normal(seed: int, n: int = 2) -> torch.Tensor:
    return torch.randn((n, *SHAPE), generator=torch.Generator().manual_seed(seed))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def compare(name, steps, strength=1.0, *, v=False, disturb=False, seeds=(1, 2), step_kwargs=None, **options):
    """Drive both with the same outputs; latents may be changed from outside between steps.

    Some classes have latents whose signal is 1: these are native ones over the signal.
    """
    solver, timeline = fresh(name, steps, strength, v, **options)
    scheduler, times = own_steps(
        name, steps, strength, v, **{k: o for k, o in options.items() if k not in (step_kwargs or {})}
    )
    noise = NoiseSource(seeds)
    solver.start(noise)
    kwargs = dict(step_kwargs or {})
    if name in STOCHASTIC or "eta" in kwargs:
        kwargs["generator"] = NoiseSource(seeds).generators(STEP)
    exploding = isinstance(solver, NativeSolver) and float(scheduler.init_noise_sigma) != 1.0
    if strength == 1:
        start = normal(99) * float(scheduler.init_noise_sigma) * (timeline[0].signal if exploding else 1.0)
        assert distance(solver.scale_noise(normal(99)), start) < 1e-6
    ours = normal(99)
    for stage, t in zip(timeline, times, strict=True):
        factor = 1.0 / stage.signal if exploding else 1.0
        if stage.index == 0:
            theirs = ours * factor
        if disturb:
            change = 0.3 * normal(1000 + stage.index)
            ours, theirs = ours.flip(-1) + change, theirs.flip(-1) + change * factor
        scaled = scheduler.scale_model_input(theirs, t)
        assert distance(solver.scale_input(ours, stage), scaled) < TOLERANCE
        output = normal(stage.index) + 0.1 * scaled
        ours = solver.step(Guided(Prediction(output, solver.kind)), ours, stage, noise).x
        theirs = scheduler.step(output, t, theirs, return_dict=False, **kwargs)[0]
        last = stage.index + 1 == len(timeline)
        assert distance(ours, theirs * (1.0 if last or not exploding else timeline[stage.index + 1].signal)) < TOLERANCE
    return solver


def test_every_counterpart_has_a_name():
    classes = {
        resolve(name).class_name for name in (*DETERMINISTIC, *STOCHASTIC, "dpmpp_sde", "flow_euler", "flow_heun")
    }
    assert {*classes, "TCDScheduler", "SCMScheduler"} == set(COUNTERPARTS)


# a combination of v predictions at several levels is no combination of noises: PNDM's class errs, see test_corrections.py
@pytest.mark.parametrize("name", of_each_kind(DETERMINISTIC + STOCHASTIC))
@pytest.mark.parametrize("v", [False, True], ids=["epsilon", "v"])
@pytest.mark.spread(8)
def test_it_gives_what_the_class_gives(name, v):
    for steps in (1, 2, 5, 20):
        if not (v and name == "pndm"):
            assert isinstance(compare(name, steps, v=v), NativeSolver)


@pytest.mark.parametrize("name", of_each_kind(DETERMINISTIC + STOCHASTIC))
def test_also_where_latents_are_changed_between_steps(name):
    compare(name, 8, disturb=name not in CORRECTED)


# upstream's slices of LMS and PNDM are wrong: test_corrections.py; groups of DPM++ 2S begin with the slice, those of its class
# with the full schedule, so that they agree where a slice begins with a group
@pytest.mark.parametrize("name", of_each_kind(sorted({*DETERMINISTIC, *STOCHASTIC} - {"lms", "pndm"})))
def test_also_for_a_slice_by_strength(name):
    by_groups = name == "dpmpp_2s"
    compare(name, 10, 0.6 if by_groups else 0.5)
    compare(name, 10, 0.4 if by_groups else 0.3, disturb=name not in CORRECTED)


@given(
    name=st.sampled_from(sorted({*DETERMINISTIC, "ddpm", "euler_a"} - {"ddim_trailing"})),
    steps=st.integers(1, 30),
    v=st.booleans(),
    disturb=st.booleans(),
)
@settings(max_examples=25, deadline=None)
@pytest.mark.slow
def test_any_number_of_steps(name, steps, v, disturb):
    compare(name, steps, v=v and name != "pndm", disturb=disturb and name != "unipc")


@pytest.mark.parametrize("eta", [0.2, 1.0])
def test_eta_of_ddim(eta):
    solver = compare("ddim", 7, eta=eta, step_kwargs={"eta": eta})
    assert isinstance(solver, NativeSolver)
    assert solver.table.rows[0].noise > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpmpp_2m", {"solver_order": 3}),
        ("dpmpp_2m", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        ("dpmpp_2m", {"solver_type": "heun"}),
        ("dpmpp_3m", {"use_karras_sigmas": True}),
        ("sa_solver", {"predictor_order": 3, "corrector_order": 4}),
        ("sa_solver", {"predictor_order": 1, "corrector_order": 3, "lower_order_final": False}),
        ("dpmpp_2s", {"solver_order": 3}),
        ("dpmpp_2s", {"solver_order": 3, "solver_type": "heun", "lower_order_final": True}),
        ("dpmpp_2m", {"use_karras_sigmas": True, "euler_at_final": True}),
        ("unipc", {"solver_order": 3}),
        (
            "unipc",
            {"solver_order": 3, "solver_type": "bh1", "disable_corrector": (1,), "final_sigmas_type": "sigma_min"},
        ),
        ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
        ("deis", {"solver_order": 3}),
        ("pndm", {"skip_prk_steps": False}),  # in 10 steps, which are even: see `PNDM`
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
        ("euler", {"use_karras_sigmas": True}),
        # the class adds noise in its last step where that is above timestep 0
        ("ddpm", {"variance_type": "fixed_large", "steps_offset": 0}),
        ("lms", {"use_karras_sigmas": True}),
    ],
)
@pytest.mark.spread(6)
def test_options_reach_the_solver(name, options):
    v = "rescale_betas_zero_snr" in options
    compare(name, 10 if name == "pndm" else 8, v=v, disturb=name not in CORRECTED, **options)


@pytest.mark.parametrize("v", [False, True], ids=["epsilon", "v"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"predictor_order": 3, "corrector_order": 4},
        {"predictor_order": 1, "corrector_order": 3, "lower_order_final": False},
        {"predictor_order": 2, "corrector_order": 1, "use_karras_sigmas": True},
    ],
)
def test_sa_solver_is_its_class_in_float64(monkeypatch, options, v):
    """The class computes its weights in the precision of its levels; in fp32 their differences cancel."""
    for steps in (5, 50):
        source = NoiseSource((1, 2))
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_sasolver.randn_tensor",
            lambda shape, generator=None, device=None, dtype=None, source=source: source.draw(STEP, shape[1:], dtype),
        )
        solver, timeline = fresh("sa_solver", steps, v=v, **options)
        scheduler, times = own_steps("sa_solver", steps, v=v, **options)
        scheduler.sigmas = scheduler.sigmas.double()
        solver.start(noise := NoiseSource((1, 2)))
        ours = theirs = normal(99).double() * float(scheduler.init_noise_sigma)
        for stage, t in zip(timeline, times, strict=True):
            output = normal(stage.index).double() + 0.1 * theirs
            ours = solver.step(Guided(Prediction(output, solver.kind)), ours, stage, noise).x
            theirs = scheduler.step(output, t, theirs, return_dict=False)[0]
            assert distance(ours, theirs) < 1e-9


# --- where it stands for the class, and where not


@pytest.mark.parametrize("name", ["ddpm", "heun", "lcm"])
@pytest.mark.parametrize("limit", [None, 20.0])
@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.spread(6)
def test_clipping_is_its_own(name, limit, strength):
    """Also where the range is wide and the noise level low, so that few samples are ever clipped."""
    options = {"clip_sample": True, **({"clip_sample_range": limit} if limit else {})}
    assert isinstance(compare(name, 10, strength, disturb=True, **options), NativeSolver)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "lcm", "dpmpp_2m", "unipc", "deis", "dpmpp_2s"])
def test_thresholding_is_left_to_the_class(name):
    assert isinstance(compare(name, 6, disturb=True, thresholding=True), DiffusersSolver)


def test_clipped_ddim_goes_along_the_clipped_noise():
    """As solvers of the clipped ODE do; its class goes along that of the prediction that was not clipped, for whoever asks."""
    more = {"use_clipped_model_output": True}
    assert isinstance(compare("ddim", 8, clip_sample=True, step_kwargs=more, **more), NativeSolver)
    assert isinstance(fresh("ddim", 8, clip_sample=True)[0], NativeSolver)
    less = {"use_clipped_model_output": False}
    assert isinstance(compare("ddim", 8, clip_sample=True, step_kwargs=less, **less), DiffusersSolver)


def test_what_hooks_changed_is_not_undone_by_the_corrector(sd):
    """UniPC's class begins its correction at latents of the step before, and so drops what was done to those since."""

    class Change(Hook):
        def pre_step(self, state):
            if state.stage.index == 2:
                state.x = state.x + 100.0

    found = [
        LoopSampler(sd, "unipc", hooks=hooks).sample(TextToImage("a"), seeds=[0], steps=4).latents.mean()
        for hooks in ([], [Change()])
    ]
    assert found[1] - found[0] > 10


@pytest.mark.parametrize("steps", [400, 900])
@pytest.mark.parametrize("name", ["unipc", "ddim"])
def test_any_number_of_steps_has_a_table(name, steps):
    solver, timeline = fresh(name, steps)
    assert isinstance(solver, NativeSolver)
    assert len(timeline) == len(solver.table.rows) == steps
    assert solver.table.depth <= 3


def test_a_brownian_path_does_not_depend_on_the_batch(sd):
    def made(*seeds):
        sampler = LoopSampler(sd, "dpmpp_sde", guidance=CFG(2.0))
        return sampler.sample(TextToImage("a"), seeds=list(seeds), steps=4).latents

    assert torch.allclose(made(3, 5)[1:], made(5), atol=1e-5)


def test_a_class_defined_again_under_the_same_name_is_another():
    """As in a notebook: the second definition must not get the table of the first."""

    def define(factor: float) -> type:
        class Mine(DDIMScheduler):
            def step(self, model_output, timestep, sample, return_dict=True, **kwargs):
                out = super().step(model_output, timestep, sample, return_dict=False)
                return (factor * out[0], *out[1:])

        return Mine

    results = []
    for factor in (1.0, 0.5):
        solver = SolverFactory(define(factor).from_config(CONFIG), None, CONFIG)()
        (stage,) = solver.timeline(1)
        guided = Guided(Prediction(normal(0), "epsilon"))
        results.append(solver.step(guided, normal(1), stage, NoiseSource([0, 1])).x)
    assert torch.allclose(results[1], 0.5 * results[0], rtol=1e-5)


# --- in the loop


# natively the model is told the timesteps of Karras's noise levels and not rounded ones: test_corrections.py
@pytest.mark.parametrize("name", of_each_kind(sorted({*DETERMINISTIC} - {"dpmpp_2m_karras"})))
@pytest.mark.parametrize("kind", ["sd", "sd_v"])
@pytest.mark.spread(3)
def test_native_agrees_with_parity(request, name, kind):
    if (name, kind) == ("pndm", "sd_v"):
        return
    model = request.getfixturevalue(kind)
    found, reference = (
        LoopSampler(model, scheduler=name, guidance=CFG(3.0), parity=parity).sample(
            TextToImage("a cat", "dog"), seeds=[1, 2], steps=8
        )
        for parity in (False, True)
    )
    assert distance(found.latents, reference.latents) < TOLERANCE
    assert found.nfe == reference.nfe


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "pndm", "lms"])
def test_hooks_that_change_latents_meet_the_same_scheduler(sd, name):
    """A loop by hand around the diffusers scheduler, with latents changed before and after its steps."""
    model, seed, steps = sd, 5, 5
    scheduler = getattr(diffusers, resolve(name).class_name).from_config(
        model.scheduler_config, **resolve(name).options
    )
    scheduler.set_timesteps(steps)
    embeds = model.text.encode(["a cat"])
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        x = x.flip(-1) if i % 2 else x
        with torch.no_grad():
            output = model.unet(scheduler.scale_model_input(x, t), t, encoder_hidden_states=embeds).sample
        x = 0.9 * scheduler.step(output, t, x).prev_sample

    class Change(Hook):
        def pre_step(self, state):
            if state.stage.index % 2:
                state.x = state.x.flip(-1)

        def post_step(self, state):
            state.x = 0.9 * state.x

    found = LoopSampler(model, scheduler=name, hooks=[Change()]).sample(TextToImage("a cat"), seeds=[seed], steps=steps)
    assert distance(found.latents, x) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "unipc", "euler_a"])
def test_half_precision_sums_in_full(name, dtype):
    """One step from half-precision latents is as near to the full one as rounding them allows."""
    results = []
    for d in (torch.float32, dtype):
        solver, timeline = fresh(name, 10)
        noise, x = NoiseSource([1, 2]), normal(1).to(d)
        solver.start(noise)
        for stage in timeline:
            guided = Guided(Prediction(normal(stage.index).to(d), "epsilon"))
            x = solver.step(guided, x, stage, noise).x
        assert x.dtype == d
        results.append(x.float())
    assert distance(results[1], results[0]) < 20 * torch.finfo(dtype).eps


# --- a scheduler of one's own


class MixesPixels(DDIMScheduler):
    """Linear, but not pixel by pixel."""

    def step(self, model_output, timestep, sample, return_dict=True, **more):
        new, x0 = super().step(model_output, timestep, sample, return_dict=False)
        return 0.5 * (new + new.roll(1, -1)), x0


class WeighsChannels(DDIMScheduler):
    def step(self, model_output, timestep, sample, return_dict=True, **more):
        new, x0 = super().step(model_output, timestep, sample, return_dict=False)
        return new * torch.linspace(0.9, 1, sample.shape[1]).reshape(1, -1, 1, 1), x0


class MeansOverTheBatch(DDIMScheduler):
    def step(self, model_output, timestep, sample, return_dict=True, **more):
        new, x0 = super().step(model_output, timestep, sample, return_dict=False)
        return new - 0.1 * new.mean(dim=0, keepdim=True), x0


class ChangesTheInput(DDIMScheduler):
    def scale_model_input(self, sample, timestep=None):
        return sample.flip(-1)


class OnlyRenamed(DDIMScheduler):
    pass


@pytest.mark.parametrize("cls", [MixesPixels, WeighsChannels, MeansOverTheBatch, ChangesTheInput, OnlyRenamed])
def test_the_code_of_a_class_of_ones_own_is_run(sd, cls):
    config = sd.scheduler_config
    ours = LoopSampler(sd, cls.from_config(config), guidance=CFG(2.0))
    mine = ours.sample(TextToImage("a"), seeds=[0, 1], steps=4).latents
    upstream = LoopSampler(sd, cls.from_config(config), guidance=CFG(2.0), parity=True)
    assert torch.allclose(mine, upstream.sample(TextToImage("a"), seeds=[0, 1], steps=4).latents, atol=1e-4)
    parent = LoopSampler(sd, "ddim", guidance=CFG(2.0)).sample(TextToImage("a"), seeds=[0, 1], steps=4).latents
    assert torch.allclose(mine, parent, atol=1e-4) is (cls is OnlyRenamed)


def test_a_method_that_was_replaced_is_run(sd, monkeypatch):
    def step(self, model_output, timestep, sample, return_dict=True, **more):
        return (sample * 0.5, sample)

    assert isinstance(SolverFactory("ddim", None, sd.scheduler_config)(), NativeSolver)
    monkeypatch.setattr(DDIMScheduler, "step", step)
    solver = SolverFactory("ddim", None, sd.scheduler_config)()
    timeline = solver.timeline(3)
    x = torch.ones(2, 4, 3, 3)
    solver.start(NoiseSource([0, 1]))
    out = solver.step(Guided(Prediction(x, "epsilon")), x, timeline[0], NoiseSource([0, 1])).x
    assert torch.equal(out, 0.5 * x)


def returns(value):
    class Returns(DDIMScheduler):
        def step(self, model_output, timestep, sample, return_dict=True, **more):
            return value(sample)

    return Returns


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda x: None, "Returns.step returned NoneType at step 0"),
        (lambda x: x, "Returns.step returned Tensor at step 0"),
        (lambda x: (x[:, :2],), r"Returns.step returned latents of \[1, 2, 8, 8\] at step 0"),
        (lambda x: (None, x), "Returns.step returned tuple at step 0"),
    ],
)
def test_what_a_step_returns_is_looked_at(sd, value, words):
    sampler = LoopSampler(sd, returns(value).from_config(sd.scheduler_config))
    with pytest.raises(SamplingError, match=words):
        sampler.sample(TextToImage("a"), seeds=[0], steps=2)


def test_an_error_in_a_step_says_where_and_keeps_its_class(sd):
    def fail(x):
        raise ZeroDivisionError("mine")

    sampler = LoopSampler(sd, returns(fail).from_config(sd.scheduler_config))
    with pytest.raises(ZeroDivisionError, match="mine") as told:
        sampler.sample(TextToImage("a"), seeds=[0], steps=2)
    assert told.value.__notes__ == ["raised in Returns.step at step 0"]
