"""Every solver over every kind of grid, on models of all four kinds: it runs, or is refused by a reason."""

from __future__ import annotations

import pytest
import torch

from research import LoopSampler
from research.errors import ConfigError
from research.sigmas import AYS, Beta, Given, Karras
from research.solvers import scheduler_names
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask

STEPS = 5
# multistep methods with noise extrapolate over a step five times as long as the one before (the last to a level of a flow's own
# grid, say): pictures are far too wide at few steps, those of diffusers' SA-Solver and k-diffusion's dpmpp_3m_sde too
STEPS_TO_BE_NEAR = {"sa_solver": 40, "dpmpp_3m_sde": 40}
GRIDS = {
    "model": None,
    "karras": Karras(),
    "beta": Beta(),
    "ays": AYS(),
    "list": Given(sigmas=[9.0, 4.0, 1.6, 0.6, 0.2]),
    "to the smallest": Karras(end="smallest"),
}
FLOW_LIST = Given(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2])
CASES = [(name, grid) for name in scheduler_names() for grid in GRIDS]


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0", "flow"])
@pytest.mark.parametrize(("name", "grid"), CASES)
@pytest.mark.spread(24)
def test_it_runs_or_says_why_not(name, grid, kind):
    model = GaussianModel(0.3, 0.8, (2, 4, 4), kind)
    sigmas = FLOW_LIST if (grid, kind) == ("list", "flow") else GRIDS[grid]

    def made(*seeds: int, steps: int = STEPS) -> torch.Tensor:
        return sampler.sample(GaussianTask(), seeds=list(seeds), steps=steps).latents

    if (name.startswith("flow_") and kind != "flow") or (grid == "ays" and kind == "flow"):
        with pytest.raises(ConfigError):
            LoopSampler(model, name, sigmas=sigmas).sample(GaussianTask(), seeds=[3], steps=STEPS)
        return
    sampler = LoopSampler(model, name, sigmas=sigmas)
    both = made(3, 4)
    assert both.isfinite().all()
    assert torch.allclose(made(4), both[1:], atol=1e-5)  # a batch is its images, and runs leave nothing behind
    assert torch.equal(made(3, 4), both)
    # in the end latents are data: near its mean, as wide as it is
    if grid != "list" and name in STEPS_TO_BE_NEAR:
        both = made(3, 4, steps=STEPS_TO_BE_NEAR[name])
    assert float((both.double().mean() - 0.3).abs()) < 0.6
    assert 0.2 < float(both.double().std()) < 2.0
