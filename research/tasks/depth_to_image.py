"""Depth to image: from a noised picture and its depth map, with a model that sees the map."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from research import pictures
from research.caches import MIB, Cache
from research.errors import ConfigError
from research.hooks.extra_channels import ExtraChannels
from research.image_tensors import pixels_to_images
from research.sampling.interfaces import Batch, Hook, Model, ModelFacts
from research.tasks.image_to_image import ImageToImage, of_batch
from research.tasks.sheets import side_by_side

_KEY = "task.depth_map"
# a job prepares its task once for itself, and again for each call of the sampler (one for each size of a batch that it tries)
_estimated = Cache("depth maps", 64 * MIB)
_ACCEPTED = "a path, a URL, a PIL image, or an array or tensor [H, W] or [N, H, W] of finite numbers"


class DepthToImage(ImageToImage):
    """Images of sentences that keep the depth of a picture. The UNet takes a depth map as one further input channel.

    Args:
        prompt, image, strength, negative_prompt, height, width, on_no_steps, background: see `ImageToImage`.
        depth_map: relative depth in any range, in the sense the model was trained with: a path, a PIL image, an array or tensor
            [H, W] or [N, H, W]; one for all seeds or one a seed. By default the estimator of the model's directory makes it.
            It is scaled to [-1, 1] picture by picture, and resized to the latents; its sides must be in the picture's ratio.

    Raises:
        ConfigError: a setting is out of range, a picture cannot be read, or the model has no estimator and no map is given.
    """

    name = "depth_to_image"
    roles = ("depth",)

    def __init__(
        self,
        prompt: str | Sequence[str],
        image: Any,
        depth_map: Any = None,
        strength: float = 0.8,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        on_no_steps: str = "error",
        background: str = "white",
    ):
        super().__init__(prompt, image, strength, negative_prompt, height, width, on_no_steps, background)
        self.depth_map = depth_map
        self._given = None if depth_map is None else _read(depth_map, self.note)

    def vectorises(self) -> bool:
        return True

    def check(self, model: ModelFacts, n_images: int) -> None:
        super().check(model, n_images)
        images, pixels = self._read(model, n_images)
        if self._given is None and not model.has_depth:
            raise ConfigError(f"{_KEY}: found none, and {model.name} has no depth estimator; accepted is {_ACCEPTED}.")
        sizes = [(pixels.shape[3], pixels.shape[2]), *map(pictures.size, images)]
        for depth in self._given or ():
            _check_size(depth, sizes)
        if self._given is not None and len(self._given) not in (1, n_images):
            raise ConfigError(
                f"{_KEY}: found {len(self._given)} maps for {n_images} images; accepted is one for all, or one an image."
            )

    def prepare(self, model: Model, n_images: int, *, parity: bool) -> None:
        super().prepare(model, n_images, parity=parity)
        height, width = (side // model.vae_factor for side in self._pixels.shape[2:])
        self._depth = torch.cat([scaled(depth[None], (height, width)) for depth in self._maps(model, parity)])

    def start(self, run: Batch) -> Tensor:
        self._say(run)
        rows = of_batch(self._depth.to(run.model.device, run.model.dtype), run)
        run.task_tensors["depth"] = rows.repeat(len(run.rows) // len(rows), 1, 1, 1)
        return super().start(run)

    def hooks(self, run: Batch) -> Sequence[Hook]:
        return [ExtraChannels(run.task_tensors["depth"])]

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        depth = pixels_to_images(self._depth.expand(-1, 3, -1, -1))
        depths = [depth[k if len(depth) > 1 else 0] for k in range(len(images))]
        return {
            "before_depth_after": side_by_side(
                list(zip(self.originals(range(len(images))), depths, images, strict=True))
            )
        }

    def _maps(self, model: Model, parity: bool) -> Sequence[Tensor]:
        if self._given is not None:
            return self._given
        # from the pictures as they were given, like the pipeline, which also hands floats on as if they were bytes
        images = self._images if parity else [pictures.as_image(i) for i in self._images]
        content = hashlib.sha256()
        for image in images:
            values = np.asarray(image)
            content.update(
                f"{type(image)}{values.shape}{values.dtype}".encode() + np.ascontiguousarray(values).tobytes()
            )
        key = (model.weights_sha256, str(model.dtype), str(model.device), content.digest())
        return _estimated.get(key, lambda: model.depth_maps(images), lambda maps: sum(m.nbytes for m in maps))

    def _say(self, run: Batch) -> None:
        height, width = self._pixels.shape[2:]
        for shape in {tuple(depth.shape) for depth in self._given or ()} - {(height, width)}:
            run.warn(f"{_KEY}: resized, it has {shape[1]} x {shape[0]} pixels and the picture {width} x {height}.")
        if not bool(self._depth.flatten(1).any(dim=1).all()):
            run.warn(f"{_KEY}: constant, so it says nothing about depth.")


def _check_size(depth: Tensor, sizes: Sequence[tuple[int, int]]) -> None:
    """Check a map's size against widths and heights that fit: the picture's as it is used, and as it was given."""
    found = (depth.shape[1], depth.shape[0])
    if any(_alike(found, wanted) for wanted in sizes):
        return
    width, height = sizes[0]
    raise ConfigError(
        f"{_KEY}: found {found[0]} x {found[1]} pixels for a picture of {width} x {height}; accepted is a "
        "map of the picture's size, or with sides in the same ratio."
    )


def _alike(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether sides are in one ratio, but for less than a pixel by which the smaller ones were rounded."""
    for small, large in ((a, b), (b, a)):
        low = max((side - 1) / other for side, other in zip(small, large, strict=True))
        high = min((side + 1) / other for side, other in zip(small, large, strict=True))
        if low < high:
            return True
    return False


def scaled(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth maps [N, h, w] as channels [N, 1, *size] in [-1, 1], as the diffusers pipeline scales them.

    A constant map, on which the pipeline divides by zero, says nothing about depth and becomes 0.
    """
    small = torch.nn.functional.interpolate(depth[:, None].float(), size=size, mode="bicubic", align_corners=False)
    low, high = small.amin(dim=(1, 2, 3), keepdim=True), small.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(
        (high == low).expand_as(small), torch.zeros_like(small), 2.0 * (small - low) / (high - low) - 1.0
    )


def _read(given: Any, say: Callable[[str], None]) -> list[Tensor]:
    parts = given if isinstance(given, list | tuple) else [given]
    return [depth for part in parts for depth in _maps_of(pictures.read_depth(_KEY, part, say=say))]


def _maps_of(given: Any) -> list[Tensor]:
    if not isinstance(given, np.ndarray | Tensor):
        raise ConfigError(f"{_KEY}: found {type(given).__name__}; accepted is {_ACCEPTED}.")
    depth = torch.as_tensor(given).detach().cpu()
    if depth.ndim == 4 and depth.shape[1] == 1:
        depth = depth[:, 0]
    if depth.ndim not in (2, 3) or 0 in depth.shape or depth.is_complex():
        raise ConfigError(f"{_KEY}: found the shape {list(depth.shape)}; accepted is {_ACCEPTED}.")
    if not torch.isfinite(depth.float()).all():
        raise ConfigError(f"{_KEY}: found NaN or infinite values; accepted is {_ACCEPTED}.")
    return [depth.float()] if depth.ndim == 2 else list(depth.float())
