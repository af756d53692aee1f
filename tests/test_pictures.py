"""`research.pictures`: one reading of pictures for all tasks and hooks."""

from __future__ import annotations

import contextlib
import http.server
import io
import socket
import threading
import urllib.parse

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.task_samples import left_half, picture, soft

from research import downloads, pictures, zoo
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


@pytest.mark.brought("Pictures", "greys of 16 bits, whole numbers and floats", "accepted", "")
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
    names = zoo.picture_names()
    assert names
    for name in names:
        assert pictures.open_picture("k", f"zoo:{name}").size[0] >= 16
    with pytest.raises(ConfigError, match=rf"^k: the zoo has no picture 'zoo:{names[0][:-1]}'.* Did you mean"):
        pictures.find("k", f"zoo:{names[0][:-1]}")


@pytest.mark.brought(
    "Pictures", "pictures of more than `runtime.max_pixels` (200 million)", "refused", "before they are decoded"
)
def test_a_picture_that_is_a_bomb(tmp_path, monkeypatch):
    picture(64, 64).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    assert pictures.open_picture("k", tmp_path / "large.png").size == (64, 64)  # Pillow's limit is not the project's
    assert Image.MAX_IMAGE_PIXELS == 2000
    pictures.limit_pixels(4095)
    try:
        with pytest.raises(ConfigError, match=r"^k: .*large\.png .*found 64 x 64 pixels.*runtime\.max_pixels"):
            pictures.open_picture("k", tmp_path / "large.png")
    finally:
        pictures.limit_pixels(pictures.MOST_PIXELS)


@pytest.mark.parametrize("given_picture", ["", ".", "no/such/file.png", None, True, 3.5, {}, []])
def test_what_is_checked_without_torch(given_picture):
    with pytest.raises(ConfigError, match=r"^k: .*accepted is") as caught:
        pictures.check("k", given_picture)
    assert "\n" not in str(caught.value)


@pytest.mark.brought("Pictures", "broken and truncated pictures", "refused", "the file is named")
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


@pytest.mark.parametrize("image", [Image.fromarray(np.full((4, 4), -3.0, dtype=np.float32))], ids=["range"])
def test_what_nobody_can_say_how_it_looks(image):
    with pytest.raises(ValueError, match=r"a (grey )?picture"):
        pictures.as_shown(image)


def test_references_are_read_as_they_look(tmp_path):
    for name, values in {"of_8": gradient(), "of_16": gradient().astype(np.uint16) * 257}.items():
        (tmp_path / name).mkdir()
        Image.fromarray(values).save(tmp_path / name / "x.png")
    one, other = (next(open_all(image_files(tmp_path / name), "key")) for name in ("of_8", "of_16"))
    assert np.array_equal(np.asarray(one), np.asarray(other))


# --- alpha, labels, frames: done right, and said


def heard(given_picture, *, mask=False, background="white"):
    """A picture as it is read, as an array, and what was said of it."""
    said: list[str] = []
    (found,) = pictures.read("k", given_picture, 1, mask=mask, background=background, say=said.append)
    if isinstance(found, Image.Image):
        return np.asarray(found.convert("L") if mask else found), said
    return np.asarray(found), said


def half(kind: str = "uint8") -> np.ndarray:
    """Labels: 1 on the left, 0 on the right."""
    values = np.zeros((16, 16), dtype=kind)
    values[:, :8] = 1
    return values


def indexed(palette: list[int]) -> Image.Image:
    image = Image.frombytes("P", (16, 16), half().tobytes())
    image.putpalette(palette)
    return image


LABELS = {
    "uint8": lambda: half(),
    "int64": lambda: half("int64"),
    "uint16": lambda: half("uint16"),
    "int32 tensor": lambda: torch.from_numpy(half("int32")),
    "int64 tensor [1, H, W]": lambda: torch.from_numpy(half("int64"))[None],
    "bool": lambda: half("bool"),
    "[H, W, 1]": lambda: half("int16")[..., None],
    "[H, W, 3]": lambda: np.repeat(half("int64")[..., None], 3, axis=2),
    "float [H, W, 3]": lambda: np.repeat(half("float32")[..., None], 3, axis=2),
    "float tensor [3, H, W]": lambda: torch.from_numpy(half("float64")).expand(3, -1, -1),
    "L": lambda: Image.fromarray(half()),
    "I;16": lambda: Image.fromarray(half("uint16")),
    "I": lambda: Image.fromarray(half("int32")),
    "F": lambda: Image.fromarray(half("float32")),
    "RGB": lambda: Image.fromarray(np.repeat(half()[..., None], 3, axis=2)),
    "P of VOC": lambda: indexed([0, 0, 0, 128, 0, 0]),
    "P, black and white": lambda: indexed([0, 0, 0, 255, 255, 255]),
    "0 and 255": lambda: half() * 255,
    "0 and 255, int64": lambda: half("int64") * 255,
    "0 and 65535": lambda: half("uint16") * np.uint16(65535),
    "float16": lambda: half("float16"),
}


@pytest.mark.brought(
    "Pictures",
    "masks of 0 and 1, of any whole type, in palettes too",
    "repaired",
    "the values 0 and 1 are understood as labels, 1 is white",
)
@pytest.mark.parametrize("kind", LABELS)
def test_masks_of_labels_are_black_and_white(kind):
    found, said = heard(LABELS[kind](), mask=True)
    assert np.array_equal(found.reshape(16, 16) > 0.5, half() > 0)
    assert float(found.max()) in (1.0, 255.0)
    exact = (
        kind in ("0 and 255", "0 and 255, int64", "0 and 65535", "P, black and white", "bool")
        or "loat" in kind
        or kind == "F"
    )
    assert said == ([] if exact else ["k: the values 0 and 1 are understood as labels, 1 is white."])


@pytest.mark.brought(
    "Pictures", "masks with negative numbers, or beyond 16 bits", "refused", "no range of pictures has them"
)
@pytest.mark.parametrize(
    "wrong", [half("int64") * -1, half("int32") * 70000, half("complex64")], ids=["-1", "70000", "complex"]
)
def test_masks_of_other_numbers_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"^k: found .*accepted"):
        pictures.read("k", wrong, 1, mask=True)


def test_a_lossy_black_mask_has_no_labels(tmp_path):
    Image.fromarray(half()).save(tmp_path / "a.jpg", quality=100)
    found, said = heard(tmp_path / "a.jpg", mask=True)
    assert found.max() <= 2
    assert said == ["k: nowhere lighter than 0.0039 of white, so that the picture shows through all of it."]


def test_a_palette_of_white_and_black_is_meant_as_it_looks():
    found, said = heard(indexed([255, 255, 255, 0, 0, 0]), mask=True)
    assert np.array_equal(found > 0, half() == 0)
    assert said == []


@pytest.mark.brought(
    "Pictures",
    "a mask with transparent parts (the picture, erased where it is to be drawn)",
    "accepted",
    "the mask is its alpha channel: what is transparent is white, to be drawn",
)
def test_a_mask_may_be_the_alpha_channel():
    colours = np.asarray(picture(16, 16))
    for erased in (np.dstack([colours, 255 - half() * 255]), np.dstack([colours / 255.0, 1.0 - half()])):
        for given_picture in (erased, Image.fromarray(erased)) if erased.dtype == np.uint8 else (erased,):
            found, said = heard(given_picture, mask=True)
            assert np.array_equal(found.reshape(16, 16) > 0.5, half() > 0)
            assert said == ["k: the mask is its alpha channel: what is transparent is white, to be drawn."]


@pytest.mark.brought(
    "Pictures", "a mask in black and white with transparent parts", "accepted", "its transparent parts are black"
)
def test_white_strokes_on_nothing_are_a_mask_in_white():
    strokes = np.dstack([np.full((16, 16, 3), 255, np.uint8), half() * 255])
    found, said = heard(Image.fromarray(strokes), mask=True)
    assert np.array_equal(found > 0, half() > 0)
    assert said == ["k: its transparent parts are black (they are drawn where a mask has colours)."]
    _, said = heard(Image.new("RGBA", (16, 16), "white"), mask=True)
    assert said == ["k: all white, nothing of the picture is kept."]


@pytest.mark.brought(
    "Pictures", "a mask that is all black, all white, or nowhere light", "accepted", "so, and what comes of it"
)
@settings(deadline=None)
@given(level=st.integers(0, 255), mode=st.sampled_from(["L", "RGB", "RGBA", "int64", "float"]))
def test_a_mask_that_selects_nothing_or_everything_says_so(level, mode):
    flat = np.full((8, 8), level, dtype=np.uint8)
    given_picture = {
        "L": lambda: Image.fromarray(flat),
        "RGB": lambda: Image.fromarray(flat).convert("RGB"),
        "RGBA": lambda: Image.fromarray(flat).convert("RGBA"),
        "int64": lambda: flat.astype("int64"),
        "float": lambda: flat / 255,
    }[mode]()
    _, said = heard(given_picture, mask=True)
    black, white = any("all black" in line for line in said), any("all white" in line for line in said)
    everything = level == 255 or (level == 1 and mode in ("L", "RGB", "int64"))
    if mode == "RGBA" and level == 1:
        return
    assert (black, white) == (level == 0, everything)
    assert any("nowhere lighter" in line for line in said) == (0 < level < 128 and not everything)


@pytest.mark.brought(
    "Pictures", "pictures with transparent parts", "accepted", "on which colour they are shown (`task.background`)"
)
@pytest.mark.parametrize("background", ["white", "black", "#20b2aa"])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "array", "floats", "tensor"])
def test_what_is_transparent_stands_on_a_colour_of_ones_choice(kind, background):
    logo = np.zeros((16, 16, 4), np.uint8)
    logo[..., :3], logo[4:12, 4:12, 3] = (9, 9, 9), 255
    image = Image.fromarray(logo)
    given_picture = {
        "RGBA": image,
        "LA": image.convert("LA"),
        "P": Image.frombytes("P", (16, 16), (logo[..., 3] // 255).tobytes()),
        "array": logo,
        "floats": logo / 255,
        "tensor": torch.from_numpy(logo).permute(2, 0, 1),
    }[kind]
    if kind == "P":
        given_picture.putpalette([0, 255, 0, 9, 9, 9])
        given_picture.info["transparency"] = 0
    found, said = heard(given_picture, background=background)
    scale = 255 if found.dtype != np.uint8 else 1
    wanted = {"white": (255, 255, 255), "black": (0, 0, 0), "#20b2aa": (0x20, 0xB2, 0xAA)}[background]
    assert tuple(np.round(found[0, 0] * scale).astype(int)) == wanted
    assert tuple(np.round(found[8, 8] * scale).astype(int)) == (9, 9, 9)
    assert said == [f"k: its transparent parts are shown on {background}."]


def test_an_alpha_channel_that_hides_nothing_says_nothing():
    for mode in ("RGBA", "LA", "PA"):
        image = picture().convert("L" if mode != "RGBA" else "RGB").convert(mode)
        found, said = heard(image)
        assert said == []
        assert np.array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("wrong", ["whiet", "", None, 3, "#12"])
def test_a_colour_that_is_none(wrong):
    with pytest.raises(ConfigError, match=r"^task\.background: found .*accepted is a colour"):
        pictures.read("k", picture(), 1, background=wrong)


@pytest.mark.brought("Pictures", "LAB", "accepted", "")
def test_lab_is_read_by_its_colours():
    white = Image.merge("LAB", [Image.new("L", (4, 4), 255), *[Image.new("L", (4, 4), 128)] * 2])
    assert min(pictures.as_shown(white).getpixel((0, 0))) >= 254
    colours = picture(16, 16)
    from PIL import ImageCms

    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    there = ImageCms.applyTransform(colours, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    found, said = heard(there)
    assert np.abs(found.astype(int) - np.asarray(colours)).max() <= 20  # LAB of 8 bits is that coarse
    assert said == []


@pytest.mark.brought(
    "Pictures", "CMYK without a profile, RGB with another profile than sRGB", "accepted", "the profile is not applied"
)
def test_colour_profiles_and_inks_are_said():
    from PIL import ImageCms

    image = picture(8, 8)
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert heard(image)[1] == []
    found, said = heard(picture(8, 8).convert("CMYK"))
    assert said == ["k: its inks (CMYK) have no colour profile, so that its colours are near what a print shows."]
    assert np.array_equal(found, np.asarray(picture(8, 8).convert("CMYK").convert("RGB")))


@pytest.mark.brought("Pictures", "animations, files of several pages", "accepted", "the first of its frames is used")
@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_of_an_animation_the_first_frame_is_used_and_said(suffix, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(
        tmp_path / f"a.{suffix}",
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if suffix == "webp" else {}),
    )
    found, said = heard(tmp_path / f"a.{suffix}")
    assert (found == np.array([255, 0, 0])).all()
    assert said == [f"k: the first of its 3 {'pages' if suffix == 'tiff' else 'frames'} is used."]


def test_sixteen_bits_a_channel_are_read_as_they_look():
    deep = np.asarray(picture(8, 8)).astype(np.uint16) * 257
    assert np.array_equal(heard(deep)[0], np.asarray(picture(8, 8)))
    assert np.array_equal(heard(torch.from_numpy(deep).permute(2, 0, 1))[0], np.asarray(picture(8, 8)))
    said = ["k: no value is above 1 of 255, so that it is black; floats are read from 0 to 1."]
    assert heard(np.repeat(half()[..., None], 3, axis=2))[1] == said


def test_depth_keeps_its_numbers(tmp_path):
    deep = (np.arange(256).reshape(16, 16) * 200).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "d.png")
    assert np.array_equal(pictures.read_depth("k", tmp_path / "d.png"), deep)
    said: list[str] = []
    pictures.read_depth("k", picture(8, 8), say=said.append)
    assert said == ["k: its colours are turned grey, which is depth only where they are greys."]
    said.clear()
    pictures.read_depth("k", Image.fromarray(gradient()).convert("RGB"), say=said.append)
    assert said == []


# --- a picture by its URL


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of this machine, what it was asked for, and what it has."""
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    buffer = io.BytesIO()
    picture(16, 16).save(buffer, format="PNG")
    asked: list[str] = []
    content = {"/a picture.png": (200, "image/png", buffer.getvalue()), "/page": (200, "text/html", b"<html>")}
    content["/large.png"] = (200, "image/png", buffer.getvalue() + bytes(1 << 20))
    content["/elsewhere"] = (302, "file:///etc/passwd", b"")
    content["/moved"] = (302, "/a%20picture.png", b"")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            code, kind, body = content.get(urllib.parse.unquote(self.path), (404, "text/plain", b"no"))
            self.send_response(code)
            self.send_header("Location" if code == 302 else "Content-Type", kind)
            if self.path != "/large.png":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}", asked
    running.shutdown()
    running.server_close()


@pytest.mark.brought("Pictures", "URLs of http and https", "accepted", "fetched once, kept; offline they must be there")
def test_a_url_is_fetched_once_and_offline_says_so(server, monkeypatch):
    address, asked = server
    for name in (f"{address}/a picture.png", f"{address}/a%20picture.png", f"{address}/moved"):
        found, said = heard(name)
        assert np.array_equal(found, np.asarray(picture(16, 16)))
        assert said == []
    assert len(asked) == 4
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert heard(f"{address}/moved")[1] == []
    assert len(asked) == 4
    with pytest.raises(
        ConfigError, match=r"^k: http.*/other was not fetched before, and HF_HUB_OFFLINE asks for no network"
    ):
        pictures.check("k", f"{address}/other")
    assert len(asked) == 4


@pytest.mark.brought(
    "Pictures", "URLs of pages, of files beyond 64 MB, of what is not there", "refused", "nothing is kept"
)
@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/nothing", "the server says 404 Not Found"),
        ("/page", "holds no picture that Pillow can read, the server calls it text/html"),
        ("/large.png", "more than the 0.3 MB that are fetched"),
        ("/elsewhere", "(is not allowed|no address of http or https)"),
    ],
)
def test_a_url_that_is_no_picture_is_one_line_and_not_kept(server, tmp_path, monkeypatch, path, found):
    monkeypatch.setattr(downloads, "MOST_BYTES", 1 << 18)
    with pytest.raises(ConfigError, match=rf"^k: http.*{found}") as caught:
        pictures.check("k", server[0] + path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_urls_that_lead_nowhere(server, monkeypatch):
    monkeypatch.setattr(downloads, "SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(ConfigError, match=r"^k: .*it took more than 0\.3 seconds"):
            pictures.check("k", f"http://127.0.0.1:{port}/slow.png")
    with pytest.raises(ConfigError, match=r"^k: .*cannot be fetched \(.*refused"):
        pictures.check("k", f"http://127.0.0.1:{port}/gone.png")
    with pytest.raises(ConfigError, match=r"^k: http.* cannot be fetched \("):
        pictures.check("k", "http:///no_host.png")
    for other in ("ftp://a/b.png", "file:///etc/passwd", "s3://bucket/a.png"):
        with pytest.raises(ConfigError, match=r"^k: found the address .*accepted are those of http and https"):
            pictures.check("k", other)
