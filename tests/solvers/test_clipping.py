"""A model's config that asks for clipping is heeded by every native solver alike, on data that leave [-1, 1]."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from research.errors import ConfigError
from research.sampling import Guided, NoiseSource, Prediction
from research.sampling.prediction import convert
from research.solvers import LinearSolver, SolverFactory
from research.solvers.linear import to_data
from research.solvers.lint.linter import lint
from research.solvers.native.counterparts import COUNTERPARTS
from research.solvers.native.euler import Euler

# of a model of pixels, such as google/ddpm-cifar10-32
PIXELS = {
    "_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
    "num_train_timesteps": 1000, "clip_sample": True, "clip_sample_range": 1.0,
}  # fmt: skip
CENTRES, SPREAD = torch.tensor([-1.3, 0.2, 1.2], dtype=torch.float64), 0.3


def expected(x: torch.Tensor, signal: float, noise: float) -> torch.Tensor:
    """E[x0 | x] of a mixture of three normal distributions, a pixel at a time."""
    variance = (signal * SPREAD) ** 2 + noise**2
    away = x[..., None] - signal * CENTRES
    weights = (-(away**2) / (2 * variance)).softmax(-1)
    return (weights * (CENTRES + signal * SPREAD**2 / variance * away)).sum(-1)


def picture(scheduler: Any, steps: int, base: dict[str, Any] = PIXELS, **options: Any) -> torch.Tensor:
    solver = SolverFactory(scheduler, options, base)()
    timeline, noise = solver.timeline(steps), NoiseSource([0])
    x = solver.scale_noise(torch.randn((1, 1, 16, 16), generator=torch.Generator().manual_seed(0)).double())
    solver.start(noise)
    for stage in timeline:
        told = convert(Prediction(expected(x, stage.signal, stage.noise), "x0"), solver.kind, x, stage)
        x = solver.step(Guided(told), x, stage, noise).x
    return x


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt())


@pytest.fixture(scope="module")
def clipped() -> torch.Tensor:
    return picture("heun", 400)


# deis and pndm end at timestep 0 of the model and not at clean latents
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("ddim", 0.01), ("euler", 0.01), ("dpm2", 0.01), ("dpmpp_2m", 0.01), ("dpmpp_2s", 0.01), ("unipc", 0.01), ("lms", 0.01),
     ("deis", 0.02), ("pndm", 0.02)],
)  # fmt: skip
def test_all_converge_to_one_picture(name, tolerance, clipped):
    assert distance(picture(name, 200), clipped) < tolerance


def test_which_is_another_than_that_of_the_unclipped_ode(clipped):
    assert distance(picture("heun", 200, clip_sample=False), clipped) > 0.2
    assert distance(picture("euler", 200, clip_sample=False), clipped) > 0.2
    assert distance(picture(Euler(clip=math.inf), 200), clipped) > 0.2


def test_every_native_solver_has_the_option():
    for cls in set(COUNTERPARTS.values()):
        assert "clip" in {field.name for field in dataclasses.fields(cls)}, cls.__name__


@pytest.mark.spread(10)
@pytest.mark.parametrize("name", sorted(COUNTERPARTS))
def test_what_the_config_asks_for(name):
    if name.startswith("FlowMatch") or name == "SCMScheduler":  # of models of their own
        flow = {"_class_name": name}
        assert SolverFactory(name, {}, flow).native.clip is None
        return
    assert SolverFactory(name, {}, PIXELS).native.clip == 1.0
    if name.startswith("KDPM2"):  # two seconds each
        return
    assert SolverFactory(name, {"clip_sample_range": 2.0}, PIXELS).native.clip == 2.0
    assert SolverFactory(name, {"clip_sample": False}, PIXELS).native.clip is None
    assert SolverFactory(name, {}, {**PIXELS, "clip_sample": False}).native.clip is None
    assert SolverFactory(name, {}, {"_class_name": "FlowMatchEulerDiscreteScheduler"}).native.clip is None


def test_a_solver_of_ones_own_clips_too():
    class Own(LinearSolver):
        def update(self, levels, i):
            return to_data(levels[i], levels[i + 1], {0: 1.0})

    own = Own()
    assert SolverFactory(own, None, PIXELS).native.clip == 1.0
    assert own.clip is None  # the object that was given is left alone
    assert distance(picture(own, 50), picture("euler", 50, timestep_spacing="linspace")) < 1e-6


def test_with_parity_a_class_does_what_it_does():
    assert SolverFactory("euler", {}, PIXELS, parity=True).native is None
    with pytest.raises(ConfigError, match="no option 'clip_sample'"):
        SolverFactory("euler", {"clip_sample": True}, PIXELS, parity=True)


def test_the_linter_warns_only_where_nothing_is_clipped():
    def about_clipping(**more: Any) -> bool:
        return any("clip" in str(found) for found in lint("euler", {}, PIXELS, 20, latent=False, **more))

    assert about_clipping(parity=True)
    assert not about_clipping()
