"""Inpainting with any model: outside the mask, the latents are put back after each step."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from research import pictures
from research.checks import check_choice
from research.errors import ConfigError
from research.sampling.interfaces import Hook, Run, StepState
from research.sampling.noise import HOOK


class Composite(Hook):
    """What hooks share that put a picture's own latents back after each step: the picture, a map of where, and the noise.

    One noise tensor serves a run that goes through its stages once, that of the start latents, as in diffusers' inpainting
    pipelines. A run that goes back (`RePaint`, `Restart`) draws afresh at each step, as RePaint's published code does
    (arXiv:2201.09865, algorithm 1, lines 4 and 5). After the last step the picture's latents are clean.

    Args:
        where: the map, a picture of any kind that `research.pictures.read` takes; beside ``latents`` a tensor
            [N or 1, 1, h, w] in [0, 1] of the latents' size.
        image: the picture to keep, encoded when the run starts.
        latents: its latents [N or 1, C, h, w] instead.
        noise: standard normal noise [N or 1, C, h, w] instead of that of the start latents, for the whole run.
        fresh_noise: True draws the picture's noise afresh at each step, False keeps one for the run; None: as said above.

    Raises:
        ConfigError: neither or both of image and latents are given, noise and ``fresh_noise=True``, or sizes do not match.
    """

    order = 500
    requires = frozenset({"noise-levels"})
    claims = frozenset({"composite"})
    name: ClassVar[str]  # of the hook in messages, and of its noise
    keeps = ("_noise",)
    map_name: ClassVar[str]  # of the map in messages

    def __init__(
        self, where: Any, image: Any, latents: Tensor | None, noise: Tensor | None, fresh_noise: bool | None = None
    ):
        self._key = f"hooks.{self.name}"
        if (image is None) == (latents is None):
            raise ConfigError(f"{self._key}: found neither or both of image and latents; accepted is one of them.")
        self.where, self.image, self.latents, self.noise = where, image, latents, noise
        self.fresh_noise = check_choice(f"{self._key}.fresh_noise", fresh_noise, (None, True, False))
        if noise is not None and fresh_noise:
            raise ConfigError(f"{self._key}: found noise and fresh_noise=True; accepted is one of them.")
        tensors = {"latents": latents, "noise": noise, self.map_name: None if latents is None else where}
        for name, tensor in tensors.items():
            if tensor is not None and not isinstance(tensor, Tensor):
                beside = " beside latents" if name == self.map_name else ""
                raise ConfigError(f"{self._key}.{name}: found {type(tensor).__name__}; accepted{beside} is a tensor.")
        if image is not None:
            pictures.check(f"{self._key}.image", image)
            pictures.check(f"{self._key}.{self.map_name}", where)

    def on_start(self, run: Run) -> None:
        x = run.x
        clean, where = (self.latents, self.where) if self.latents is not None else self._encoded(run)
        for name, tensor, channels in (("latents", clean, x.shape[1]), (self.map_name, where, 1)):
            fits = tensor.shape[0] in (1, len(x)) and tensor.shape[1:] == (channels, *x.shape[2:])
            if not fits:
                raise ConfigError(
                    f"{self._key}.{name}: found the shape {list(tensor.shape)}; accepted here is "
                    f"{[len(x), channels, *x.shape[2:]]}."
                )
        goes_back = run.timeline.goes_back and self.noise is None
        self._afresh = goes_back if self.fresh_noise is None else self.fresh_noise
        noise = run.start_noise if self.noise is None else self.noise
        if noise is None:  # a task that starts from something else than noise
            noise = run.noise.draw(f"{HOOK}/{self.name}", x.shape[1:], x.dtype)
        self._clean, self._noise = (
            tensor.to(x.device, x.dtype).expand(len(x), -1, -1, -1) for tensor in (clean, noise)
        )
        self._where = where.to(x.device).expand(len(x), -1, -1, -1)

    def composed(self, state: StepState) -> Tensor:
        """The latents [N, C, h, w] after the step of this stage, with the picture's own in their places."""
        raise NotImplementedError

    def post_step(self, state: StepState) -> None:
        if not state.run.going_back(state.stage):  # an inversion's way to the noise is the picture's own
            state.x = self.composed(state)

    def known(self, state: StepState) -> Tensor:
        """The picture's latents [N, C, h, w] at the level that the step of this stage led to."""
        run, after = state.run, state.stage.index + 1
        level = run.timeline[after] if after < len(run.timeline) else None
        noise = self._noise
        if self._afresh and level is not None:
            noise = run.noise.draw(f"{HOOK}/{self.name}/afresh", state.x.shape[1:], state.x.dtype)
        return run.solver.add_noise(self._clean, noise, level)

    def _encoded(self, run: Run) -> tuple[Tensor, Tensor]:
        factor = run.model.vae_factor
        height, width = (side * factor for side in run.x.shape[2:])
        image_key, map_key = f"{self._key}.image", f"{self._key}.{self.map_name}"
        images, maps = (
            [given[row] for row in run.rows] if len(given) > 1 else given
            for given in (
                pictures.read(image_key, self.image, run.n_images, say=run.warn),
                pictures.read(map_key, self.where, run.n_images, mask=True, say=run.warn),
            )
        )
        pixels = pictures.to_pixels(image_key, images, factor, height, width)
        grey = pictures.to_masks(maps, factor, height, width, binary=False)
        return run.model.encode(run, pixels, f"{HOOK}/{self.name}_image"), at_latent_size(grey, factor)


class MaskComposite(Composite):
    """After each step, latents outside the mask become the picture's own, noised to the level the step led to.

    (The known part of RePaint, arXiv:2201.09865, eq. 8a, as diffusers' inpainting pipeline does it with four channels.)

    Args:
        mask: a picture of any kind that `research.pictures.read` takes, white (1) where the model draws and black (0) where the
            picture stays; greys mix. With ``latents``: a tensor [N or 1, 1, h, w] in [0, 1] of the latents' size.
        image, latents, noise, fresh_noise: see `Composite`.

    Raises:
        ConfigError: neither or both of image and latents are given, or sizes do not match.
    """

    name = "mask_composite"
    map_name = "mask"

    def __init__(
        self,
        mask: Any,
        image: Any = None,
        *,
        latents: Tensor | None = None,
        noise: Tensor | None = None,
        fresh_noise: bool | None = None,
    ):
        super().__init__(mask, image, latents, noise, fresh_noise)

    def on_start(self, run: Run) -> None:
        super().on_start(run)
        self._where = self._where.to(run.x.dtype)

    def composed(self, state: StepState) -> Tensor:
        return (1 - self._where) * self.known(state) + self._where * state.x


def at_latent_size(mask: Tensor, factor: int) -> Tensor:
    """A mask [K, 1, H, W] at the size of the latents [K, 1, H / factor, W / factor]: each takes the largest of its pixels.

    So that a mask of one pixel does not vanish, as it may when only each ``factor``-th pixel is looked at.
    """
    return torch.nn.functional.max_pool2d(mask, factor)
