"""Set metrics against closed forms, brute force and torchmetrics."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.linalg import sqrtm
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from research.errors import ConfigError
from research.metrics.extractors.base import Features, extract
from research.metrics.frechet import (
    Gaussian,
    bias_at,
    distance_of_features,
    extrapolated,
    frechet_distance,
    standard_error,
)
from research.metrics.inception_score import InceptionScore, inception_score
from research.metrics.mmd import discrepancy, gaussian, polynomial
from research.metrics.prdc import prdc


def normal(n: int, d: int, seed: int, *, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


# --- Frechet distance


def test_gaussians_with_a_closed_form():
    """Diagonal covariances: |m|^2 + sum (s_a - s_b)^2."""
    d = 7
    a, b = torch.rand(d, dtype=torch.float64) + 0.5, torch.rand(d, dtype=torch.float64) + 0.5
    shift = torch.linspace(-1, 2, d, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(normal(d, d, 0))
    first = Gaussian(torch.zeros(d, dtype=torch.float64), rotation @ torch.diag(a**2) @ rotation.T)
    second = Gaussian(shift, rotation @ torch.diag(b**2) @ rotation.T)
    exact = float((shift**2).sum() + ((a - b) ** 2).sum())
    assert frechet_distance(first, second) == pytest.approx(exact, rel=1e-10)
    assert frechet_distance(second, first) == pytest.approx(exact, rel=1e-10)


def test_a_million_draws_come_to_the_closed_form():
    x = normal(200_000, 3, 1, shift=0.5, scale=2.0)
    exact = 3 * 0.25 + 3 * (2.0 - 1.0) ** 2
    standard = Gaussian(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    assert distance_of_features(x, standard) == pytest.approx(exact, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 60), m=st.integers(2, 60), d=st.integers(1, 24), seed=st.integers(0, 2**31))
def test_every_way_to_compute_it_gives_the_same_and_torchmetrics_too(n, m, d, seed):
    x, y = normal(n, d, seed), normal(m, d, seed + 1, shift=0.3, scale=1.5)
    a, b = Gaussian.of_features(x), Gaussian.of_features(y)
    outer = Gaussian.of_sums(x.sum(0), x.T @ x, n)
    found = frechet_distance(a, b)
    assert found >= -1e-6
    assert frechet_distance(outer, b) == pytest.approx(found, rel=1e-6, abs=1e-6)
    assert distance_of_features(x, b) == pytest.approx(found, rel=1e-5, abs=1e-5)
    theirs = float(_compute_fid(a.mean, a.covariance, b.mean, b.covariance))
    assert theirs == pytest.approx(found, rel=1e-4, abs=1e-4)


def test_equals_the_matrix_root_of_scipy():
    x, y = normal(80, 9, 3), normal(50, 9, 4, scale=0.7)
    a, b = Gaussian.of_features(x), Gaussian.of_features(y)
    root = np.real(np.trace(sqrtm(a.covariance.numpy() @ b.covariance.numpy())))
    exact = float(((a.mean - b.mean) ** 2).sum()) + a.trace + b.trace - 2 * root
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(5, 64), (64, 64), (500, 64), (300, 512)])
def test_identical_sets_are_at_zero(n, d):
    x = normal(n, d, 5, shift=3, scale=10)
    same = Gaussian.of_features(x)
    assert abs(frechet_distance(same, same)) < 1e-3
    assert abs(distance_of_features(x, same)) < 1e-3


def test_the_bias_of_few_images_is_estimated_and_extrapolated_away():
    """Both sets are of one Gaussian, so that the truth is 0 and all that is found is bias."""
    d, n = 8, 400
    truth = Gaussian(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    sets = [normal(n, d, seed) for seed in range(20)]
    plain = [distance_of_features(x, truth) for x in sets]
    estimates = [bias_at(x, truth) for x in sets]
    limits = [extrapolated(x, truth) for x in sets]
    assert min(plain) > 0.02
    assert np.mean(estimates) == pytest.approx(np.mean(plain), rel=0.35)
    assert abs(np.mean(limits)) < 0.35 * np.mean(plain)


@pytest.mark.parametrize(("n", "within"), [(16, 4.0), (64, 1.34), (256, 1.2)])
def test_the_bias_estimate_is_as_good_as_it_says(n, within):
    """In 64 dimensions, below, at and above as many images."""
    truth = Gaussian(torch.zeros(64, dtype=torch.float64), torch.eye(64, dtype=torch.float64))
    sets = [normal(n, 64, seed) for seed in range(6)]
    found = np.mean([bias_at(x, truth) for x in sets]) / np.mean([distance_of_features(x, truth) for x in sets])
    assert 1 / within < found < within


# --- kernel distances


@pytest.mark.slow
def test_kid_is_unbiased_over_resamples():
    """The mean over resamples of small sets is what all vectors give; that of the biased estimate is not."""
    x, y = normal(2000, 6, 10), normal(2000, 6, 11, shift=0.2)
    kernel = polynomial(6)
    whole = discrepancy(x, y, kernel).unbiased
    generator = torch.Generator().manual_seed(0)
    found, biased = [], []
    for _ in range(400):
        one = discrepancy(
            x[torch.randperm(2000, generator=generator)[:20]], y[torch.randperm(2000, generator=generator)[:20]], kernel
        )
        found.append(one.unbiased)
        biased.append(one.biased)
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert abs(np.mean(found) - whole) < 3 * error
    assert np.mean(biased) - whole > 10 * error
    equal = [discrepancy(normal(20, 6, s), normal(30, 6, s + 5000), kernel).unbiased for s in range(400)]
    assert abs(np.mean(equal)) < 3 * np.std(equal, ddof=1) / math.sqrt(400)
    assert min(equal) < 0


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 40), d=st.integers(1, 16), seed=st.integers(0, 2**31))
def test_kid_equals_torchmetrics_for_sets_of_one_size(n, d, seed):
    x, y = normal(n, d, seed), normal(n, d, seed + 1, shift=0.2)
    kernel = polynomial(d)
    theirs = float(poly_mmd(x, y))
    assert discrepancy(x, y, kernel).unbiased == pytest.approx(theirs, rel=1e-8, abs=1e-9)


@pytest.mark.slow
def test_blocks_change_nothing_and_the_error_is_the_scatter_of_new_draws():
    x, y = normal(1500, 4, 20), normal(1100, 4, 21, shift=0.5)
    kernel = gaussian(2.0)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    exact = (xx.sum() - xx.trace()) / (1500 * 1499) + (yy.sum() - yy.trace()) / (1100 * 1099) - 2 * xy.mean()
    assert discrepancy(x, y, kernel).unbiased == pytest.approx(float(exact), rel=1e-9)
    real = normal(500, 4, 22)
    draws = [discrepancy(normal(60, 4, s, shift=0.5), real, kernel) for s in range(200)]
    scatter = np.std([draw.unbiased for draw in draws], ddof=1)
    assert np.mean([draw.se for draw in draws]) == pytest.approx(scatter, rel=0.15)


# --- precision, recall, density, coverage


def brute(generated: np.ndarray, real: np.ndarray, k: int) -> dict[str, float]:
    def distances(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1)

    reach_real = np.sort(distances(real, real), axis=1)[:, k]
    reach_generated = np.sort(distances(generated, generated), axis=1)[:, k]
    between = distances(generated, real)
    return {
        "precision": float((between <= reach_real[None]).any(1).mean()),
        "recall": float((between <= reach_generated[:, None]).any(0).mean()),
        "density": float((between < reach_real[None]).sum() / (k * len(generated))),
        "coverage": float((between < reach_real[None]).any(0).mean()),
    }


@settings(max_examples=25, deadline=None)
@given(n=st.integers(6, 50), m=st.integers(6, 50), k=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_prdc_equals_brute_force(n, m, k, seed):
    x, y = normal(n, 3, seed, shift=0.3), normal(m, 3, seed + 1)
    expected = pytest.approx(brute(x.numpy(), y.numpy(), k))
    assert prdc(x, y, k) == expected
    with pytest.MonkeyPatch.context() as patch:  # as large sets are compared
        patch.setattr("research.metrics.prdc._EXACT", 0)
        assert prdc(x + 50, y + 50, k) == expected
        assert prdc(y, y, k) == pytest.approx(brute(y.numpy(), y.numpy(), k))


@settings(max_examples=25, deadline=None)
@given(k=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_prdc_with_distances_that_are_equal(k, seed):
    draw = np.random.default_rng(seed)
    x, y = (torch.from_numpy(draw.integers(0, 3, (20, 2)).astype(np.float32)) for _ in range(2))
    assert prdc(x, y, k) == pytest.approx(brute(x.numpy(), y.numpy(), k))


def test_prdc_of_equal_of_far_and_of_collapsed_sets():
    x = normal(300, 4, 30)
    same = prdc(x, x, 5)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert same["density"] >= 1
    assert prdc(x + 100, x, 5) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    collapsed = prdc(x[:1] + 0.01 * normal(300, 4, 31), x, 5)
    assert collapsed["precision"] == 1
    assert collapsed["recall"] < 0.1
    assert collapsed["coverage"] < 0.2


# --- Inception Score


def test_inception_score_is_1_when_nothing_is_told_apart_and_the_number_of_classes_when_all_is():
    assert inception_score(torch.full((50, 10), 0.1, dtype=torch.float64)) == pytest.approx(1)
    assert inception_score(torch.eye(10, dtype=torch.float64).repeat(5, 1)) == pytest.approx(10)
    one = torch.zeros(20, 10, dtype=torch.float64)
    one[:, 3] = 1
    assert inception_score(one) == pytest.approx(1)


def test_inception_score_equals_torchmetrics():
    from torchmetrics.image.inception import InceptionScore as Theirs

    class Logits(torch.nn.Module):
        num_features = 6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.float().flatten(1)[:, :6] / 40

    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = Theirs(feature=Logits(), splits=1)
    theirs.update(images)
    mean, _ = theirs.compute()
    assert inception_score(Logits()(images).double().softmax(-1)) == pytest.approx(float(mean), rel=1e-5)


def test_parts_are_drawn_from_all_images(monkeypatch):
    """Images stand prompt by prompt: in parts cut in that order each would have some prompts only."""
    metric = InceptionScore("emoji-eval", labels=["a", "b", "c", "d"], splits=4)
    certain = torch.eye(4, dtype=torch.float64)
    monkeypatch.setattr(metric, "_classifier", lambda device: (lambda images: certain[images[:, 0, 0, 0].long()], {}))
    by_prompt = [Image.new("RGB", (4, 4), (i // 25, 0, 0)) for i in range(100)]
    assert metric.compute(by_prompt).values["inception_score"] > 3.5


def test_features_that_are_no_numbers_name_the_image():
    class Broken(Features):
        num_features, device = 4, "cpu"
        provenance: ClassVar = {"name": "broken", "weights_sha256": "", "layer": "", "dimension": 4, "preprocess": ""}

        def embed(self, images):
            found = images.float().flatten(1)[:, :4]
            return torch.where(found == 7, torch.nan, found)

    images = [Image.new("RGB", (4, 4), (7 * (i == 5), 0, 0)) for i in range(8)]
    with pytest.raises(ConfigError, match="the broken features of image 5, counted from 0, are not finite"):
        list(extract(images, Broken(), 3))


@pytest.mark.parametrize(("count", "dimension"), [(200, 8), (256, 64)])
@pytest.mark.slow
def test_the_standard_error_is_the_scatter_over_draws(count: int, dimension: int) -> None:
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64) / dimension**0.5
    reference = Gaussian(torch.zeros(dimension).double(), torch.eye(dimension).double())
    distances, errors = [], []
    for _ in range(60):
        features = torch.randn(count, dimension, generator=generator, dtype=torch.float64) @ mix
        distances.append(distance_of_features(features, reference))
        errors.append(standard_error(features, reference))
    scatter = float(torch.tensor(distances).std())
    assert scatter / 1.35 < sum(errors) / len(errors) < scatter * 1.5
