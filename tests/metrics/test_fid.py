from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.linalg import sqrtm
from support.metric_samples import pictures
from torchmetrics.image.fid import FrechetInceptionDistance

from research.errors import ConfigError
from research.hashing import sha256_files
from research.image_tensors import stack
from research.metrics import FID, load_features
from research.metrics.reference import accumulate_reference, load_reference, save_reference


@pytest.fixture(scope="module")
def reference(tiny_clip, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("reference") / "real.safetensors"
    sums = accumulate_reference(pictures(60, seed=10), load_features(tiny_clip), batch_size=16)
    save_reference(path, sums, {"images": "smooth random pictures", "count": 60})
    return str(path)


def closed_form(real: np.ndarray, fake: np.ndarray) -> float:
    product = np.cov(real.T) @ np.cov(fake.T)
    root = np.real(np.trace(sqrtm(product)))
    shift = real.mean(0) - fake.mean(0)
    return float(shift @ shift + np.trace(np.cov(real.T)) + np.trace(np.cov(fake.T)) - 2 * root)


def test_equals_torchmetrics_and_the_closed_form(tiny_clip, reference):
    features = load_features(tiny_clip)
    real, fake = pictures(60, seed=10), pictures(50, seed=11, shift=0.1)
    theirs = FrechetInceptionDistance(feature=features)
    theirs.update(stack(real), real=True)
    theirs.update(stack(fake), real=False)
    ours = FID(tiny_clip, reference).compute(fake, device="cpu").values["fid"]
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-4)
    exact = closed_form(features(stack(real)).double().numpy(), features(stack(fake)).double().numpy())
    assert ours == pytest.approx(exact, rel=1e-3)


def test_identical_sets_are_at_zero_and_a_directory_serves_as_reference(tiny_clip, tmp_path):
    images = pictures(60, seed=12)
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i:03d}.png")
    metric = FID(tiny_clip, str(tmp_path), batch_size=13)
    result = metric.compute(images, device="cpu")
    assert abs(result.values["fid"]) < 1e-3
    assert result.info["reference"]["num_samples"] == 60
    assert str(tmp_path) not in json.dumps(result.info)
    assert metric.compute(pictures(60, seed=13, shift=0.3), device="cpu").values["fid"] > 1


def test_one_jobs_images_never_enter_the_next_score(tiny_clip, reference):
    metric = FID(tiny_clip, reference)
    first = metric.compute(pictures(40, seed=20), device="cpu").values
    metric.compute(pictures(40, seed=21, shift=0.4), device="cpu")
    assert metric.compute(pictures(40, seed=20), device="cpu").values == first


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_does_not_matter(tiny_clip, reference, batch_size):
    fake = pictures(40, seed=22, shift=0.1)
    whole = FID(tiny_clip, reference, batch_size=40).compute(fake, device="cpu").values["fid"]
    assert FID(tiny_clip, reference, batch_size).compute(fake, device="cpu").values["fid"] == pytest.approx(
        whole, rel=1e-3
    )


def test_features_take_floats_in_the_unit_range_only(tiny_clip):
    features = load_features(tiny_clip)
    images = stack(pictures(3, seed=23))
    assert torch.equal(features(images), features(images.float() / 255))
    with pytest.raises(ConfigError, match="found floats from"):
        features(images.float() / 127.5 - 1)


def test_few_images_warn_and_fewer_than_two_are_refused(tiny_clip, reference):
    result = FID(tiny_clip, reference).compute(pictures(3, seed=24), device="cpu")
    assert np.isfinite(result.values["fid"])
    assert "3 images for 24 features" in result.info["warnings"][0]
    assert FID(tiny_clip, reference).compute(pictures(40, seed=24), device="cpu").info["warnings"] == []
    for count in (0, 1):
        with pytest.raises(ConfigError, match=f"found {count} image"):
            FID(tiny_clip, reference).check(n_images=count)


def test_record_says_what_the_number_was_made_with(tiny_clip, reference):
    info = FID(tiny_clip, reference).compute(pictures(30, seed=25), device="cpu").info
    assert info["features"]["layer"] == "image_embeds"
    assert len(info["features"]["weights_sha256"]) == len(info["reference"]["sha256"]) == 64
    assert info["reference"]["data"] == {"images": "smooth random pictures", "count": 60}
    assert {"torch", "transformers"} <= set(info["versions"])
    json.dumps(info, allow_nan=False)


def test_reference_of_other_features_is_refused(other_clip, reference):
    with pytest.raises(ConfigError, match=r"made with features 'tiny' .weights_sha256"):
        FID(other_clip, reference).compute(pictures(3, seed=0), device="cpu")


def test_damaged_reference_is_refused(tiny_clip, reference, tmp_path):
    features = load_features(tiny_clip)
    copy = tmp_path / "real.safetensors"
    copy.write_bytes(Path(reference).read_bytes())
    assert load_reference(str(copy), features).num_samples == 60
    whole = copy.read_bytes()
    copy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"real\.safetensors is damaged: the sha256 of what it holds"):
        load_reference(str(copy), features)
    copy.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="is damaged, or no file of statistics"):
        load_reference(str(copy), features)


def test_a_reference_of_the_first_format_needs_what_lies_beside_it(tiny_clip, reference, tmp_path):
    features, old = load_features(tiny_clip), tmp_path / "old.safetensors"
    tensors = load_file(reference)
    save_file(tensors, old)
    with pytest.raises(ConfigError, match=r"old\.json beside it does not either"):
        load_reference(str(old), features)
    told = {"sha256": sha256_files([old]), "num_samples": 60, "features": features.provenance}
    old.with_suffix(".json").write_text(json.dumps(told))
    assert load_reference(str(old), features).num_samples == 60
    old.write_bytes(old.read_bytes()[:-1] + b"\1")
    with pytest.raises(ConfigError, match="damaged or was replaced"):
        load_reference(str(old), features)


def test_bad_names_are_one_clear_line(tiny_clip, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for metric, pattern in (
        (FID(tiny_clip, "no-such-reference"), r"metrics.fid.reference: 'no-such-reference' does not exist"),
        (FID(tiny_clip, str(tmp_path)), r"holds 0 images"),
        (FID(tiny_clip, str(tmp_path / "notes.txt")), r"Accepted: shipped statistics"),
        (FID("no-such-model", str(tmp_path)), r"metrics.fid.features: 'no-such-model' does not exist"),
    ):
        with pytest.raises(ConfigError, match=pattern) as raised:
            metric.check(n_images=4)
        assert "\n" not in str(raised.value)


def test_a_broken_image_in_a_reference_directory_is_named(tiny_clip, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"b\.png is no picture"):
        FID(tiny_clip, str(tmp_path)).compute(pictures(3, seed=0), device="cpu")


def test_accumulating_streams_and_needs_two_images(tiny_clip):
    features = load_features(tiny_clip)
    images = pictures(9, seed=30)
    streamed = accumulate_reference((image for image in images), features, batch_size=4)
    vectors = features(stack(images)).double()
    torch.testing.assert_close(streamed.feature_outer_sum, vectors.T @ vectors, rtol=1e-5, atol=1e-3)
    assert streamed.num_samples == 9
    with pytest.raises(ConfigError, match="at least 2"):
        accumulate_reference(images[:1], features)
