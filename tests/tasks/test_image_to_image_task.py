"""Image to image natively: what it starts from, what it refuses, and that an image depends on nobody else's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from support.task_samples import close, computed, picture, run

from research import Hook, LoopSampler
from research.errors import ConfigError
from research.tasks import DepthToImage, ImageToImage, Inpaint


class Start(Hook):
    def on_start(self, run):
        self.x, self.run = run.x.clone(), run


# --- what it does


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpmpp_2m_karras"])
def test_it_starts_from_the_picture_noised_to_the_first_stage(sd, scheduler):
    start = Start()
    run(sd, ImageToImage("a", picture(), 0.4), [3], scheduler=scheduler, steps=10, hooks=[start])
    stage = start.run.timeline[0]
    assert stage.step == 6
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    clean = (start.x - stage.noise * noise) / stage.signal
    pixels = torch.from_numpy(np.array(picture(), dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = sd.vae.encode(pixels).latent_dist
    # drawn from the posterior, whose spread is a known one
    spread = (clean / sd.vae.config.scaling_factor - posterior.mean) / posterior.std
    assert spread.abs().max() < 5.5
    assert 0.7 < float(spread.std()) < 1.3


def test_an_image_is_the_same_alone_and_in_a_batch(sd):
    images = [picture(seed=1), picture(20, 20, 2), picture(seed=3)]
    prompts, seeds = ["a", "b c", "d"], [4, 4, 9]
    together = run(sd, ImageToImage(prompts, images, 0.6), seeds, scheduler="euler_a")
    for row, seed in enumerate(seeds):
        alone = run(sd, ImageToImage(prompts[row], images[row], 0.6, height=16, width=16), [seed], scheduler="euler_a")
        assert close(together.latents[row], alone.latents[0])
    for size in (1, 2):
        cut = run(sd, ImageToImage(prompts, images, 0.6), seeds, scheduler="euler_a", batch_size=size)
        assert close(cut.latents, together.latents)
        assert cut.prompts == prompts
        assert len(cut.images) == 3


def test_the_encoders_noise_is_an_images_own(sd):
    """One picture for two seeds is encoded twice, with other noise; the same seed twice gives the same twice."""
    start = Start()
    run(sd, ImageToImage("a", picture(), 0.5), [1, 2, 1], hooks=[start])
    assert torch.equal(start.x[0], start.x[2])
    assert not torch.equal(start.x[0], start.x[1])


def test_kinds_of_one_picture_are_one(sd, tmp_path):
    image = picture(16, 16)
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    image.save(tmp_path / "a.png")
    expected = run(sd, ImageToImage("a", image, 0.6)).latents
    for kind in (tmp_path / "a.png", str(tmp_path / "a.png"), array, tensor, [image], array[None], tensor[None]):
        assert torch.equal(run(sd, ImageToImage("a", kind, 0.6)).latents, expected)
    for kind in (array / np.float32(255), tensor / 255, tensor.double() / 255):
        assert torch.allclose(run(sd, ImageToImage("a", kind, 0.6)).latents, expected, atol=1e-3)
    assert torch.equal(run(sd, ImageToImage("a", image.convert("RGBA"), 0.6)).latents, expected)


def test_numbers_that_were_given_are_left_alone(sd):
    for given in (np.random.default_rng(0).random((18, 20, 3), dtype=np.float32), torch.rand(3, 18, 20)):
        before = given.copy() if isinstance(given, np.ndarray) else given.clone()
        run(sd, ImageToImage("a", given, 0.6))
        assert (given == before).all()
    image = picture(18, 20)
    before = image.tobytes()
    run(sd, ImageToImage("a", image, 0.6))
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("size", "made"), [((16, 16), (16, 16)), ((19, 22), (18, 22)), ((2, 2), (2, 2)), ((41, 9), (40, 8))]
)
def test_sizes(sd, size, made):
    result = run(sd, ImageToImage("a", picture(*size), 0.5))
    assert result.images[0].size == made
    assert result.latents.shape[2:] == (made[1] // 2, made[0] // 2)
    said = [w for w in result.warnings if w.startswith("task.image: resized from")]
    assert len(said) == (size != made)


def test_a_size_that_is_asked_for(sd):
    result = run(sd, ImageToImage("a", picture(30, 20), 0.5, height=12, width=18))
    assert result.images[0].size == (18, 12)
    assert result.warnings == ["task.image: resized from 30 x 20 to 18 x 12 pixels."]


def test_what_it_shows(sd):
    result = run(sd, ImageToImage("a", picture(), 0.5), [1, 2, 3], batch_size=2)
    sheet = result.pictures["before_after"]
    # 16 pixels shown eightfold, two columns and three rows, with a margin of 4
    assert sheet.size == (2 * (128 + 4) + 4, 3 * (128 + 4) + 4)
    first = np.asarray(sheet)[4 : 4 + 128 : 8, 4 : 4 + 128 : 8]
    assert (first == np.asarray(picture())).all()


def test_a_picture_turned_by_its_camera(sd, tmp_path):
    image = picture(16, 12)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    found = run(sd, ImageToImage("a", tmp_path / "turned.png", 0.5))
    assert found.images[0].size == (12, 16)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(found.latents, run(sd, ImageToImage("a", turned, 0.5)).latents)


# --- what it refuses


@pytest.fixture
def broken(tmp_path):
    """Files that are no pictures, by name."""
    whole = tmp_path / "whole.png"
    picture(64, 64).save(whole)
    (tmp_path / "truncated.png").write_bytes(whole.read_bytes()[:2000])
    picture(64, 64).save(tmp_path / "whole.jpg")
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:600])
    (tmp_path / "text.png").write_text("no picture\n")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("truncated.png", "cannot be read"),
        ("truncated.jpg", "cannot be read"),
        ("text.png", "is no picture"),
        ("empty.png", "is no picture"),
        ("folder", "is no file"),
        ("missing.png", "does not exist"),
    ],
)
def test_files_that_are_no_pictures(broken, name, found):
    makers = {
        "image": lambda: ImageToImage("a", broken / name),
        "mask": lambda: Inpaint("a", picture(), str(broken / name)),
        "depth_map": lambda: DepthToImage("a", picture(), broken / name),
    }
    for key, make in makers.items():
        with pytest.raises(ConfigError, match=rf"^task\.{key}: .*{found}") as caught:
            make()
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


GREY = np.zeros((16, 16))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, "found None"),
        (True, "found True"),
        (3, "found 3"),
        ({}, "found {}"),
        ([], "an empty list"),
        ("", "does not exist"),
        (np.zeros((16, 16, 3), dtype=np.int64), "int64"),
        (np.full((16, 16, 3), 1.5), "from 1.5 to 1.5"),
        (np.full((16, 16, 3), -0.5), r"from -0.5 to -0.5.*x / 2 \+ 0.5"),
        (np.full((16, 16, 3), 255.0), "from 255 to 255"),
        (np.full((16, 16, 3), np.nan), "NaN"),
        (torch.full((3, 16, 16), float("inf")), "NaN or infinite"),
        (np.zeros((16, 16, 5)), r"shape \[16, 16, 5\]"),
        (np.zeros((3, 0, 16)), "shape"),
        (torch.zeros(16, 16, 3), r"shape \[16, 16, 3\]"),
        (torch.zeros(2, 3, 4, 16, 16), "shape"),
        (np.zeros(5), "shape"),
        ([picture(), picture()], "2 pictures for 3 images"),
        ([picture()] * 4, "4 pictures for 3 images"),
        (np.zeros((2, 16, 16, 3), dtype=np.uint8), "2 pictures for 3 images"),
        ([picture(), "no such file", picture()], "does not exist"),
        (picture(1, 16), "1 x 16 pixels"),
        (object(), "found object"),
    ],
)
def test_pictures_that_are_none(sd, given, found):
    with computed(sd) as calls, pytest.raises(ConfigError, match=rf"^task\.image: .*{found}") as caught:
        run(sd, ImageToImage("a", given, 0.5), [0, 1, 2])
    assert calls == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", ["ignore", None, True, ""])
def test_an_unknown_policy(policy):
    with pytest.raises(ConfigError, match=r"^task\.on_no_steps: found .*accepted: error, identity"):
        ImageToImage("a", picture(), on_no_steps=policy)


@pytest.mark.parametrize(
    ("strength", "steps", "least", "needed"),
    [(0.05, 10, "0.1", 20), (0.3, 3, "0.3333", 4), (0.999, 1, "1", 2), (1e-9, 50, "0.02", 10**9)],
)
def test_the_message_says_what_would_do(sd, strength, steps, least, needed):
    with pytest.raises(
        ConfigError, match=rf"no whole step; accepted is a strength from {least}, or from {needed} steps"
    ):
        run(sd, ImageToImage("a", picture(), strength), steps=steps)


@pytest.mark.parametrize("size", [0, 15, 7.5, True, "16", -2])
def test_sizes_that_are_none(sd, size):
    with pytest.raises(ConfigError, match=r"task\.height: found .* multiple of 2"):
        run(sd, ImageToImage("a", picture(), 0.5, height=size))


def test_prompts_and_labels_are_checked_as_for_other_tasks(sd):
    with pytest.raises(ConfigError, match="prompt: found 2 sentences for 3 seeds"):
        run(sd, ImageToImage(["a", "b"], picture(), 0.5), [1, 2, 3])
    with pytest.raises(ConfigError, match="prompt: found"):
        ImageToImage(None, picture())


@pytest.mark.slow
def test_models_for_other_tasks(sd_inpaint, sd_depth, pixel):
    with pytest.raises(
        ConfigError, match=r"image_to_image needs a UNet that takes the latents alone; .*use task inpaint"
    ):
        run(sd_inpaint, ImageToImage("a", picture()))
    with pytest.raises(ConfigError, match="use task depth_to_image"):
        run(sd_depth, ImageToImage("a", picture()))
    with pytest.raises(ConfigError, match="ImageToImage needs a model that takes text"):
        LoopSampler(pixel, scheduler="ddpm").sample(ImageToImage("a", picture()), seeds=[0], steps=4)


def test_a_scheduler_that_cannot_add_noise(sd):
    with pytest.raises(ConfigError, match="IPNDMScheduler cannot start from a picture"):
        run(sd, ImageToImage("a", picture(), 0.6), scheduler="IPNDMScheduler")
