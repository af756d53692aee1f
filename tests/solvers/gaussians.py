"""Gaussian data for tests: spread out, and a single point, on which every consistent first-order step is exact."""

from __future__ import annotations

from typing import Any

import torch

from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianError, measure

MEAN = torch.tensor([0.5, -0.5, 1.0, -1.0]).reshape(4, 1, 1)
STD = torch.tensor([0.25, 0.5, 1.0, 2.0]).reshape(4, 1, 1)
SHAPE = (4, 16, 16)
WIDE = GaussianModel(MEAN, STD, SHAPE)
POINT = GaussianModel(MEAN, 0.0, SHAPE)


def error(model: GaussianModel, name: str, steps: int, **kwargs: Any) -> GaussianError:
    return measure(model, name, steps, seeds=range(2), **kwargs)
