"""Inpainting with any model: outside the mask, the latents are put back after each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from research import pictures
from research.errors import ConfigError
from research.sampling.hooks import Hook
from research.sampling.noise import HOOK
from research.sampling.run import Run, StepState


class MaskComposite(Hook):
    """After each step, latents outside the mask become the picture's own, noised to the level the step led to.

    One noise tensor serves the whole run, that of the start latents; after the last step the picture's latents are clean.
    (The known part of RePaint, arXiv:2201.09865, eq. 8a, as diffusers' inpainting pipeline does it with four channels.)

    Args:
        mask: a picture of any kind that `research.pictures.read` takes, white (1) where the model draws and black (0) where the
            picture stays; greys mix. With ``latents``: a tensor [N or 1, 1, h, w] in [0, 1] of the latents' size.
        image: the picture to keep, encoded when the run starts.
        latents: its latents [N, C, h, w] instead.
        noise: standard normal noise [N, C, h, w] instead of that of the start latents.

    Raises:
        ConfigError: neither or both of image and latents are given, or sizes do not match.
    """

    order = 500

    def __init__(
        self, mask: Any, image: Any = None, *, latents: Tensor | None = None, noise: Tensor | None = None
    ):
        if (image is None) == (latents is None):
            raise ConfigError(
                "hooks.mask_composite: found neither or both of image and latents; accepted is one of them."
            )
        self.mask, self.image, self.latents, self.noise = mask, image, latents, noise
        for name, tensor in (
            ("latents", latents),
            ("noise", noise),
            ("mask", None if latents is None else mask),
        ):
            if tensor is not None and not isinstance(tensor, Tensor):
                beside = " beside latents" if name == "mask" else ""
                raise ConfigError(
                    f"hooks.mask_composite.{name}: found {type(tensor).__name__}; accepted{beside} is a tensor."
                )
        if image is not None:
            pictures.check("hooks.mask_composite.image", image)
            pictures.check("hooks.mask_composite.mask", mask)

    def on_start(self, run: Run) -> None:
        x = run.x
        clean, mask = (self.latents, self.mask) if self.latents is not None else self._encoded(run)
        for name, tensor, channels in (("latents", clean, x.shape[1]), ("mask", mask, 1)):
            fits = tensor.shape[0] in (1, len(x)) and tensor.shape[1:] == (channels, *x.shape[2:])
            if not fits:
                raise ConfigError(
                    f"hooks.mask_composite.{name}: found the shape {list(tensor.shape)}; accepted here is "
                    f"{[len(x), channels, *x.shape[2:]]}."
                )
        noise = run.start_noise if self.noise is None else self.noise
        if noise is None:  # a task that starts from something else than noise
            noise = run.noise.draw(f"{HOOK}/mask_composite", x.shape[1:], x.dtype)
        self._clean, self._mask, self._noise = (
            tensor.to(x.device, x.dtype).expand(len(x), -1, -1, -1) for tensor in (clean, mask, noise)
        )

    def post_step(self, state: StepState) -> None:
        run = state.run
        after = state.stage.index + 1
        level = run.timeline[after] if after < len(run.timeline) else None
        known = run.solver.add_noise(self._clean, self._noise, level)
        state.x = (1 - self._mask) * known + self._mask * state.x

    def _encoded(self, run: Run) -> tuple[Tensor, Tensor]:
        factor = run.model.vae_factor  # type: ignore[attr-defined]
        height, width = (side * factor for side in run.x.shape[2:])
        images, masks = (
            [given[row] for row in run.rows] if len(given) > 1 else given
            for given in (
                pictures.read("hooks.mask_composite.image", self.image, run.n_images),
                pictures.read("hooks.mask_composite.mask", self.mask, run.n_images, mask=True),
            )
        )
        pixels = pictures.to_pixels("hooks.mask_composite.image", images, factor, height, width)
        grey = pictures.to_masks(masks, factor, height, width, binary=False)
        return run.model.encode(run, pixels, f"{HOOK}/mask_composite_image"), at_latent_size(grey, factor)


def at_latent_size(mask: Tensor, factor: int) -> Tensor:
    """A mask [K, 1, H, W] at the size of the latents [K, 1, H / factor, W / factor]: each takes the largest of its pixels.

    So that a mask of one pixel does not vanish, as it may when only each ``factor``-th pixel is looked at.
    """
    return torch.nn.functional.max_pool2d(mask, factor)
