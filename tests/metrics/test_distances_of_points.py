"""Distances of points: what scipy says in one dimension, and errors."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import energy_distance, wasserstein_distance

from research.errors import UserError
from research.metrics import PointDistances
from research.points import point_image, points_of

EXTENT = (-3.0, 3.0)


def pictures(points: torch.Tensor) -> list[Image.Image]:
    return [point_image(point, EXTENT) for point in points]


def test_in_one_dimension_they_are_scipys(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mine, theirs = torch.randn(40, 1), 0.5 + torch.randn(60, 1)
    np.save(tmp_path / "data.npy", theirs.numpy())
    found = PointDistances(str(tmp_path / "data.npy")).compute(pictures(mine), device="cpu").values
    x, y = mine[:, 0].double().numpy(), theirs[:, 0].double().numpy()
    assert found["sliced_wasserstein"] == pytest.approx(wasserstein_distance(x, y), rel=1e-6)
    assert found["energy_distance"] == pytest.approx(energy_distance(x, y), rel=1e-5)


def test_the_same_points_are_at_no_distance_and_moved_ones_at_their_own() -> None:
    torch.manual_seed(0)
    points = torch.randn(50, 2)
    same = PointDistances(points).compute(pictures(points), device="cpu")
    assert same.values == pytest.approx({"sliced_wasserstein": 0.0, "energy_distance": 0.0}, abs=1e-6)
    moved = PointDistances(points, projections=2000).compute(pictures(points + torch.tensor([1.0, 0.0])), device="cpu")
    assert moved.values["sliced_wasserstein"] == pytest.approx(2 / np.pi, rel=0.05)  # the mean of |cos|
    assert torch.equal(points_of(pictures(points)), points.double())


@pytest.mark.parametrize(
    ("reference", "images", "says"),
    [
        ("nowhere.npy", 3, "metrics.points.reference: no file 'nowhere.npy'"),
        (torch.zeros(5, 3), 3, "holds points in 3 dimensions; accepted are the model's 2."),
        (torch.zeros(5), 3, "found the shape [5]; accepted are finite points [M, d]"),
        (torch.zeros(5, 2), 1, "found 1 image; accepted is at least 2."),
        (torch.zeros(5, 2), 0, "picture 0 holds no point"),
    ],
)
def test_errors(reference: object, images: int, says: str) -> None:
    given = pictures(torch.zeros(images, 2)) if images else [Image.new("RGB", (8, 8))] * 3
    with pytest.raises(UserError, match=re.escape(says)):
        PointDistances(reference).compute(given, device="cpu")
