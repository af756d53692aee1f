"""KID, CMMD, PRDC, Inception Score and FID's further options on images, with their records and the features they leave."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from support.metric_samples import pictures
from transformers import Dinov2Config, Dinov2Model

from research import caches
from research.errors import ConfigError
from research.image_tensors import stack
from research.metrics import CMMD, FID, KID, PRDC, InceptionScore, load_features, measure, saved_features
from research.metrics.base import MetricResult
from research.metrics.mmd import discrepancy, polynomial
from research.metrics.reference import accumulate_reference, chosen, save_reference
from research.metrics.saved_features import SavedFeatures


@pytest.fixture(scope="module")
def reference(tiny_clip, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("reference") / "real.safetensors"
    features = load_features(tiny_clip)
    save_reference(
        path,
        accumulate_reference(pictures(60, seed=10), features, wanted=chosen(60, 60)),
        {"images": "smooth random pictures", "sizes": {"40x32": 60}},
    )
    return str(path)


@pytest.fixture(scope="module")
def sums_only(tiny_clip, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("reference") / "sums.safetensors"
    save_reference(path, accumulate_reference(pictures(60, seed=10), load_features(tiny_clip)), {})
    return str(path)


@pytest.fixture(scope="module")
def tiny_dino(tmp_path_factory) -> str:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("dino") / "tiny-dino"
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(directory)
    processor = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(directory)


SET_METRICS = [FID, KID, CMMD, PRDC]


@pytest.mark.parametrize("metric", SET_METRICS)
def test_the_same_images_score_better_than_others_and_batches_change_nothing(metric, tiny_clip, reference):
    same = metric(tiny_clip, reference).compute(pictures(60, seed=10), device="cpu").values
    other = metric(tiny_clip, reference).compute(pictures(60, seed=11, shift=0.3), device="cpu").values
    again = metric(tiny_clip, reference, batch_size=7).compute(pictures(60, seed=11, shift=0.3), device="cpu").values
    assert other == pytest.approx(again, rel=1e-3)
    if metric is PRDC:
        assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
        assert other["coverage"] < 1
    else:
        name = metric.name
        # the reference keeps halves of float32, and an unbiased estimate of equal sets lies below 0
        assert same[name] < 0.05 * other[name]


@pytest.mark.parametrize("metric", SET_METRICS)
def test_the_record_says_what_the_number_was_made_with(metric, tiny_clip, reference):
    result = metric(tiny_clip, reference).compute(pictures(30, seed=12), device="cpu")
    info = result.info
    assert info["n_images"] == 30
    assert len(info["features"]["weights_sha256"]) == len(info["reference"]["sha256"]) == 64
    assert "bicubic" in info["features"]["preprocess"]["resample"]
    assert len(info["comparable"]) == 16
    assert info["definition"]
    assert {"torch", "transformers"} <= set(info["versions"])
    json.dumps(info, allow_nan=False)
    assert all(np.isfinite(value) for value in result.values.values())


@pytest.mark.parametrize("metric", SET_METRICS)
def test_numbers_are_comparable_only_with_the_same_count_features_and_reference(
    metric, tiny_clip, other_clip, reference, tmp_path
):
    def mark(features, images, real):
        return metric(features, real).compute(images, device="cpu").info["comparable"]

    for k, picture in enumerate(pictures(20, seed=13)):
        picture.save(tmp_path / f"{k}.png")
    first = mark(tiny_clip, pictures(30, seed=14), reference)
    assert mark(tiny_clip, pictures(30, seed=15), reference) == first
    assert mark(tiny_clip, pictures(31, seed=14), reference) != first
    assert mark(tiny_clip, pictures(30, seed=14), str(tmp_path)) != first
    assert mark(other_clip, pictures(30, seed=14), str(tmp_path)) != mark(
        tiny_clip, pictures(30, seed=14), str(tmp_path)
    )


def test_kid_over_subsets_agrees_with_the_whole_and_too_large_ones_are_refused(tiny_clip, reference):
    images = pictures(50, seed=16, shift=0.2)
    whole = KID(tiny_clip, reference).compute(images, device="cpu").values
    subsets = KID(tiny_clip, reference, subset_size=20, subsets=200).compute(images, device="cpu").values
    assert subsets["kid"] == pytest.approx(whole["kid"], rel=0.1)
    assert set(whole) == {"kid", "kid_se"}
    assert set(subsets) == {"kid", "kid_std"}
    features = load_features(tiny_clip)
    vectors, real = features(stack(images)), features(stack(pictures(60, seed=10)))
    assert whole["kid"] == pytest.approx(discrepancy(vectors, real, polynomial(24)).unbiased, rel=1e-2)
    with pytest.raises(ConfigError, match=r"metrics\.kid\.subset_size: found 51 with 50 images"):
        KID(tiny_clip, reference, subset_size=51).check(n_images=50)
    with pytest.raises(ConfigError, match="found 61 with 60 reference images"):
        KID(tiny_clip, reference, subset_size=61).compute(pictures(70, seed=1), device="cpu")


@pytest.mark.parametrize("metric", [KID, CMMD, PRDC])
def test_a_reference_of_sums_alone_is_refused(metric, tiny_clip, sums_only):
    with pytest.raises(ConfigError, match="holds sums of features only") as raised:
        metric(tiny_clip, sums_only).compute(pictures(20, seed=17), device="cpu")
    assert "\n" not in str(raised.value)


def test_few_images_get_their_bias_estimated_and_many_the_limit(tiny_clip, reference):
    few = FID(tiny_clip, reference).compute(pictures(12, seed=18), device="cpu")
    assert few.info["bias_estimate"] > 0
    assert "biased upward, by roughly" in few.info["warnings"][0]
    asked = FID(tiny_clip, reference, extrapolate=True)
    assert (
        "left out, 30 images for 24 features" in asked.compute(pictures(30, seed=18), device="cpu").info["warnings"][0]
    )
    result = asked.compute(pictures(96, seed=18), device="cpu")
    assert result.values["fid_infinity"] < result.values["fid"]


def test_images_of_another_size_than_the_reference_are_told(tiny_clip, reference):
    images = pictures(30, seed=19, size=(16, 16))
    warned = FID(tiny_clip, reference).compute(images, device="cpu").info["warnings"]
    assert any("images of 16x16 against a reference of 40x32" in line for line in warned)
    assert not FID(tiny_clip, reference).compute(pictures(30, seed=19), device="cpu").info["warnings"]


def test_several_distances_go_by_names_of_their_own(tiny_clip, reference):
    result = FID(tiny_clip, reference, name="fd_tiny").compute(pictures(30, seed=20), device="cpu")
    assert set(result.values) == {"fd_tiny", "fd_tiny_se"}
    with pytest.raises(ConfigError, match=r"metrics\.FD 2\.name: found 'FD 2'"):
        FID(tiny_clip, reference, name="FD 2").check(n_images=9)


def test_dinov2_gives_its_class_token(tiny_dino, tmp_path):
    features = load_features(tiny_dino)
    images = stack(pictures(4, seed=21))
    model = Dinov2Model.from_pretrained(tiny_dino).eval()
    from research.image_tensors import Preprocess

    pixels = Preprocess.from_config(__import__("pathlib").Path(tiny_dino) / "preprocessor_config.json")(images)
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output
    torch.testing.assert_close(features(images), expected, rtol=1e-4, atol=1e-5)
    assert features.provenance["name"] == "tiny-dino"
    assert features.num_features == 24
    for k, picture in enumerate(pictures(30, seed=22)):
        picture.save(tmp_path / f"{k}.png")
    result = FID(tiny_dino, str(tmp_path), name="fd_dinov2").compute(pictures(30, seed=22), device="cpu")
    assert abs(result.values["fd_dinov2"]) < 1e-3


def test_models_of_other_types_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="is a model of type 'bert'; accepted are clip and dinov2"):
        load_features(str(tmp_path))


def test_inception_score_of_a_clip_and_its_sentences(tiny_clip):
    labels = ["a red thing", "a blue thing", "a dog"]
    metric = InceptionScore(tiny_clip, labels, splits=2)
    result = metric.compute(pictures(20, seed=23), device="cpu")
    assert 1 <= result.values["inception_score"] <= 3
    assert result.values["inception_score_std"] >= 0
    assert result.info["classifier"]["labels"] == labels
    for wrong in (InceptionScore(tiny_clip), InceptionScore(tiny_clip, ["one"])):
        with pytest.raises(ConfigError, match=r"metrics\.inception_score\.labels: found"):
            wrong.check(n_images=20)
    with pytest.raises(ConfigError, match="found 3 images; accepted is at least 4"):
        metric.check(n_images=3)


@pytest.mark.slow
def test_efficientnet_is_refused_or_works(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra 'efficientnet' is not installed")
    images = pictures(12, seed=24)
    for k, picture in enumerate(images):
        picture.save(tmp_path / f"{k}.png")
    result = FID("efficientnet", str(tmp_path)).compute(images, device="cpu")
    assert abs(result.values["fid"]) < 1e-3
    assert result.info["features"]["dimension"] == 1280
    assert InceptionScore("efficientnet").compute(images, device="cpu").values["inception_score"] >= 1


# --- features that are saved


def test_features_are_left_in_the_jobs_folder_once_for_all_metrics_of_a_space(tiny_clip, reference, tmp_path):
    images = pictures(25, seed=25)
    infos = [
        measure(metric(tiny_clip, reference), images, [""] * 25, device="cpu", folder=tmp_path).info
        for metric in SET_METRICS
    ]
    (file,) = (tmp_path / "features").iterdir()
    assert {info["features_file"] for info in infos} == {f"features/{file.name}"}
    assert file.stat().st_size < 25 * 24 * 2 + 2000
    found = saved_features.read_features(tmp_path, infos[0])
    torch.testing.assert_close(found.vectors, load_features(tiny_clip)(stack(images)), rtol=1e-3, atol=1e-3)
    assert found.provenance["weights_sha256"] == infos[0]["features"]["weights_sha256"]
    file.write_bytes(file.read_bytes()[:-1] + b"\7")
    with pytest.raises(ConfigError, match="is not the file that the job's record says"):
        saved_features.read_features(tmp_path, infos[0])
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        saved_features.read_features(tmp_path, infos[0])
    assert saved_features.read_features(tmp_path, {}) is None


def test_features_can_be_left_out_and_large_ones_are(tiny_clip, reference, tmp_path, monkeypatch):
    images = pictures(25, seed=25)
    without = FID(tiny_clip, reference, keep_features=False)
    assert "features_file" not in measure(without, images, [], device="cpu", folder=tmp_path).info
    monkeypatch.setattr(saved_features, "LARGEST", 1000)
    assert "features_file" not in measure(FID(tiny_clip, reference), images, [], device="cpu", folder=tmp_path).info
    assert list(tmp_path.iterdir()) == []


def test_sums_of_parts_are_the_sum_of_the_whole(tiny_clip, reference):
    """As ranks do it: each sums its own images, and the sums are added."""
    metric, images = FID(tiny_clip, reference), pictures(40, seed=26)
    sums = [metric.add_up(images[:25], device="cpu"), metric.add_up(images[25:], device="cpu")]
    for mine, other in zip(metric.parts(sums[0]), metric.parts(sums[1]), strict=True):
        mine += other
    together = metric.conclude(sums[0], device="cpu")
    assert together.values["fid"] == pytest.approx(metric.compute(images, device="cpu").values["fid"], rel=1e-6)
    assert together.info["n_images"] == 40
    assert together.features is None


def test_parts_that_know_their_places_give_all_that_the_whole_gives(tiny_clip, reference):
    """The features come together too, in the order of the images, and with them what is worked out of them."""
    metric, images = FID(tiny_clip, reference), pictures(40, seed=26)
    places = [[k for k in range(40) if k // 10 % 2 == rank] for rank in range(2)]
    sums = [metric.add_up([images[k] for k in rows], device="cpu", rows=rows, total=len(images)) for rows in places]
    for mine, other in zip(metric.parts(sums[0]), metric.parts(sums[1]), strict=True):
        mine += other
    together, whole = metric.conclude(sums[0], device="cpu"), metric.compute(images, device="cpu")
    assert together.values.keys() == whole.values.keys() == {"fid", "fid_se"}
    for name, value in whole.values.items():
        assert together.values[name] == pytest.approx(value, rel=1e-4)
    assert torch.allclose(together.features.vectors, whole.features.vectors, atol=1e-5)


def test_a_metric_of_ones_own_needs_none_of_this(tmp_path):
    class Mine:
        def compute(self, images, prompts, *, device):
            return MetricResult({"mine": float(len(images))})

    assert measure(Mine(), pictures(3, seed=0), [""] * 3, device="cpu", folder=tmp_path).values == {"mine": 3}


# -- a number does not depend on what was computed before it in the process


def _every_set_metric(features, reference):
    return [
        *(metric(features, reference) for metric in SET_METRICS),
        KID(features, reference, subset_size=10, subsets=3),
        CMMD(features, reference, bandwidth=3.0),
        CMMD(features, reference, estimator="biased"),
        FID(features, reference, extrapolate=True),
        PRDC(features, reference, k=2),
    ]


@pytest.mark.slow
def test_set_metrics_give_the_same_in_any_order(tiny_clip, other_clip, tiny_dino, tmp_path):
    real, ours = tmp_path / "real", pictures(16, seed=21, shift=0.2)
    real.mkdir()
    for place, picture in enumerate(pictures(14, seed=20)):
        picture.save(real / f"{place:03d}.png")
    made = [m for features in (tiny_clip, other_clip) for m in _every_set_metric(features, str(real))]
    made += [metric(tiny_dino, str(real)) for metric in (FID, KID)]
    alone = []
    for metric in made:
        caches.clear()
        alone.append(metric.compute(ours).values)
    caches.clear()
    assert [metric.compute(ours).values for metric in made] == alone
    caches.clear()
    assert [metric.compute(ours).values for metric in reversed(made)] == alone[::-1]


def test_a_folder_whose_pictures_were_replaced_is_another_reference(tiny_clip, tmp_path):
    metric, ours = FID(tiny_clip, str(tmp_path / "real")), pictures(20, seed=21)
    found = []
    for seed in (20, 22):
        (tmp_path / "real").mkdir(exist_ok=True)
        for place, picture in enumerate(pictures(12, seed=seed, shift=seed / 100)):
            picture.save(tmp_path / "real" / f"{place:03d}.png")
        found.append(metric.compute(ours).values["fid"])
    caches.clear()
    assert found[0] != found[1] == metric.compute(ours).values["fid"]


def test_two_networks_of_the_same_weights_are_not_taken_for_each_other(tiny_clip, tmp_path):
    from support.metric_samples import texts_and_pictures_of

    other = tmp_path / "other"
    shutil.copytree(tiny_clip, other)
    config = json.loads((other / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        config[part]["hidden_act"] = "relu" if config[part].get("hidden_act") != "relu" else "gelu"
    (other / "config.json").write_text(json.dumps(config))
    first, second = (texts_and_pictures_of(str(d)) for d in (tiny_clip, other))
    caches.clear()
    assert torch.equal(texts_and_pictures_of(str(other)), second)
    assert not torch.equal(first, second)


def test_saved_features_are_named_by_all_that_they_depend_on():
    provenance = {"name": "a/b", "weights_sha256": "0" * 64, "layer": "pool", "dimension": 2, "preprocess": "224"}
    others = [
        provenance | {"layer": "last"},
        provenance | {"preprocess": {"size": 336}},
        provenance | {"weights_sha256": "1" * 64},
    ]
    vectors = torch.zeros(2, 2)
    names = [SavedFeatures(vectors, one).name for one in (provenance, *others)]
    names.append(SavedFeatures(vectors, provenance, "a config").name)
    assert len(set(names)) == 5
    assert all(name.startswith("a_b-") for name in names)
    assert SavedFeatures(vectors, dict(reversed(provenance.items()))).name == names[0]


class _Network(torch.nn.Module):
    """Stands where torchmetrics' network does: its weights are not here."""

    def __init__(self, name, features_list):
        super().__init__()
        self.use_antialias = True


@pytest.mark.parametrize(("name", "antialiased"), [("inception", False), ("inception-antialiased", True)])
def test_inception_resizes_as_its_name_says(name, antialiased, monkeypatch):
    import torchmetrics.image.fid

    from research.metrics.extractors.inception import InceptionFeatures, logits_network

    monkeypatch.setattr(torchmetrics.image.fid, "NoTrainInceptionV3", _Network)
    features = InceptionFeatures("cpu", name)
    assert features.network.use_antialias is antialiased
    assert features.provenance["name"] == name
    assert ("TensorFlow 1" in features.provenance["preprocess"]) is not antialiased
    assert logits_network("cpu")[0].use_antialias is False


def test_the_resize_of_inception_is_that_of_tensorflow_1():
    resize = pytest.importorskip(
        "torch_fidelity.interpolate_compat_tensorflow"
    ).interpolate_bilinear_2d_like_tensorflow1x
    x = np.random.default_rng(0).uniform(0, 255, (40, 600))

    def taken(length):  # row i from i * length / 299, between the two nearest
        place = np.arange(299) * (length / 299)
        low = np.floor(place).astype(int)
        weights = np.zeros((299, length))
        weights[np.arange(299), low] += 1 - (place - low)
        weights[np.arange(299), np.minimum(low + 1, length - 1)] += place - low
        return weights

    expected = taken(40) @ x @ taken(600).T
    found = resize(torch.from_numpy(x)[None, None].float(), size=(299, 299), align_corners=False)[0, 0]
    assert found.numpy() == pytest.approx(expected, abs=1e-2)
