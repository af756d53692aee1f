"""The pictures that tasks and hooks are given: PIL images, files, arrays and tensors, read and checked alike everywhere.

A file is named by its path, or as ``zoo:NAME`` if it is one of the pictures that come with the package.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from PIL import Image, ImageOps, UnidentifiedImageError

from research import zoo
from research.errors import ConfigError, nearest

if TYPE_CHECKING:
    import numpy as np
    from diffusers.image_processor import VaeImageProcessor
    from torch import Tensor

    # a tensor is [C, H, W], an array [H, W, 3], floats in [0, 1]
    Picture = Image.Image | Tensor | np.ndarray

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
_ACCEPTED = (
    "a path, a PIL image, an array [H, W, 3] or a tensor [3, H, W] (uint8, or floats from 0 to 1), "
    "or a list with one an image"
)


def read(key: str, given: object, n_images: int, *, mask: bool = False) -> list[Picture]:
    """Pictures as the tasks use them: one for all images, or one an image.

    Args:
        key: how messages call it ("task.image").
        given: a path (or "zoo:NAME"), a PIL image, an array [H, W, 3] or [N, H, W, 3], a tensor [3, H, W] or [N, 3, H, W], a
            list of these. Arrays and tensors are uint8 from 0 to 255, or floats from 0 to 1.
        n_images: how many images are to be made.
        mask: one channel is enough, and booleans are accepted.

    Returns:
        Pictures of 8 bits as PIL images (RGB unless they are masks), greys of 16 bits and of floats brought to 8; floats as
        copies in [0, 1], tensors [3 or 1, H, W] or arrays [H, W, 3].

    Raises:
        ConfigError: no picture, a file that is missing or none, values out of range, or neither one nor ``n_images`` of them.
    """
    parts = list(given) if isinstance(given, list | tuple) else _rows(given)
    if len(parts) not in (1, n_images):
        raise ConfigError(
            f"{key}: found {len(parts)} pictures for {n_images} images; accepted is one for all, or one an image."
        )
    return [_read_one(key, part, mask) for part in parts]


def check(key: str, given: object) -> None:
    """Check the files among ``given`` without torch: they are there, and they are pictures.

    Raises:
        ConfigError: they are not.
    """
    parts = given if isinstance(given, list | tuple) else [given]
    if not parts:
        raise ConfigError(f"{key}: found an empty list; accepted is {_ACCEPTED}.")
    for part in parts:
        if isinstance(part, str | Path):
            open_picture(key, part)
        elif part is None or isinstance(part, bool | int | float | dict):
            raise ConfigError(f"{key}: found {part!r}; accepted is {_ACCEPTED}.")


def find(key: str, name: str | Path) -> Path:
    """The file of a path or of "zoo:NAME".

    Raises:
        ConfigError: there is none.
    """
    text = str(name)
    if text.startswith("zoo:"):
        found = zoo.picture_path(text.removeprefix("zoo:"))
        if found is None:
            names = ", ".join(zoo.picture_names())
            near = nearest(text.removeprefix("zoo:"), zoo.picture_names())
            raise ConfigError(f"{key}: the zoo has no picture {text!r}.{near} Accepted: zoo: and one of {names}.")
        return Path(found)
    path = Path(name).expanduser()
    if not text or not path.exists():
        raise ConfigError(f"{key}: the file {text!r} does not exist; accepted is {_ACCEPTED}.")
    if not path.is_file():
        raise ConfigError(f"{key}: {text!r} is no file; accepted is {_ACCEPTED}.")
    return path


def open_picture(key: str, name: str | Path) -> Image.Image:
    """The picture in a file, turned as its EXIF data say.

    Raises:
        ConfigError: the file is missing, no picture, or broken.
    """
    path = find(key, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ConfigError(f"{key}: {path} is no picture that Pillow can read.") from None
    # what decoders raise on broken files is no closed list
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{key}: {path} cannot be read as a picture: {reason}") from error


def as_shown(image: Image.Image) -> Image.Image:
    """A picture as a viewer shows it, as RGB of 8 bits: turned as its EXIF data say, greys of 16 bits and of floats scaled down,
    what is transparent on white. Plain ``convert("RGB")`` clips deep greys to white and shows colours that are hidden.

    Raises:
        ValueError: a mode or a range of values that says nothing about what is shown.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith(("I", "F")):
        return _deep_grey(image).convert("RGB")
    if image.mode not in _MODES:
        raise ValueError(f"a picture of mode {image.mode}, of which it is not known how it looks")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """A grey picture of whole numbers or floats at 8 bits, by the range that such pictures have: 8 or 16 bits, or 0 to 1."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and high > 255)
    top = 65535.0 if sixteen else 1.0 if image.mode == "F" and high <= 1 else 255.0
    if not (low >= 0 and high <= top):
        raise ValueError(
            f"a grey picture with values from {low:g} to {high:g}; accepted are 0 to 255, to 65535, or to 1 of floats"
        )
    return Image.fromarray(np.round(values * (255.0 / top)).astype(np.uint8))


def _rows(given: object) -> list[object]:
    """The pictures of an array or tensor with a batch axis, or the one that was given."""
    return list(cast("Iterable[object]", given)) if getattr(given, "ndim", 0) == 4 else [given]


def _read_one(key: str, given: object, mask: bool) -> Picture:
    if isinstance(given, str | Path):
        return _image(key, open_picture(key, given), mask)
    if isinstance(given, Image.Image):
        return _image(key, ImageOps.exif_transpose(given), mask)
    import numpy as np
    import torch

    if isinstance(given, np.ndarray | torch.Tensor):
        return _numbers(key, given, mask)
    raise ConfigError(f"{key}: found {type(given).__name__} {given!r:.60}; accepted is {_ACCEPTED}.")


def _image(key: str, image: Image.Image, mask: bool) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        try:
            image = _deep_grey(image)
        except ValueError as error:
            raise ConfigError(f"{key}: found {error}.") from error
    if image.mode not in _MODES:
        raise ConfigError(
            f"{key}: found a picture of mode {image.mode}; accepted are those of 8 bits a channel, and deep greys."
        )
    if image.width < 1 or image.height < 1:
        raise ConfigError(f"{key}: found an empty picture, {image.width} x {image.height}.")
    # masks are turned grey after they are resized, as pipelines do
    return image if mask and image.mode in ("1", "L", "RGB") else image.convert("L" if mask else "RGB")


def _numbers(key: str, given: Tensor | np.ndarray, mask: bool) -> Picture:
    import numpy as np
    import torch

    is_array = isinstance(given, np.ndarray)
    tensor = torch.from_numpy(np.ascontiguousarray(given)) if isinstance(given, np.ndarray) else given.detach().cpu()
    if tensor.ndim == 2:
        tensor = tensor[None]
    elif is_array and tensor.ndim == 3:
        tensor = tensor.permute(2, 0, 1)
    bytes_ = tensor.dtype == torch.uint8
    channels = (1,) if mask and not bytes_ else (1, 3)
    if tensor.ndim != 3 or tensor.shape[0] not in channels or tensor.numel() == 0:
        layout = "[H, W, 3]" if is_array else "[3, H, W]"
        also = " or [H, W]" if mask else ""
        raise ConfigError(f"{key}: found the shape {list(given.shape)}; accepted is {layout}{also}.")
    if tensor.dtype == torch.bool and mask:
        return tensor.float()
    if bytes_:
        array = np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())
        return _image(key, Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array), mask)
    if not tensor.is_floating_point():
        raise ConfigError(f"{key}: found numbers of type {given.dtype}; accepted are uint8, or floats from 0 to 1.")
    if not torch.isfinite(tensor).all():
        raise ConfigError(f"{key}: found NaN or infinite values; accepted are floats from 0 to 1.")
    low, high = float(tensor.min()), float(tensor.max())
    if low < 0.0 or high > 1.0:
        hint = " (pass x / 2 + 0.5 for pixels from -1 to 1)" if low < 0.0 and high <= 1.0 else ""
        raise ConfigError(
            f"{key}: found values from {low:g} to {high:g}; accepted are floats from 0 to 1{hint}, or uint8."
        )
    # wider floats stay so until the picture is resized, as in the pipelines
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    # a copy: binarising works in place, and the numbers are the caller's
    copied = wide.expand(1 if mask else 3, -1, -1).clone()
    # an array keeps its layout in memory, on which the kernels of the encoder depend
    return copied.permute(1, 2, 0).contiguous().numpy() if is_array and not mask else copied


def to_pixels(
    key: str, pictures: Sequence[Picture], factor: int, height: int | None = None, width: int | None = None
) -> Tensor:
    """Pixels [K, 3, H, W] in [-1, 1], resized as diffusers' pipelines do.

    Args:
        key: how messages call it.
        pictures: of `read`.
        factor: sides become multiples of it, rounded down, as for the VAE of a latent model.
        height, width: pixels; those of the first picture by default.

    Raises:
        ConfigError: a side would come out empty.
    """
    import torch

    width_of_first, height_of_first = size(pictures[0])
    height, width = (int(v) - int(v) % factor for v in (height or height_of_first, width or width_of_first))
    if height < 1 or width < 1:
        raise ConfigError(
            f"{key}: found a picture of {width_of_first} x {height_of_first} pixels; accepted are sides from {factor}, the "
            "factor of the VAE."
        )
    # mixed kinds go in one by one; the processor takes a batch of one kind
    processor = _processor(factor)
    return torch.cat([processor.preprocess(_batch(p), height=height, width=width) for p in pictures]).float()


def to_masks(pictures: Sequence[Picture], factor: int, height: int, width: int, *, binary: bool) -> Tensor:
    """Masks [K, 1, height, width] in [0, 1], resized as diffusers' pipelines do; ``binary`` cuts them at 0.5."""
    import torch

    processor = _processor(factor, do_normalize=False, do_binarize=binary, do_convert_grayscale=True)
    return torch.cat([processor.preprocess(_batch(p), height=height, width=width) for p in pictures]).float()


def as_image(picture: Picture) -> Image.Image:
    """A picture of `read` as an RGB image of 8 bits a channel."""
    if isinstance(picture, Image.Image):
        return picture
    import numpy as np

    array = picture if isinstance(picture, np.ndarray) else picture.permute(1, 2, 0).numpy()
    return Image.fromarray((array * 255).round().astype(np.uint8))


def size(picture: Picture) -> tuple[int, int]:
    """Width and height in pixels."""
    if isinstance(picture, Image.Image):
        return picture.size
    height, width = picture.shape[1:] if hasattr(picture, "permute") else picture.shape[:2]
    return int(width), int(height)


def _batch(picture: Picture) -> Picture:
    return picture if isinstance(picture, Image.Image) else picture[None]


def _processor(factor: int, **settings: bool) -> VaeImageProcessor:
    from diffusers.image_processor import VaeImageProcessor

    return VaeImageProcessor(vae_scale_factor=factor, **settings)
