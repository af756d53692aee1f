"""What guidance samples from, against the exact answer for Gaussians."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import CFG, CFGPlusPlus, Interval, NoGuidance
from research.sampling.interfaces import Branch, Guidance, Guided
from research.sampling.prediction import Prediction
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_conditional import (
    ConditionalGaussianModel,
    ConditionalGaussianTask,
    Gaussian,
    guided_end,
    guided_path,
    tilted,
)

pytestmark = pytest.mark.spread(2)

COND = Gaussian(torch.tensor([1.0, -0.5, 0.5, 1.5]).reshape(4, 1, 1), torch.tensor([0.5, 1, 0.8, 0.4]).reshape(4, 1, 1))
UNCOND = Gaussian(torch.tensor([0.0, 0.2, 0.5, -0.5]).reshape(4, 1, 1), torch.tensor([1, 1, 0.6, 0.8]).reshape(4, 1, 1))
MODEL = ConditionalGaussianModel({"cond": COND, "uncond": UNCOND}, shape=(4, 4, 4))
TO_THE_END = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}


@dataclass
class Walked:
    starts: Tensor  # y = x / signal at the first level
    ends: Tensor
    sigmas: list[float]  # of the stages
    steps: list[int]  # the user's step of each
    end_sigma: float
    nfe: int


def walk(guidance, scheduler="ddim", steps=100, options=None, model=MODEL, seeds=(0, 1)) -> Walked:
    task = ConditionalGaussianTask()
    result = LoopSampler(model, scheduler, options, guidance=guidance).sample(task, seeds=seeds, steps=steps)
    first, (signal, noise) = task.timeline_walked[0], task.end_level
    return Walked(
        torch.cat(task.starts) / first.signal,
        torch.cat(task.ends) / signal,
        [stage.noise / stage.signal for stage in task.timeline_walked],
        [stage.step for stage in task.timeline_walked],
        noise / signal,
        result.nfe,
    )


def error(found: Walked, path) -> float:
    """Root mean square distance from the exact end, in units of the conditional data's spread."""
    return float(((found.ends - path(found.starts)) / COND.std).square().mean().sqrt())


# --- the formulae


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0, 3.0, 6.0])
def test_theorem_one_of_cfg_is_a_predictor_corrector(scale):
    """arXiv:2408.09000, theorem 1: three different variances."""
    cond, uncond = Gaussian(0.0, 1.0), Gaussian(0.0, math.sqrt(2))
    ode, sde = (guided_end(cond, uncond, scale, 1e6, stochastic).std ** 2 for stochastic in (False, True))
    assert float(ode) == pytest.approx(2 ** (1 - scale), rel=1e-10)
    assert float(sde) == pytest.approx((2 - 2 ** (2 - 2 * scale)) / (2 * scale - 1), rel=1e-10)
    assert float(tilted(cond, uncond, scale).std ** 2) == pytest.approx(2 / (scale + 1), rel=1e-10)


stds = st.floats(0.1, 3.0)
means = st.floats(-2.0, 2.0)


@settings(max_examples=25, deadline=None)
@given(
    m_c=means,
    m_u=means,
    s_c=stds,
    s_u=stds,
    scale=st.floats(-1.0, 8.0),
    start=st.floats(1.0, 20.0),
    share=st.floats(0.01, 0.9),
)
def test_the_path_solves_its_equation(m_c, m_u, s_c, s_u, scale, start, share):
    """Against a fine Runge-Kutta integration of the ODE in log sigma."""
    end = start * share
    path = guided_path(Gaussian(m_c, s_c), Gaussian(m_u, s_u), scale, start, end)
    n = 400
    h = (math.log(end) - math.log(start)) / n

    def slope(log_sigma: float, y: float) -> float:
        square = math.exp(2 * log_sigma)
        d_c, d_u = (m + s**2 / (s**2 + square) * (y - m) for m, s in ((m_c, s_c), (m_u, s_u)))
        return y - d_u - scale * (d_c - d_u)

    y, at = 0.7 * start, math.log(start)
    for _ in range(n):
        k1 = slope(at, y)
        k2 = slope(at + h / 2, y + h / 2 * k1)
        k3 = slope(at + h / 2, y + h / 2 * k2)
        k4 = slope(at + h, y + h * k3)
        y, at = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), at + h
    assert float(path(torch.tensor(0.7 * start))) == pytest.approx(y, rel=2e-4, abs=2e-4)


@settings(max_examples=25, deadline=None)
@given(
    m_c=means,
    m_u=means,
    s_c=stds,
    s_u=stds,
    scale=st.floats(-1.0, 8.0),
    stochastic=st.booleans(),
    share=st.floats(0.01, 0.99),
)
def test_paths_compose(m_c, m_u, s_c, s_u, scale, stochastic, share):
    cond, uncond = Gaussian(m_c, s_c), Gaussian(m_u, s_u)
    whole = guided_path(cond, uncond, scale, 14.0, 0.0, stochastic)
    first = guided_path(cond, uncond, scale, 14.0, 14.0 * share, stochastic)
    both = first.then(guided_path(cond, uncond, scale, 14.0 * share, 0.0, stochastic))
    for name in ("gain", "shift", "variance"):
        assert float(getattr(both, name)) == pytest.approx(float(getattr(whole, name)), rel=1e-9, abs=1e-11)


@settings(max_examples=25, deadline=None)
@given(m_c=means, m_u=means, s_c=stds, s_u=stds, stochastic=st.booleans())
def test_scales_one_and_zero_are_the_two_models(m_c, m_u, s_c, s_u, stochastic):
    cond, uncond = Gaussian(m_c, s_c), Gaussian(m_u, s_u)
    for scale, data in ((1.0, cond), (0.0, uncond)):
        end = guided_end(cond, uncond, scale, 1e7, stochastic)
        assert float(end.mean) == pytest.approx(data.mean, abs=1e-6)
        assert float(end.std) == pytest.approx(data.std, rel=1e-8)


def test_with_equal_spreads_guidance_shifts_and_keeps_the_spread():
    """The one case in which CFG is what it is said to be: the mean is extrapolated, as the tilted density's."""
    cond, uncond = Gaussian(1.0, 0.7), Gaussian(-0.5, 0.7)
    for scale in (0.5, 3.0, 7.0):
        end, said = guided_end(cond, uncond, scale, 1e6), tilted(cond, uncond, scale)
        assert float(end.mean) == pytest.approx(-0.5 + 1.5 * scale, rel=1e-5)
        assert float(end.std) == pytest.approx(0.7, rel=1e-5)
        assert float(end.mean) == pytest.approx(float(said.mean), rel=1e-5)
        assert float(end.std) == pytest.approx(float(said.std), rel=1e-5)


def test_impossible_questions():
    cond, uncond = Gaussian(0.0, 2.0), Gaussian(0.0, 1.0)
    with pytest.raises(ConfigError, match="no finite mass"):
        tilted(cond, uncond, 3.0)
    with pytest.raises(ConfigError, match="std"):
        guided_path(Gaussian(0.0, 0.0), uncond, 3.0, 10.0)
    with pytest.raises(ConfigError, match="sigma"):
        guided_path(cond, uncond, 3.0, 1.0, 2.0)


# --- the loop against them


@pytest.mark.parametrize(
    ("scheduler", "options", "order", "limit"),
    [
        ("ddim", {"timestep_spacing": "linspace"}, 1, 0.02),
        ("euler", {}, 1, 0.02),
        ("heun", {}, None, 0.02),
        ("dpmpp_2m", TO_THE_END, 2, 5e-4),
    ],
)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.spread(1)
def test_cfg_ends_where_the_formula_says(scheduler, options, order, limit, scale):
    found = {}
    for steps in (100, 400):
        walked = walk(CFG(scale), scheduler, steps, options)
        found[steps] = error(walked, guided_path(COND, UNCOND, scale, walked.sigmas[0], walked.end_sigma))
    assert found[400] < limit
    if order is not None:  # Heun is of second order, but for its last step, which goes down to 0
        assert math.log2(found[100] / found[400]) / 2 > order - 0.35


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0"])
def test_whatever_the_model_predicts(kind):
    model = ConditionalGaussianModel({"cond": COND, "uncond": UNCOND}, shape=(4, 4, 4), prediction=kind)
    ends = walk(CFG(3.0), "ddim", 20, model=model).ends
    assert torch.allclose(ends, walk(CFG(3.0), "ddim", 20).ends, rtol=1e-6, atol=1e-6)


def test_a_flow_model_too():
    model = ConditionalGaussianModel({"cond": COND, "uncond": UNCOND}, shape=(4, 4, 4), prediction="flow")
    task = ConditionalGaussianTask()
    LoopSampler(model, "flow_euler", guidance=CFG(3.0)).sample(task, seeds=[0], steps=400)
    first = task.timeline_walked[0]
    assert first.signal < 1e-9  # noise alone: no y there, and the first step is the same for all data
    # from the second level on, by the formula: the spread that the limit of a high level has
    right = guided_end(COND, UNCOND, 3.0, 1e5)
    centred = (task.ends[0] - right.mean) / right.std
    assert float(centred.mean().abs()) < 0.35
    assert float(centred.std()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(("scheduler", "options"), [("ddim", {"eta": 1.0}), ("euler_a", {})])
def test_ancestral_samplers_follow_the_sde(scheduler, options):
    cond, uncond = Gaussian(1.0, 1.0), Gaussian(0.0, math.sqrt(2))
    model = ConditionalGaussianModel({"cond": cond, "uncond": uncond}, shape=(4, 32, 32))
    walked = walk(CFG(3.0), scheduler, 300, options, model=model)
    ode, sde = (guided_end(cond, uncond, 3.0, walked.sigmas[0], stochastic) for stochastic in (False, True))
    assert float(walked.ends.std()) == pytest.approx(float(sde.std), rel=0.03)
    assert float(walked.ends.mean()) == pytest.approx(float(sde.mean), abs=0.03)
    assert abs(float(ode.std) / float(sde.std) - 1) > 0.15  # another distribution than the ODE's


@pytest.mark.parametrize(
    ("scheduler", "options"), [("ddim", {"timestep_spacing": "linspace"}), ("euler", {}), ("heun", {})]
)
def test_a_limited_interval_ends_where_the_pieces_say(scheduler, options):
    steps = 300
    walked = walk(Interval(CFG(4.0), steps=(0.3, 0.7)), scheduler, steps, options)
    at = [walked.sigmas[walked.steps.index(step)] for step in (90, 210)]
    path = guided_path(COND, UNCOND, 1.0, walked.sigmas[0], at[0])
    path = path.then(guided_path(COND, UNCOND, 4.0, *at))
    path = path.then(guided_path(COND, UNCOND, 1.0, at[1], walked.end_sigma))
    assert error(walked, path) < 0.04
    assert error(walked, guided_path(COND, UNCOND, 4.0, walked.sigmas[0], walked.end_sigma)) > 0.2


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
@pytest.mark.parametrize("steps", [10, 40])
def test_cfg_plus_plus_is_its_recursion(scheduler, steps):
    """Step by step ``y' = D_u + scale (D_c - D_u) + sigma' (y - D_u) / sigma``: exact, not a limit."""
    scale, walked = 0.6, walk(CFGPlusPlus(0.6), scheduler, steps)
    y = walked.starts
    for sigma, below in zip(walked.sigmas, [*walked.sigmas[1:], walked.end_sigma], strict=True):
        d_c, d_u = (g.mean + g.std**2 / (g.std**2 + sigma**2) * (y - g.mean) for g in (COND, UNCOND))
        y = d_u + scale * (d_c - d_u) + below / sigma * (y - d_u)
    assert torch.allclose(walked.ends, y, rtol=1e-4, atol=1e-4)


def test_cfg_plus_plus_has_no_limit():
    """A step of CFG++ is one of CFG with scale ``scale * sigma / (sigma - sigma')``, which grows as steps get shorter."""
    spreads = [float(walk(CFGPlusPlus(0.3), "ddim", steps).ends[:, 0].std()) for steps in (10, 40, 160)]
    assert spreads[0] > 2 * spreads[1] > 4 * spreads[2]


class Weaker(Guidance):
    """Autoguidance by hand: the second model has the same condition and other data."""

    requires = frozenset()

    def __init__(self, scale: float, weak: GaussianModel):
        self.scale, self.weak = scale, weak

    def start(self, run):
        run.models["weak"] = self.weak

    def branches(self, state):
        c = state.conditions["cond"]
        return [Branch("cond", c), Branch("weak", c, model="weak")]

    def combine(self, state, predictions):
        c, w = predictions["cond"], predictions["weak"]
        return Guided(Prediction(w.value + self.scale * (c.value - w.value), c.kind))


def test_two_models_end_where_the_formula_says():
    """A weak model that smears the data: guidance away from it draws the samples together around the good model's mean."""
    weak = Gaussian(COND.mean, 1.3 * torch.as_tensor(COND.std))
    model = ConditionalGaussianModel({"cond": weak}, shape=(4, 4, 4))
    walked = walk(Weaker(2.0, model), "dpmpp_2m", 200, TO_THE_END)
    assert error(walked, guided_path(COND, weak, 2.0, walked.sigmas[0], walked.end_sigma)) < 2e-3
    end = guided_end(COND, weak, 2.0, 1e6)
    assert torch.allclose(end.mean, COND.mean.double(), atol=1e-5)
    assert torch.allclose(end.std, COND.std.double() / 1.3, rtol=1e-5)


def test_no_guidance_is_scale_one():
    plain, one = walk(NoGuidance(), steps=7), walk(CFG(1.0), steps=7)
    assert torch.equal(plain.ends, one.ends)
    assert plain.nfe == one.nfe == 7
