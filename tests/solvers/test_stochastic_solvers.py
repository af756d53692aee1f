"""Solvers that add noise end with the right mean and spread, within what so many draws say."""

from __future__ import annotations

import math

import pytest
import torch

from research import LoopSampler
from research.solvers import scheduler_names
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask
from research.testing.orders import SmoothLevels

MODEL = GaussianModel(0.3, 0.8, (1, 32, 32))
LEVELS = SmoothLevels(first=12.0, last=0.1, power=1.0)
# LCM and TCD sample what a distilled network says, and Restart goes up and down within few levels
NOISY = [
    name
    for name in scheduler_names()
    if not name.startswith(("flow_", "lcm", "tcd"))
    and "deterministic" not in LoopSampler(MODEL, name, sigmas=LEVELS)._new_solver().supports
]


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.spread(5)
def test_mean_and_spread(name):
    task = GaussianTask()
    LoopSampler(MODEL, name, sigmas=LEVELS).sample(task, seeds=[0, 1, 2, 3], steps=120)
    end = torch.cat(task.ends).double()
    signal, noise = task.end_level
    spread, count = math.hypot(signal * 0.8, noise), end.numel()
    assert float(end.mean()) == pytest.approx(signal * 0.3, abs=5 * spread / math.sqrt(count) + 0.01)
    assert float(end.std()) == pytest.approx(spread, rel=5 / math.sqrt(2 * count) + 0.02)
