"""What pictures of any mode look like: deep greys, palettes, LAB, CMYK and what is transparent, as RGB or as a mask of 8 bits.

What is not certain to be what was meant is said: ``say`` is called with a line that begins with the picture as its subject.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageColor, ImageOps

if TYPE_CHECKING:
    import numpy as np

Say = Callable[[str], None]
WHITE = "white"
_SHOWN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_LOSSY = ("JPEG", "MPO")  # there a value of 1 is black with an error
_ALIKE = 3  # of 255: channels of a grey
_DIM = 128  # of 255: a mask that is nowhere lighter selects nothing wholly


def quiet(message: str) -> None:
    """Say nothing."""


def as_shown(image: Image.Image, *, background: str = WHITE, say: Say = quiet) -> Image.Image:
    """A picture as a viewer shows it, as RGB of 8 bits: turned as its EXIF data say, greys of 16 bits and of floats scaled down,
    what is transparent on ``background``. Plain ``convert("RGB")`` clips deep greys to white and shows colours that are hidden.

    Args:
        image: of any mode.
        background: a colour as Pillow names them: "white", "#20b2aa", "rgb(0, 0, 0)".
        say: told what is composited, and which colour profile is not applied.

    Raises:
        ValueError: a mode or a range of values that says nothing about what is shown, or no colour.
        OSError: the file that the picture is read from is broken.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return deep_grey(image).convert("RGB")
    if image.mode not in _SHOWN:
        raise ValueError(f"a picture of mode {image.mode}, of which it is not known how it looks")
    if is_transparent(image):
        say(f"its transparent parts are shown on {background}")
        colours = image.convert("RGBA")
        under = Image.new("RGBA", image.size, (*colour(background), 255))
        return Image.alpha_composite(under, colours).convert("RGB")
    if image.mode in ("LAB", "CMYK"):
        return _by_profile(image, say)
    if profile := _other_profile(image):
        say(f"its colour profile {profile!r} is not applied, its numbers are read as sRGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def as_mask(image: Image.Image, *, say: Say = quiet) -> Image.Image:
    """A picture as a mask of 8 bits, white where it selects: of mode "1", "L", or "RGB" of which the luminance is meant.

    Labels 0 and 1 of any integer kind are black and white. A picture with transparent parts selects these (as erased by an
    eraser) unless it is a mask in black and white itself, of which the transparent parts are black.

    Args:
        image: of any mode.
        say: told how it is understood, where that is not as a viewer shows it, and a mask that selects nothing or everything.

    Raises:
        ValueError, OSError: as of `as_shown`.
    """
    lossy = image.format in _LOSSY
    image = ImageOps.exif_transpose(image)
    if not lossy and (labels := _labels(image)) is not None:
        say("the values 0 and 1 are understood as labels, 1 is white")
        mask = labels
    elif is_transparent(image):
        mask = _of_alpha(image, say)
    elif image.mode.startswith(("I", "F")):
        mask = deep_grey(image)
    elif image.mode in ("1", "L", "RGB"):
        mask = image.copy()
    elif image.mode in ("LAB", "CMYK"):
        mask = as_shown(image).convert("L")
    elif image.mode in _SHOWN:
        mask = image.convert("L")
    else:
        raise ValueError(f"a picture of mode {image.mode}, of which it is not known how it looks")
    low, high = extrema(mask)
    say_selected(low / 255, high / 255, say)
    return mask


def say_selected(low: float, high: float, say: Say) -> None:
    """Say of a mask with values from ``low`` to ``high``, within 0 and 1, that it selects nothing, everything, or little."""
    if high == 0:
        say("all black, nothing is drawn and the picture stays")
    elif low == 1:
        say("all white, nothing of the picture is kept")
    elif high < _DIM / 255:
        say(f"nowhere lighter than {high:.2g} of white, so that the picture shows through all of it")


def extrema(image: Image.Image) -> tuple[int, int]:
    """The lowest and the highest value of a picture of 8 bits a channel, of its luminance if it has several."""
    low, high = (image if image.mode in ("1", "L") else image.convert("L")).getextrema()
    return int(low), int(high)  # type: ignore[arg-type]  # of one channel they are numbers


def is_transparent(image: Image.Image) -> bool:
    """Whether a part of a picture can be seen through; an alpha channel that is full everywhere hides nothing."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        low: Any = image.getchannel("a" if image.mode in ("La", "RGBa") else "A").getextrema()[0]
        return bool(low < 255)
    return "transparency" in image.info and is_transparent(image.convert("RGBA"))


def colour(name: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour as Pillow names them.

    Raises:
        ValueError: it is none.
    """
    found = ImageColor.getrgb(name)
    return found[0], found[1], found[2]


def deep_grey(image: Image.Image) -> Image.Image:
    """A grey picture of whole numbers or floats at 8 bits, by the range that such pictures have: 8 or 16 bits, or 0 to 1.

    Raises:
        ValueError: values of another range.
    """
    import numpy as np

    kind = "sixteen" if image.mode.startswith("I;16") else "integer" if image.mode == "I" else "float"
    return Image.fromarray(to_bytes(np.asarray(image, dtype=np.float64), kind))


def to_bytes(values: np.ndarray, kind: str) -> np.ndarray:
    """Numbers as uint8, by the range that pictures of their kind have.

    Args:
        values: of any shape.
        kind: "sixteen" (0 to 65535), "integer" (0 to 255, or to 65535 where one is above 255) or "float" (0 to 1, or to 255
            where one is above 1).

    Raises:
        ValueError: values of another range, or NaN.
    """
    import numpy as np

    wide = values.astype(np.float64)
    low, high = float(wide.min(initial=0.0)), float(wide.max(initial=0.0))
    sixteen = kind == "sixteen" or (kind == "integer" and high > 255)
    top = 65535.0 if sixteen else 1.0 if kind == "float" and high <= 1 else 255.0
    if not (low >= 0 and high <= top):  # also of NaN
        raise ValueError(
            f"a grey picture with values from {low:g} to {high:g}; accepted are 0 to 255, to 65535, or to 1 of floats"
        )
    return np.round(wide * (255.0 / top)).astype(np.uint8)


def _labels(image: Image.Image) -> Image.Image | None:
    """A picture of the labels 0 and 1 as black and white; None if it is not one."""
    if is_transparent(image):
        return None
    if image.mode == "P":
        palette = [*(image.getpalette("RGB") or []), *[0] * 6]
        # a palette that says black and white, or white and black, is meant as it looks
        as_it_looks = max(palette[:3]) > 0 or max(palette[3:6]) > 250
        return None if as_it_looks or image.getextrema() != (0, 1) else image.point([0] + [255] * 255, "L")
    if image.mode not in ("L", "RGB") and not image.mode.startswith("I"):
        return None
    ranges: Any = image.getextrema()
    bands = [ranges] if not isinstance(ranges[0], tuple) else list(ranges)
    if min(band[0] for band in bands) < 0 or max(band[1] for band in bands) != 1:
        return None
    import numpy as np

    values = np.asarray(image)
    lit = values.max(axis=-1) if values.ndim == 3 else values
    return Image.fromarray((lit > 0).astype(np.uint8) * 255)


def _of_alpha(image: Image.Image, say: Say) -> Image.Image:
    """The mask of a picture with transparent parts."""
    import numpy as np

    colours = np.asarray(image.convert("RGBA"))
    alpha = colours[..., 3]
    seen = colours[alpha > 0][:, :3].astype(np.int16)
    # black and white, up to the greys of edges, and some of it white: a mask whose black is left out
    grey = seen.size == 0 or int((seen.max(axis=1) - seen.min(axis=1)).max()) <= _ALIKE
    clear = seen.size > 0 and float(((seen <= 8) | (seen >= 247)).mean()) > 0.9
    if seen.size and grey and clear and int(seen.max()) >= 247:
        say("its transparent parts are black (they are drawn where a mask has colours)")
        under = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(under, image.convert("RGBA")).convert("L")
    say("the mask is its alpha channel: what is transparent is white, to be drawn")
    return Image.fromarray(255 - alpha)


def _by_profile(image: Image.Image, say: Say) -> Image.Image:
    """LAB, and CMYK that brings its profile, in sRGB."""
    from PIL import ImageCms

    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        found = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, srgb, "LAB", "RGB"))
        assert found is not None  # only of transforms in place
        return found
    profile = image.info.get("icc_profile")
    if profile:
        try:
            made = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb, outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError):
            made = None
        if made is not None:
            return made
    say("its inks (CMYK) have no colour profile, so that its colours are near what a print shows")
    return image.convert("RGB")


def _other_profile(image: Image.Image) -> str | None:
    """The name of a colour profile that is not sRGB; None of greys, whose profiles say little."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode in ("1", "L", "LA"):
        return None
    from PIL import ImageCms

    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, OSError):
        return None
    return None if "srgb" in name.lower() or not name.isprintable() else name[:60]
