"""Losses of pixels that are known: a part of a picture, or all of a small one."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import avg_pool2d

from research.arguments import Recorded
from research.checks import check_choice, check_whole_number
from research.errors import ConfigError
from research.guidance.losses.given import GivenPictures
from research.sampling.interfaces import Batch


class Inpainting(Recorded):
    """The squared norm of what an image differs by from the known pixels of a picture, pixels from -1 to 1.

    The negative log-likelihood of diffusion posterior sampling up to its noise level, ``||y - A(x0)||**2`` (arXiv:2209.14687, eq.
    16), with a mask for A: for `DPS`, or for `LossGuidance` with ``normalize="residual"``.

    Args:
        image: the picture; brought to the images' size.
        mask: white (1) where the model draws, black (0) where the picture is known, as in the task ``inpaint``; greys weigh.

    Raises:
        ConfigError: no picture, or a mask that is white all over.
    """

    def __init__(self, image: Any, mask: Any):
        self._image = GivenPictures("guidance.loss.image", image)
        self._mask = GivenPictures("guidance.loss.mask", mask, mask=True, check=self._check_mask)

    def start(self, run: Batch) -> None:
        self._image.start(run)
        self._mask.start(run)

    def __call__(self, pixels: Tensor) -> Tensor:
        """[N] of pixels [N, 3, H, W] in [-1, 1]."""
        return self._weighted(pixels, self._known(pixels)).sum((1, 2, 3))

    def _known(self, pixels: Tensor) -> Tensor:
        return 1 - self._mask.like(pixels)

    def _check_mask(self, mask: Tensor) -> None:
        if bool(((1 - mask).flatten(1).sum(1) == 0).any()):
            raise ConfigError("guidance.loss.mask: found a mask that is white all over; accepted leaves a pixel.")

    def _weighted(self, pixels: Tensor, weight: Tensor) -> Tensor:
        return (weight * (pixels - self._image.like(pixels))).square()


class MaskLoss(Inpainting):
    """The mean squared difference from a picture inside or outside a mask, pixels from -1 to 1: from 0 to 4.

    Args:
        image: the picture; brought to the images' size.
        mask: a picture, white inside; greys weigh.
        keep: "outside", where the mask is black, or "inside".

    Raises:
        ConfigError: no picture, a mask without such pixels, or another ``keep``.
    """

    def __init__(self, image: Any, mask: Any, keep: str = "outside"):
        super().__init__(image, mask)
        self.keep = check_choice("guidance.loss.keep", keep, ("outside", "inside"))

    def _check_mask(self, mask: Tensor) -> None:
        if self.keep == "outside":
            super()._check_mask(mask)

    def __call__(self, pixels: Tensor) -> Tensor:
        """[N] of pixels [N, 3, H, W] in [-1, 1]."""
        weight = self._mask.like(pixels) if self.keep == "inside" else self._known(pixels)
        return self._weighted(pixels, weight).sum((1, 2, 3)) / (3 * weight.square().sum((1, 2, 3)))


class SuperResolution(Recorded):
    """The squared norm of what an image, made small, differs by from a small picture, pixels from -1 to 1.

    As `Inpainting` with the mean over squares of ``factor`` x ``factor`` pixels for A.

    Args:
        image: the small picture. One that is larger than the images' size over ``factor`` is brought to the images' size and
            made small in the same way.
        factor: how many pixels of a side become one, at least 2.

    Raises:
        ConfigError: no picture, another factor, or one that does not divide the sides of the images.
    """

    def __init__(self, image: Any, factor: int = 4):
        self.factor = check_whole_number("guidance.loss.factor", factor, least=2)
        self._image = GivenPictures("guidance.loss.image", image)

    def start(self, run: Batch) -> None:
        self._image.start(run)

    def __call__(self, pixels: Tensor) -> Tensor:
        """[N] of pixels [N, 3, H, W] in [-1, 1]."""
        return (avg_pool2d(pixels, self.factor) - self.small(pixels)).square().sum((1, 2, 3))

    def small(self, pixels: Tensor) -> Tensor:
        """The small pictures [N or 1, 3, H / factor, W / factor] for images of the size of ``pixels`` [N, 3, H, W]."""
        height, width = pixels.shape[2:]
        if height % self.factor or width % self.factor:
            raise ConfigError(
                f"guidance.loss.factor: found {self.factor}; accepted divides the sides of the images, {height} x {width}."
            )
        small = (height // self.factor, width // self.factor)
        if self._image.size() == small:
            return self._image.like(pixels, *small)
        return avg_pool2d(self._image.like(pixels), self.factor)
