"""Solvers that add noise have the weak order that the study says, by moments that are exact."""

from __future__ import annotations

import pytest
import torch

from experiments.orders.named import named
from experiments.orders.weak import CASES, models, orders
from research import LoopSampler
from research.solvers import Levels
from research.solvers.levels import trained_levels
from research.solvers.native.dpmpp_3m_sde import DPMpp3MSDE
from research.solvers.native.dpmpp_sde import DPMppSDE
from research.solvers.native.heun import Heun
from research.solvers.native.sa_solver import SASolver
from research.solvers.native.seeds import SEEDS
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask
from research.testing.moments import end_moments, weak_errors
from research.testing.orders import SmoothLevels


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(c, kind, id=f"{named(c.solver)}-{kind}", marks=[pytest.mark.slow] if c.late else [])
        for c in CASES
        for kind in c.kinds
    ],
)
@pytest.mark.spread(8)
def test_the_weak_order_is_what_the_study_says(case, kind):
    held = case.flow if kind == "flow" and case.flow is not None else case.order
    steps = (240, 480) if case.late else (60, 120)
    found = min(orders(steps, weak_errors(case.solver, models()[kind], steps, stochasticity=case.stochasticity)))
    assert held - 0.15 <= found <= held + 0.6


# intervals of one path that overlap within a step, parts of a step, corrected latents, slopes
@pytest.mark.parametrize("solver", [DPMppSDE(), SEEDS(noise="brownian"), SASolver(), Heun()], ids=named)
@pytest.mark.spread(2)
def test_moments_are_those_of_many_draws(solver):
    """At so few steps that the solver's own error is far more than the draws'."""
    model, levels = GaussianModel(0.7, 0.4, (1, 48, 48)), SmoothLevels(power=1.0)
    task = GaussianTask()
    LoopSampler(model, solver, sigmas=levels).sample(task, seeds=list(range(16)), steps=4)
    end = torch.cat(task.ends)
    count = end.numel()
    mean, variance, _ = end_moments(solver, small := GaussianModel(0.7, 0.4, (1, 1, 1)), _levels(small, levels, 4))
    right = model.spread(*task.end_level).square().flatten()[0]
    assert abs(float(variance[0] / right) - 1.0) > 20 / (2 * count) ** 0.5
    assert float(end.var()) == pytest.approx(float(variance[0]), rel=4 * (2 / count) ** 0.5)
    assert float(end.mean()) == pytest.approx(float(mean[0]), abs=4 * float(variance[0] / count) ** 0.5)


def _levels(model: GaussianModel, sigmas: SmoothLevels, steps: int) -> Levels:
    return sigmas.levels(trained_levels(model.scheduler_config), steps)


def test_of_another_equation_the_mean_does_not_converge():
    """With half of the noise fresh, a solver does not follow the equation of all of it: variances agree, means do not."""
    model = models()["epsilon"]
    half = DPMpp3MSDE(order=2, eta=0.5)
    right, wrong = (weak_errors(half, model, (120,), stochasticity=lambda r, t=t: t)[0] for t in (0.5, 1.0))
    assert right.variance == wrong.variance < 0.01
    assert right.mean < 1e-3 < 0.05 < wrong.mean
