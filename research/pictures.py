"""The pictures that tasks and hooks are given: PIL images, files, arrays and tensors, read and checked alike everywhere.

A file is named by its path, by its URL, or as ``zoo:NAME`` if it is one of the pictures that come with the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from PIL import Image, ImageOps

from research.errors import ConfigError
from research.hashing import sha256_content
from research.picture_files import (
    ACCEPTED,
    MOST_PIXELS,
    errors_named,
    find,
    limit_pixels,
    loaded,
    open_picture,
    picture_size,
)
from research.picture_modes import WHITE, Say, as_mask, as_shown, colour, quiet, say_selected, to_bytes

if TYPE_CHECKING:
    import numpy as np
    from diffusers.image_processor import VaeImageProcessor
    from torch import Tensor

    # a tensor is [C, H, W], an array [H, W, 3], floats in [0, 1]
    Picture = Image.Image | Tensor | np.ndarray

__all__ = [
    "KEYS",
    "MOST_PIXELS",
    "Picture",
    "as_image",
    "as_mask",
    "as_shown",
    "check",
    "check_background",
    "errors_named",
    "find",
    "hashes",
    "limit_pixels",
    "loaded",
    "open_picture",
    "picture_size",
    "read",
    "read_depth",
    "size",
    "to_masks",
    "to_pixels",
]

KEYS = ("image", "mask", "depth_map", "strength_map")  # arguments of tasks and hooks that are pictures


def read(
    key: str, given: object, n_images: int, *, mask: bool = False, background: str = WHITE, say: Say = quiet
) -> list[Picture]:
    """Pictures as the tasks use them: one for all images, or one an image.

    Args:
        key: how messages call it ("task.image").
        given: a path, a URL or "zoo:NAME", a PIL image, an array [H, W, 3] or [N, H, W, 3], a tensor [3, H, W] or [N, 3, H, W],
            a list of these. Arrays and tensors are uint8 from 0 to 255, uint16 to 65535, or floats from 0 to 1; a fourth channel
            is alpha.
        n_images: how many images are to be made.
        mask: one channel is enough; booleans, whole numbers of any type, labels 0 and 1, and an alpha channel are understood
            (see `as_mask`).
        background: the colour that transparent parts are shown on.
        say: told, with the key, how a picture is understood where that is not certain to be what was meant.

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
    reader = _Reader(key, mask, check_background(background), lambda message: say(f"{key}: {message}."))
    return [reader.read(part) for part in parts]


def read_depth(key: str, given: object, *, say: Say = quiet) -> np.ndarray | Tensor:
    """Depth in the numbers in which it was given: deep greys keep theirs, colours are turned grey.

    Args:
        key: how messages call it.
        given: a path, a URL or "zoo:NAME", a PIL image, or numbers, which are handed back.
        say: told how a picture is understood where that is not certain to be what was meant.

    Returns:
        Floats [H, W] of pictures.

    Raises:
        ConfigError: no picture.
    """
    if not isinstance(given, str | Path | Image.Image):
        return cast("Tensor", given)
    import numpy as np

    def told(message: str) -> None:
        say(f"{key}: {message}.")

    name = str(given) if isinstance(given, str | Path) else "the picture"
    image = open_picture(key, given, say=told) if isinstance(given, str | Path) else given
    with errors_named(key, name):
        if image.mode.startswith(("I", "F")):
            return np.asarray(ImageOps.exif_transpose(image), dtype=np.float32)
        shown = as_shown(image, background="black", say=told)
        if image.mode not in ("1", "L", "LA") and not _is_grey(shown):
            told("its colours are turned grey, which is depth only where they are greys")
        return np.asarray(shown.convert("L"), dtype=np.float32)


def check_background(name: object, key: str = "task.background") -> str:
    """The name of a colour.

    Raises:
        ConfigError: it is none.
    """
    try:
        colour(cast("str", name))
    except (ValueError, AttributeError, TypeError):
        raise ConfigError(
            f"{key}: found {name!r}; accepted is a colour as Pillow names it: white, '#20b2aa', 'rgb(0, 0, 0)'."
        ) from None
    return cast("str", name)


def hashes(key: str, section: Mapping[str, object]) -> dict[str, str]:
    """The SHA-256 of the picture files that a section of a config names, by key: ``task.image``, ``task.mask[1]``.

    Raises:
        ConfigError: one is missing.
    """
    found: dict[str, str] = {}
    for name in KEYS:
        given = section.get(name)
        for place, part in enumerate(given if isinstance(given, list | tuple) else [given]):
            where = f"{key}.{name}[{place}]" if isinstance(given, list | tuple) else f"{key}.{name}"
            if isinstance(part, str | Path):
                found[where] = sha256_content(find(where, part))
    return found


def check(key: str, given: object) -> None:
    """Check the files among ``given`` without torch: they are there, and they are pictures.

    Raises:
        ConfigError: they are not.
    """
    parts = given if isinstance(given, list | tuple) else [given]
    if not parts:
        raise ConfigError(f"{key}: found an empty list; accepted is {ACCEPTED}.")
    for part in parts:
        if isinstance(part, str | Path):
            open_picture(key, part)
        elif part is None or isinstance(part, bool | int | float | dict):
            raise ConfigError(f"{key}: found {part!r}; accepted is {ACCEPTED}.")


def _rows(given: object) -> list[object]:
    """The pictures of an array or tensor with a batch axis, or the one that was given."""
    return list(cast("Iterable[object]", given)) if getattr(given, "ndim", 0) == 4 else [given]


class _Reader:
    """Reads pictures, or masks, that one key has."""

    def __init__(self, key: str, mask: bool, background: str, say: Say):
        self.key, self.mask, self.background, self.say = key, mask, background, say

    def read(self, given: object) -> Picture:
        if isinstance(given, str | Path):
            return self._image(open_picture(self.key, given, say=self.say), str(given))
        if isinstance(given, Image.Image):
            return self._image(given, "the picture")
        import numpy as np
        import torch

        if isinstance(given, np.ndarray | torch.Tensor):
            return self._numbers(given)
        raise ConfigError(f"{self.key}: found {type(given).__name__} {given!r:.60}; accepted is {ACCEPTED}.")

    def _image(self, image: Image.Image, name: str) -> Image.Image:
        with errors_named(self.key, name):
            image.load()
        if image.width < 1 or image.height < 1:
            raise ConfigError(f"{self.key}: found an empty picture, {image.width} x {image.height}.")
        try:
            # masks are turned grey after they are resized, as pipelines do
            if self.mask:
                return as_mask(image, say=self.say)
            return as_shown(image, background=self.background, say=self.say)
        except ValueError as error:
            raise ConfigError(f"{self.key}: found {error}.") from error

    def _numbers(self, given: Tensor | np.ndarray) -> Picture:
        import numpy as np
        import torch

        is_array = isinstance(given, np.ndarray)
        array = given if isinstance(given, np.ndarray) else given.detach().cpu()
        whole = (
            array.dtype.kind in "iu"
            if isinstance(array, np.ndarray)
            else not (array.is_floating_point() or array.is_complex() or array.dtype == torch.bool)
        )
        if whole:
            array = self._whole(array if isinstance(array, np.ndarray) else array.numpy(), torch_=not is_array)
        if isinstance(array, np.ndarray):
            if array.dtype.kind not in "fub":
                raise ConfigError(
                    f"{self.key}: found numbers of type {given.dtype}; accepted are whole numbers, or floats from 0 to 1."
                )
            wide = array.astype(np.float32) if array.dtype == np.float16 else array
            tensor = torch.from_numpy(np.ascontiguousarray(wide))
        else:
            tensor = array
        channels_last = is_array or whole
        if tensor.ndim == 2:
            tensor = tensor[None]
        elif channels_last and tensor.ndim == 3:
            first = tensor.shape[0] == 1 and tensor.shape[-1] not in (1, 3, 4)
            tensor = tensor if first else tensor.permute(2, 0, 1)
        bytes_ = tensor.dtype == torch.uint8
        if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or tensor.numel() == 0:
            layout = "[H, W, 3]" if is_array else "[3, H, W]"
            also = " or [H, W]" if self.mask else ""
            raise ConfigError(f"{self.key}: found the shape {list(given.shape)}; accepted is {layout}{also}.")
        if bytes_:
            values = np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())
            return self._image(Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values), "the picture")
        if tensor.dtype == torch.bool:
            if not self.mask:
                raise ConfigError(f"{self.key}: found numbers of type bool; accepted are uint8, or floats from 0 to 1.")
            return self._said(tensor.any(dim=0, keepdim=True).float())
        if not tensor.is_floating_point():
            raise ConfigError(
                f"{self.key}: found numbers of type {given.dtype}; accepted are uint8, or floats from 0 to 1."
            )
        if not torch.isfinite(tensor).all():
            raise ConfigError(f"{self.key}: found NaN or infinite values; accepted are floats from 0 to 1.")
        low, high = float(tensor.min()), float(tensor.max())
        if low < 0.0 or high > 1.0:
            hint = " (pass x / 2 + 0.5 for pixels from -1 to 1)" if low < 0.0 and high <= 1.0 else ""
            raise ConfigError(
                f"{self.key}: found values from {low:g} to {high:g}; accepted are floats from 0 to 1{hint}, or uint8."
            )
        # wider floats stay so until the picture is resized, as in the pipelines
        floats = tensor if tensor.dtype == torch.float64 else tensor.float()
        if self.mask:
            return self._said(self._grey(floats))
        # a copy: binarising works in place, and the numbers are the caller's
        copied = self._on_background(floats).expand(3, -1, -1).clone()
        # an array keeps its layout in memory, on which the kernels of the encoder depend
        return copied.permute(1, 2, 0).contiguous().numpy() if is_array else copied

    def _whole(self, values: np.ndarray, torch_: bool) -> np.ndarray:
        """Whole numbers of any kind as uint8, channels last: labels, bytes, or 16 bits."""
        import numpy as np

        if torch_ and values.ndim == 3:
            values = values.transpose(1, 2, 0)
        if values.dtype == np.uint8 or values.size == 0:
            if not self.mask and values.size and 0 < int(values.max()) <= 1:
                self.say("no value is above 1 of 255, so that it is black; floats are read from 0 to 1")
            return values.astype(np.uint8)
        if not self.mask and values.dtype != np.uint16:
            raise ConfigError(
                f"{self.key}: found numbers of type {values.dtype}; accepted are uint8, uint16, or floats from 0 to 1."
            )
        if self.mask and int(values.min()) >= 0 and int(values.max()) <= 1:
            return values.astype(np.uint8)
        try:
            return to_bytes(values, "sixteen" if values.dtype == np.uint16 else "integer")
        except ValueError as error:
            raise ConfigError(f"{self.key}: found {error}.") from error

    def _grey(self, values: Tensor) -> Tensor:
        """A mask [1, H, W] of floats [C, H, W]: the luminance of three channels, the alpha of four, as of pictures."""
        if len(values) == 1:
            return values.clone()
        if len(values) == 4 and float(values[3].min()) < 1:
            self.say("the mask is its alpha channel: what is transparent is white, to be drawn")
            return 1 - values[3:]
        if bool((values[0] == values[1]).all() and (values[1] == values[2]).all()):
            return values[:1].clone()
        weights = values.new_tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R BT.601, as Pillow's
        return (values[:3] * weights).sum(dim=0, keepdim=True).clamp(0, 1)

    def _said(self, mask: Tensor) -> Tensor:
        say_selected(float(mask.min()), float(mask.max()), self.say)
        return mask

    def _on_background(self, values: Tensor) -> Tensor:
        if len(values) != 4:
            return values
        alpha = values[3:]
        if float(alpha.min()) < 1:
            self.say(f"its transparent parts are shown on {self.background}")
        under = values.new_tensor(colour(self.background))[:, None, None] / 255
        return values[:3] * alpha + under * (1 - alpha)


def _is_grey(image: Image.Image) -> bool:
    import numpy as np

    values = np.asarray(image, dtype=np.int16)
    return int((values.max(axis=-1) - values.min(axis=-1)).max(initial=0)) <= 3


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
