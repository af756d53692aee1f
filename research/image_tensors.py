"""Images as tensors, with their range stated and checked, and the resizing that a network's image processor asks for.

The resizing is written out here, on PIL, rather than taken from transformers' image processor: that one
changes its backend (and with it the numbers) when torchvision happens to be installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from research.errors import ConfigError, SamplingError
from research.picture_modes import as_shown

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def to_uint8(images: Tensor) -> Tensor:
    """Checks a batch ``[N, 3, H, W]`` and returns it as uint8.

    uint8 (0 to 255) passes unchanged; a float in [0, 1] is rounded to one of 256 levels, as in a saved PNG.

    Raises:
        ConfigError: another shape or dtype, a value that is not finite, or a range that is not [0, 1].
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ConfigError(f"images: found shape {tuple(images.shape)}; accepted is [N, 3, H, W].")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ConfigError(f"images: found dtype {images.dtype}; accepted is uint8 (0 to 255) or float in [0, 1].")
    low, high = (float(v) for v in torch.aminmax(images)) if images.numel() else (0.0, 0.0)
    if not (low >= 0.0 and high <= 1.0):  # also false for NaN
        raise ConfigError(
            f"images: found floats from {low:.3g} to {high:.3g}; accepted is uint8 (0 to 255) or float in [0, 1]."
        )
    return (images.float() * 255).round().to(torch.uint8)


def stack(images: Sequence[Image.Image]) -> Tensor:
    """PIL images of one size as a uint8 tensor ``[N, 3, H, W]``."""
    return torch.stack([torch.from_numpy(np.array(as_shown(i))).permute(2, 0, 1) for i in images])


def batches(images: Iterable[Image.Image | Tensor], batch_size: int) -> Iterator[Tensor]:
    """Batches ``[n, 3, H, W]`` of PIL images or tensors ``[3, H, W]``, one image size a batch."""
    waiting: list[Tensor] = []
    for image in images:
        tensor = stack([image])[0] if isinstance(image, Image.Image) else to_uint8(image[None])[0]
        if waiting and (len(waiting) == batch_size or waiting[0].shape != tensor.shape):
            yield torch.stack(waiting)
            waiting = []
        waiting.append(tensor)
    if waiting:
        yield torch.stack(waiting)


class PreprocessRecord(TypedDict):
    """`Preprocess` as it stands in records."""

    shortest_edge: int | None
    size: list[int] | None
    crop: list[int] | None
    mean: list[float]
    std: list[float]
    resample: str


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before the image tower sees it; sizes are (height, width) in pixels."""

    shortest_edge: int | None = None  # keep the aspect ratio
    size: tuple[int, int] | None = None  # or resize to exactly this
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    resample: int = int(Image.Resampling.BICUBIC)  # PIL's filters are antialiased

    @classmethod
    def from_config(cls, file: Path) -> Preprocess:
        """From a CLIP ``preprocessor_config.json``.

        Raises:
            ConfigError: the file is missing, cannot be read, or names no size.
        """
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} cannot be read as a CLIP image processor's config: {error}") from error
        size, edge = None, None
        if config.get("do_resize", True):
            found = config.get("size", {"shortest_edge": 224})
            if isinstance(found, int):  # configs written before 2022
                edge = found
            elif {"height", "width"} <= set(found):
                size = (int(found["height"]), int(found["width"]))
            elif "shortest_edge" in found:
                edge = int(found["shortest_edge"])
            else:
                raise ConfigError(f"{file}: found size {found}; accepted is height and width, or shortest_edge.")
        crop = None
        if config.get("do_center_crop", True):
            found = config.get("crop_size", 224)
            crop = (found, found) if isinstance(found, int) else (int(found["height"]), int(found["width"]))
        mean, std = (0.0,) * 3, (1.0,) * 3
        if config.get("do_normalize", True):
            mean = tuple(config.get("image_mean") or OPENAI_MEAN)
            std = tuple(config.get("image_std") or OPENAI_STD)
        return cls(edge, size, crop, mean, std, int(config.get("resample", Image.Resampling.BICUBIC)))

    def describe(self) -> PreprocessRecord:
        """The settings as plain JSON values, the filter by its name."""
        return {
            "shortest_edge": self.shortest_edge,
            "size": None if self.size is None else list(self.size),
            "crop": None if self.crop is None else list(self.crop),
            "mean": list(self.mean),
            "std": list(self.std),
            "resample": f"PIL {Image.Resampling(self.resample).name.lower()}, antialiased",
        }

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 ``[N, 3, H, W]`` to normalised float32 ``[N, 3, h, w]`` on the CPU."""
        images = images.cpu()
        height, width = self.resized(images.shape[-2], images.shape[-1])
        if (height, width) != tuple(images.shape[-2:]):
            arrays = images.permute(0, 2, 3, 1).numpy()
            resized = [Image.fromarray(a).resize((width, height), Image.Resampling(self.resample)) for a in arrays]
            images = stack(resized)
        if self.crop is not None:
            images = _center_crop(images, *self.crop)
        mean = torch.tensor(self.mean).view(1, 3, 1, 1)
        std = torch.tensor(self.std).view(1, 3, 1, 1)
        return (images.float() / 255 - mean) / std

    def differentiable(self, pixels: Tensor) -> Tensor:
        """The same for pixels [N, 3, H, W] in [0, 1] that a gradient flows through, on their device.

        They are not rounded to 256 levels, and resized by torch's antialiased bicubic filter in place of Pillow's.
        """
        height, width = self.resized(pixels.shape[-2], pixels.shape[-1])
        if (height, width) != tuple(pixels.shape[-2:]):
            pixels = nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
        if self.crop is not None:
            pixels = _center_crop(pixels, *self.crop)
        mean, std = (pixels.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after it is resized, before it is cropped."""
        if self.size is not None:
            return self.size
        if self.shortest_edge is None:
            return height, width
        short, long = min(height, width), max(height, width)
        other = int(self.shortest_edge * long / short)
        return (self.shortest_edge, other) if height <= width else (other, self.shortest_edge)


def _center_crop(images: Tensor, height: int, width: int) -> Tensor:
    found = tuple(images.shape[-2:])
    if found[0] < height or found[1] < width:
        raise ConfigError(f"images: found {found[0]}x{found[1]}, smaller than the crop of {height}x{width}.")
    top, left = (found[0] - height) // 2, (found[1] - width) // 2
    return images[..., top : top + height, left : left + width]


def pixels_to_images(pixels: Tensor) -> list[Image.Image]:
    """PIL images of pixels [N, 3 or 1, H, W] in [-1, 1], rounded as diffusers' image processor does.

    Raises:
        SamplingError: a pixel is not finite.
    """
    if not torch.isfinite(pixels).all():
        raise SamplingError("decode: the decoder returned pixels that are not finite (NaN or infinite).")
    array = (pixels / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
    rounded = (array * 255).round().astype(np.uint8)
    return [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in rounded]


def images_to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Pixels [N, 3, H, W] in [-1, 1] of RGB images of one size."""
    arrays = np.stack([np.asarray(as_shown(image), dtype=np.float32) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1.0
