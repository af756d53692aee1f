"""`research.pictures`: one reading of pictures for all tasks and hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.task_samples import left_half, picture, soft

from research import pictures
from research.errors import ConfigError
from research.metrics.reference import image_files, open_all

SIDES = st.integers(2, 40)


@settings(deadline=None)
@given(width=SIDES, height=SIDES, factor=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_pixels_are_those_of_the_image_processor(width, height, factor, seed):
    image = picture(width, height, seed)
    array = np.random.default_rng(seed).random((height, width, 3))
    processor = VaeImageProcessor(vae_scale_factor=factor)
    for given_picture in (image, array, array.astype(np.float32), torch.from_numpy(array).permute(2, 0, 1)):
        found = pictures.to_pixels("k", pictures.read("k", given_picture, 1), factor)
        assert torch.equal(found, processor.preprocess(given_picture).float())
        assert found.shape == (1, 3, height - height % factor, width - width % factor)
        assert -1 <= float(found.min()) <= float(found.max()) <= 1


@settings(deadline=None)
@given(width=SIDES, height=SIDES, binary=st.booleans(), seed=st.integers(0, 99))
def test_masks_are_those_of_the_image_processor(width, height, binary, seed):
    processor = VaeImageProcessor(vae_scale_factor=2, do_normalize=False, do_binarize=binary, do_convert_grayscale=True)
    for mask in (soft(width, height, seed), picture(width, height, seed)):
        found = pictures.to_masks(pictures.read("k", mask, 1, mask=True), 2, 16, 12, binary=binary)
        assert torch.equal(found, processor.preprocess(mask, height=16, width=12))
        assert found.shape == (1, 1, 16, 12)
        if binary:
            assert set(found.unique().tolist()) <= {0.0, 1.0}


def test_one_or_one_an_image():
    assert len(pictures.read("k", picture(), 5)) == 1
    assert len(pictures.read("k", [picture()] * 5, 5)) == 5
    assert len(pictures.read("k", np.zeros((5, 8, 8, 3)), 5)) == 5
    with pytest.raises(
        ConfigError, match=r"^k: found 2 pictures for 5 images; accepted is one for all, or one an image"
    ):
        pictures.read("k", (picture(), picture()), 5)


def test_mixed_kinds_go_together():
    mixed = [picture(), np.zeros((20, 12, 3)), torch.zeros(3, 16, 16), np.zeros((9, 9, 3), dtype=np.uint8)]
    found = pictures.to_pixels("k", pictures.read("k", mixed, 4), 2)
    assert found.shape == (4, 3, 16, 16)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes(mode):
    image = picture().convert("L" if mode in ("1", "LA", "P") else "RGB").convert(mode)
    (found,) = pictures.read("k", image, 1)
    assert found.mode == "RGB"
    (mask,) = pictures.read("k", image, 1, mask=True)
    assert mask.mode in ("1", "L", "RGB")


def test_modes_that_are_not_read():
    with pytest.raises(ConfigError, match=r"^k: found a picture of mode LAB; accepted are those of 8 bits"):
        pictures.read("k", Image.new("LAB", (4, 4)), 1)


def test_deep_greys_are_read_as_they_look():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = {"I;16": grey.astype(np.uint16) * 257, "I": grey.astype(np.int32) * 257, "F": grey.astype(np.float32) / 255}
    for mode, values in deep.items():
        image = Image.fromarray(values)
        assert image.mode == mode
        for mask in (False, True):
            (found,) = pictures.read("k", image, 1, mask=mask)
            assert np.array_equal(np.asarray(found.convert("L")), grey)
    with pytest.raises(ConfigError, match=r"^k: found a grey picture with values from -1 "):
        pictures.read("k", Image.fromarray(np.full((4, 4), -1.0, dtype=np.float32)), 1)


def test_masks_may_be_booleans():
    array = np.asarray(left_half()) > 0
    for mask in (array, torch.from_numpy(array), torch.from_numpy(array)[None]):
        (found,) = pictures.read("k", mask, 1, mask=True)
        assert torch.equal(found, torch.from_numpy(array)[None].float())
    with pytest.raises(ConfigError, match="bool"):
        pictures.read("k", np.zeros((4, 4, 3), dtype=bool), 1)


def test_numbers_are_copied():
    array = np.full((4, 4), 0.4)
    (found,) = pictures.read("k", array, 1, mask=True)
    found.zero_()
    assert (array == 0.4).all()
    tensor = torch.full((3, 4, 4), 0.4)
    pictures.read("k", tensor, 1)[0].zero_()
    assert (tensor == 0.4).all()


def test_gradients_and_strange_layouts_are_no_trouble():
    tensor = torch.rand(3, 8, 8, requires_grad=True)
    turned = np.random.default_rng(0).random((8, 6, 3))[::-1, ::-1]
    for given_picture in (tensor, turned, np.asfortranarray(turned)):
        assert not pictures.to_pixels("k", pictures.read("k", given_picture, 1), 2).requires_grad


def test_a_side_that_is_smaller_than_the_factor():
    with pytest.raises(ConfigError, match=r"^k: found a picture of 7 x 20 pixels; accepted are sides from 8"):
        pictures.to_pixels("k", pictures.read("k", picture(7, 20), 1), 8)


def test_size_of_any_kind():
    image, array, tensor = (
        pictures.read("k", g, 1)[0] for g in (picture(6, 4), np.zeros((4, 6, 3)), torch.zeros(3, 4, 6))
    )
    assert [pictures.size(p) for p in (image, array, tensor)] == [(6, 4)] * 3
    assert [pictures.as_image(p).size for p in (image, array, tensor)] == [(6, 4)] * 3
    assert np.asarray(pictures.as_image(pictures.read("k", np.asarray(picture()) / 255, 1)[0])).tolist() == (
        np.asarray(picture()).tolist()
    )


# --- files


def test_a_path_with_a_home_folder(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pictures.find("k", "~/a.png") == tmp_path / "a.png"


def test_pictures_of_the_zoo():
    names = pictures.zoo.picture_names()
    assert names
    for name in names:
        assert pictures.open_picture("k", f"zoo:{name}").size[0] >= 16
    with pytest.raises(ConfigError, match=rf"^k: the zoo has no picture 'zoo:{names[0][:-1]}'.* Did you mean"):
        pictures.find("k", f"zoo:{names[0][:-1]}")


def test_a_picture_that_is_a_bomb(tmp_path, monkeypatch):
    picture(64, 64).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ConfigError, match=r"^k: .*large\.png cannot be read as a picture"):
        pictures.open_picture("k", tmp_path / "large.png")


@pytest.mark.parametrize("given_picture", ["", ".", "no/such/file.png", None, True, 3.5, {}, []])
def test_what_is_checked_without_torch(given_picture):
    with pytest.raises(ConfigError, match=r"^k: .*accepted is") as caught:
        pictures.check("k", given_picture)
    assert "\n" not in str(caught.value)


def test_what_broken_files_say_is_one_line(tmp_path):
    for name, content in {
        "a.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        "b.gif": b"GIF89a" + b"\xff" * 9,
        "c.jpg": b"\xff\xd8\xff\xe0" + b"\0" * 30,
        "d.bmp": b"BM" + b"\xff" * 60,
        "e.webp": b"RIFF\x10\0\0\0WEBPVP8 ",
        "f.tif": b"II*\0" + b"\xff" * 20,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"^k: .*{name}") as caught:
            pictures.open_picture("k", tmp_path / name)
        assert "\n" not in str(caught.value)


# --- as a viewer shows them


def gradient() -> np.ndarray:
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


def as_modes() -> dict[str, Image.Image]:
    grey = gradient()
    return {
        "L": Image.fromarray(grey),
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "I": Image.fromarray(grey.astype(np.int32) * 257),
        "I of 8 bits": Image.fromarray(grey.astype(np.int32)),
        "F": Image.fromarray(grey.astype(np.float32) / 255),
        "F of 8 bits": Image.fromarray(grey.astype(np.float32)),
        "LA": Image.merge("LA", [Image.fromarray(grey), Image.new("L", (16, 16), 255)]),
        "P": Image.fromarray(grey).convert("P"),
    }


@pytest.mark.parametrize("name", as_modes())
def test_a_grey_picture_is_the_same_however_it_is_kept(name, tmp_path):
    wanted = np.repeat(gradient()[..., None], 3, axis=-1)
    image = as_modes()[name]
    assert np.array_equal(np.asarray(pictures.as_shown(image)), wanted)
    if image.mode != "F":
        suffix = "tiff" if image.mode == "I" else "png"
        image.save(tmp_path / f"x.{suffix}")
        with Image.open(tmp_path / f"x.{suffix}") as opened:
            assert np.array_equal(np.asarray(pictures.as_shown(opened)), wanted)


def test_what_is_transparent_stands_on_white():
    hidden = Image.new("RGBA", (4, 4), (200, 10, 10, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 200, 10] * 256)
    palette.info["transparency"] = 0
    assert {pictures.as_shown(hidden).getpixel((0, 0)), pictures.as_shown(palette).getpixel((0, 0))} == {
        (255, 255, 255)
    }
    assert pictures.as_shown(half).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize(
    "image", [Image.fromarray(np.full((4, 4), -3.0, dtype=np.float32)), Image.new("LAB", (4, 4))], ids=["range", "mode"]
)
def test_what_nobody_can_say_how_it_looks(image):
    with pytest.raises(ValueError, match=r"a (grey )?picture"):
        pictures.as_shown(image)


def test_references_are_read_as_they_look(tmp_path):
    for name, values in {"of_8": gradient(), "of_16": gradient().astype(np.uint16) * 257}.items():
        (tmp_path / name).mkdir()
        Image.fromarray(values).save(tmp_path / name / "x.png")
    one, other = (next(open_all(image_files(tmp_path / name), "key")) for name in ("of_8", "of_16"))
    assert np.array_equal(np.asarray(one), np.asarray(other))
