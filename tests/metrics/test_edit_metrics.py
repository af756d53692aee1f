"""Metrics that compare images with the picture they were started from, and those of people's taste."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from support.metric_samples import pictures

from research.errors import ConfigError
from research.image_tensors import stack
from research.metrics import (
    PSNR,
    SSIM,
    AestheticScore,
    DirectionalSimilarity,
    PerceptualDistance,
    PreferenceScore,
    ScoredJob,
    check_metric,
    load_features,
    per_image,
)
from research.sampling.interfaces import Model

SIZE = (40, 32)


def job(image, mask=None, **more) -> ScoredJob:
    task = {"_target_": "research.tasks.Inpaint" if mask is not None else "research.tasks.ImageToImage", "image": image}
    if mask is not None:
        task["mask"] = mask
    return ScoredJob({"task": task, "prompts": ["a dog"], **more}, [0, 1, 2])


@pytest.fixture
def given() -> Image.Image:
    return pictures(1, seed=1, size=SIZE)[0]


@pytest.fixture
def half() -> Image.Image:
    """White, where the model draws, on the right."""
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[:, 20:] = 255
    return Image.fromarray(mask)


def test_psnr_is_what_the_noise_says(given):
    noisy = np.asarray(given, np.int16)
    noisy = np.where(noisy < 128, noisy + 10, noisy - 10).astype(np.uint8)
    result = PSNR().compute([Image.fromarray(noisy)] * 3, device="cpu", job=job(given))
    assert result.values["psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)
    assert result.values["psnr_se"] == pytest.approx(0, abs=1e-9)
    assert PSNR().compute([given], device="cpu", job=job(given)).values == {"psnr": 99.0}


def test_ssim_equals_torchmetrics(given):
    from torchmetrics.image import StructuralSimilarityIndexMeasure

    images = pictures(3, seed=2, size=SIZE)
    theirs = StructuralSimilarityIndexMeasure(data_range=1.0)
    expected = theirs(stack(images).double() / 255, stack([given] * 3).double() / 255)
    result = SSIM().compute(images, device="cpu", job=job(given))
    assert result.values["ssim"] == pytest.approx(float(expected), abs=1e-6)
    assert len(result.info["per_image"]) == 3
    assert SSIM().compute([given], device="cpu", job=job(given)).values["ssim"] == pytest.approx(1)


def test_ssim_without_the_border_equals_scikit_image(given, half):
    """With gaussian_weights, sigma 1.5 and without use_sample_covariance: its formula, by scipy's filter."""
    image = pictures(1, seed=2, size=SIZE)[0]

    def blurred(x):
        return gaussian_filter(x, 1.5, truncate=3.5)

    maps = []
    for channel in range(3):
        x, y = (np.asarray(picture, np.float64)[..., channel] / 255 for picture in (image, given))
        mean_x, mean_y = blurred(x), blurred(y)
        var_x, var_y, both = (blurred(a * b) - blurred(a) * blurred(b) for a, b in ((x, x), (y, y), (x, y)))
        above = (2 * mean_x * mean_y + 0.01**2) * (2 * both + 0.03**2)
        maps.append(above / ((mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2)))
    expected = np.stack(maps)[:, 5:-5, 5:-5]
    result = SSIM(border="crop").compute([image], device="cpu", job=job(given))
    assert result.values["ssim"] == pytest.approx(expected.mean(), abs=1e-9)
    assert result.info["averaged_over"] == "pixels 5 and more from the edges"
    reflected = SSIM().compute([image], device="cpu", job=job(given))
    assert reflected.info["comparable"] != result.info["comparable"]
    assert "mirrored" in reflected.info["averaged_over"]
    edge = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    edge[:, :4] = 255
    with pytest.raises(ConfigError, match=r"metrics\.ssim\.border: found 'crop', but region 'drawn'"):
        SSIM("drawn", border="crop").compute([image], device="cpu", job=job(given, Image.fromarray(edge)))
    with pytest.raises(ConfigError, match=r"metrics\.ssim\.border: found 'wrap'"):
        SSIM(border="wrap").check(n_images=1)


@pytest.mark.parametrize("metric", [PSNR, SSIM])
def test_the_kept_region_does_not_see_what_was_drawn(metric, given, half):
    drawn = np.asarray(given).copy()
    drawn[:, 20:] = 255 - drawn[:, 20:]
    changed = Image.fromarray(drawn)
    about = job(given, half)

    def value(region, image):
        return metric(region).compute([image], device="cpu", job=about).values[metric.name]

    assert value("kept", changed) == pytest.approx(99.0 if metric is PSNR else 1.0)
    assert value("drawn", changed) < value("all", changed) < value("kept", changed)
    touched = drawn.copy()
    touched[5:9, 5:9] ^= 64
    assert value("kept", Image.fromarray(touched)) < value("kept", changed)


def test_each_image_is_compared_with_its_own_picture():
    pair = pictures(3, seed=3, size=SIZE)
    result = PSNR().compute(pair, device="cpu", job=job(pair))
    assert result.info["per_image"] == [99.0, 99.0, 99.0]


def test_a_picture_of_another_size_is_resized_as_the_task_does(given):
    from research.tasks.image_to_image import ImageToImage

    large = given.resize((120, 96), Image.Resampling.BICUBIC)

    class Tiny(Model):
        vae_factor, name, family = 4, "tiny", None

        def latent_shape(self, height, width):
            return 4, height // 4, width // 4

    task = ImageToImage("x", large, height=32, width=40)
    task.prepare(Tiny(), 1, parity=False)
    used = task.originals([0])[0]
    assert job(large).inputs([used])[0].tobytes() == used.tobytes()


def test_no_pixels_of_a_region_and_pictures_below_the_window_are_one_line(given):
    with pytest.raises(ConfigError, match=r"metrics\.ssim\.region: found 'drawn', but the mask of image 0"):
        SSIM("drawn").compute([given], device="cpu", job=job(given, Image.new("L", SIZE)))
    with pytest.raises(ConfigError, match="found images of 8 x 8 pixels; accepted are sides from 11"):
        SSIM().compute([given.resize((8, 8))], device="cpu", job=job(given))


def test_perceptual_distance_orders_changes_and_is_0_for_none(tiny_clip, given):
    metric = PerceptualDistance(tiny_clip)
    slightly = Image.blend(given, pictures(1, seed=4, size=SIZE)[0], 0.1)
    other = pictures(1, seed=4, size=SIZE)[0]
    result = metric.compute([given, slightly, other], device="cpu", job=job(given))
    none, little, much = result.info["per_image"]
    assert none == pytest.approx(0, abs=1e-9)
    assert 0 < little < much <= 4
    single = PerceptualDistance(tiny_clip, batch_size=1).compute([other], device="cpu", job=job(given))
    assert single.values["perceptual"] == pytest.approx(much, rel=1e-4)


def test_directional_similarity_is_the_cosine_of_the_two_ways(tiny_clip, given):
    images, prompts = pictures(3, seed=5, size=SIZE), ["a dog", "a dog", "a fox"]
    metric = DirectionalSimilarity("a cat", tiny_clip)
    result = metric.compute(images, prompts, device="cpu", job=job(given))
    features = load_features(tiny_clip)
    clip = features.clip

    def unit(x):
        return torch.nn.functional.normalize(x.double(), dim=1)

    way = unit(clip.embed_images(stack(images))) - unit(clip.embed_images(stack([given])))
    meant = unit(clip.embed_texts(prompts)) - unit(clip.embed_texts(["a cat"]))
    expected = torch.nn.functional.cosine_similarity(way, meant)
    assert result.info["per_image"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert result.info["source_prompts"] == ["a cat"]
    unmoved = metric.compute([given], ["a dog"], device="cpu", job=job(given))
    assert unmoved.values["clip_directional"] == 0
    assert "equal their input" in unmoved.info["warnings"][0]


def test_source_prompts_that_leave_no_way_are_refused(tiny_clip, given):
    with pytest.raises(ConfigError, match="no direction"):
        check_metric(DirectionalSimilarity("a dog", tiny_clip), 3, job(given).config)
    with pytest.raises(ConfigError, match="found 2 sentences for 3 images"):
        check_metric(DirectionalSimilarity(["a", "b"], tiny_clip), 3, job(given).config)
    with pytest.raises(ConfigError, match=r"source_prompt: found \['a', ''\]"):
        check_metric(DirectionalSimilarity(["a", ""], tiny_clip), 2, job(given).config)


@pytest.mark.parametrize("metric", [SSIM(), PSNR(), PerceptualDistance(), DirectionalSimilarity("a cat")])
def test_a_task_without_a_picture_is_refused_when_the_job_is_planned(metric):
    config = {"task": {"_target_": "research.tasks.TextToImage"}, "prompts": ["a dog"]}
    with pytest.raises(ConfigError, match=r"task TextToImage has none; accepted are tasks with one") as raised:
        check_metric(metric, 4, config)
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="needs the job besides its images"):
        metric.compute(pictures(2, seed=0), ["a dog", "a fox"], device="cpu")


def test_a_region_without_a_mask_is_refused_when_the_job_is_planned(given):
    with pytest.raises(ConfigError, match="ImageToImage, which has no mask; accepted is 'all'"):
        check_metric(SSIM("kept"), 1, job(given).config)
    with pytest.raises(ConfigError, match="Did you mean 'kept'"):
        check_metric(SSIM("kep"), 1, job(given).config)


def test_preference_is_the_scaled_cosine(tiny_clip):
    images, prompts = pictures(3, seed=6), ["a dog", "a cat", "a fox"]
    result = PreferenceScore(tiny_clip).compute(images, prompts, device="cpu")
    clip = load_features(tiny_clip).clip
    cosine = torch.nn.functional.cosine_similarity(clip.embed_images(stack(images)), clip.embed_texts(prompts))
    expected = float(clip.model.logit_scale.exp()) * cosine
    assert result.info["per_image"] == pytest.approx(expected.tolist(), rel=1e-4)
    assert PreferenceScore(tiny_clip).compute(images, [""] * 3, device="cpu").values == {}


def test_an_aesthetic_head_is_applied_to_unit_embeddings(tiny_clip, tmp_path):
    weight, bias = torch.linspace(-1, 1, 24)[None], torch.tensor([5.0])
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    torch.save({"weight": weight, "bias": bias}, tmp_path / "head.pth")
    images = pictures(3, seed=7)
    found = [
        AestheticScore(str(tmp_path / name), tiny_clip).compute(images, device="cpu").info["per_image"]
        for name in ("head.safetensors", "head.pth")
    ]
    assert found[0] == found[1]
    embedded = torch.nn.functional.normalize(load_features(tiny_clip)(stack(images)), dim=1)
    assert found[0] == pytest.approx((embedded @ weight[0] + 5).tolist(), rel=1e-4)
    save_file({"weight": weight[:, :5].contiguous(), "bias": bias}, tmp_path / "small.safetensors")
    (tmp_path / "text.pth").write_text("no tensors")
    for name, pattern in (("small.safetensors", "is for 5 features"), ("text.pth", "cannot be read")):
        with pytest.raises(ConfigError, match=pattern):
            AestheticScore(str(tmp_path / name), tiny_clip).compute(images, device="cpu")
    with pytest.raises(ConfigError, match=r"metrics\.aesthetic\.head: the file 'nope' does not exist"):
        AestheticScore("nope", tiny_clip).check(n_images=1)


def test_numbers_of_images_are_read_back_from_a_record(given):
    images = pictures(3, seed=8, size=SIZE)
    info = PSNR().compute(images, device="cpu", job=job(given)).info
    json.dumps(info, allow_nan=False)
    record = {
        "images": [{"file": str(k), "scores": {"inversion_psnr": float(k)}} for k in range(3)],
        "metrics_info": {"psnr": info, "fid": {"n_images": 3}, "old": {"per_image": [1.0]}},
    }
    assert per_image(record) == {"inversion_psnr": [0.0, 1.0, 2.0], "psnr": info["per_image"]}
    assert per_image({}) == {}
