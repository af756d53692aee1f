"""Image to image: from a noised picture, by strength (SDEdit, arXiv:2108.01073)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from research import pictures
from research.errors import ConfigError
from research.image_tensors import pixels_to_images
from research.sampling.interfaces import Batch, Model, ModelFacts, Solver
from research.sampling.noise import ENCODE, INITIAL
from research.sampling.timeline import Timeline
from research.tasks.checks import check_steps, check_strength
from research.tasks.sheets import side_by_side
from research.tasks.text_to_image import TextToImage

_LARGEST = (
    4096 * 4096
)  # pixels of a picture that is drawn at its own size: a photo is read, and would not fit into memory


class ImageToImage(TextToImage):
    """Images of sentences, started from a picture.

    The picture is encoded and noised to the level where the last ``strength`` of the steps begins. At strength 1 it is
    not used at all (with ``parity`` a trace of it stays, as in the pipeline); at strength 0 it comes back as it is.

    Args:
        prompt, negative_prompt: see `TextToImage`.
        image: a path, a URL, "zoo:NAME", a PIL image, an array [H, W, 3] or tensor [3, H, W] (uint8, or floats from 0 to 1): one
            for all seeds, or a list with one a seed. Resized as the diffusers pipeline does, to multiples of the VAE's factor.
        strength: from 0 to 1, the part of the steps that is run.
        height, width: pixels to resize the picture to; its own size by default.
        on_no_steps: what to do if ``strength * steps`` is less than 1: "error", or "identity" to give the picture back.
        background: the colour that transparent parts of the picture are shown on, as Pillow names it.

    Raises:
        ConfigError: a setting is out of range, or the picture cannot be read.
    """

    name = "image_to_image"
    _tells_strength = False  # whether the pipeline of the model has its scheduler told the strength, see `ModelFacts`

    def __init__(
        self,
        prompt: str | Sequence[str],
        image: Any,
        strength: float = 0.8,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        on_no_steps: str = "error",
        background: str = "white",
    ):
        super().__init__(prompt, negative_prompt, height, width)
        self.strength = check_strength(strength, on_no_steps)
        self.background = pictures.check_background(background)
        pictures.check("task.image", image)
        self.image, self.on_no_steps = image, on_no_steps
        self.notes: list[str] = []  # what reading the pictures had to say

    def check(self, model: ModelFacts, n_images: int) -> None:
        super().check(model, n_images)
        self._read(model, n_images)

    def prepare(self, model: Model, n_images: int, *, parity: bool) -> None:
        self.count_as(model)
        self._images, self._pixels = self._read(model, n_images)

    def vectorises(self) -> bool:
        return True

    def timeline(self, solver: Solver, steps: int, device: torch.device) -> Timeline:
        if solver.parity and self._tells_strength:
            check_steps(self.strength, steps, self.on_no_steps, parity=True, told=True)
            told: Any = solver  # one of diffusers: others have no parity
            below: Timeline = told.timeline(steps, strength=self.strength, device=device, told=True)
            return below
        flow = getattr(solver, "rounds_up", solver.kind == "flow")
        check_steps(self.strength, steps, self.on_no_steps, parity=solver.parity, flow=flow)
        return solver.timeline(steps, strength=self.strength, device=device, by_strength=True)

    def count_as(self, model: ModelFacts) -> None:
        """Let `timeline` count a strength's steps as the image-to-image pipeline of a model does; those of further inputs leave
        steps out, all of them."""
        self._tells_strength = model.tells_strength and self.name == ImageToImage.name

    def start(self, run: Batch) -> Tensor:
        self._say_read(run)
        clean = self.clean_latents(run)
        shape = clean.shape[1:] if clean is not None else self.latent_shape(run.model)
        run.start_noise = noise = run.noise.draw(INITIAL, shape, run.model.noise_dtype)
        if clean is None:
            return run.solver.scale_noise(noise)
        return run.solver.add_noise(clean, noise, run.timeline[0]) if len(run.timeline) else clean

    def clean_latents(self, run: Batch) -> Tensor | None:
        """Latents of the batch's pictures [N, C, h, w], or None where the start is pure noise."""
        if self.strength == 1 and not run.parity:
            return None
        return run.model.encode(run, self.rows(self._pixels, run), ENCODE)

    def finish(self, run: Batch, latents: Tensor) -> list[Any]:
        return super().finish(run, latents) if len(run.timeline) else self.originals(run.rows)

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        return {"before_after": side_by_side(list(zip(self.originals(range(len(images))), images, strict=True)))}

    # -- for the tasks that start from a picture too

    def originals(self, rows: Iterable[int]) -> list[Image.Image]:
        """The pictures as they were used, of the images with these numbers."""
        images = pixels_to_images(self._pixels)
        return [images[row if len(images) > 1 else 0] for row in rows]

    def rows(self, values: Tensor, run: Batch) -> Tensor:
        """The batch's part of values [K, ...] that are one for all images or one an image.

        One for all stays one row, unless the pipelines repeat it before they draw the encoder's noise (with ``parity``).
        """
        values = of_batch(values, run)
        if len(values) > 1:
            return values
        # copied and not expanded: the kernels of a convolution depend on the layout in memory
        several = run.parity and len(run.rows) > 1 and not run.model.encodes_once
        return torch.cat([values] * len(run.rows)) if several else values

    def latent_shape(self, model: ModelFacts) -> tuple[int, int, int]:
        return model.latent_shape(*self._pixels.shape[2:])

    def note(self, message: str) -> None:
        """Keep a word about how a picture was read, for the run's warnings and for plans."""
        if message not in self.notes:
            self.notes.append(message)

    def _say_read(self, run: Batch) -> None:
        for message in self.notes:
            run.warn(message)

    def _read(self, model: ModelFacts, n_images: int) -> tuple[list[Any], Tensor]:
        """The pictures as given, and as pixels [K, 3, H, W] in [-1, 1] of the size at which they are used."""
        images = pictures.read("task.image", self.image, n_images, background=self.background, say=self.note)
        height, width = self._size(model)
        first = pictures.size(images[0])
        if (height or first[1]) * (width or first[0]) > _LARGEST and (height is None or width is None):
            raise ConfigError(
                f"task.image: found {first[0]} x {first[1]} pixels, more than are drawn unless they are asked for; accepted are "
                f"up to {_LARGEST / 1e6:.1f} million, or task.height and task.width, to which it is resized."
            )
        pixels = pictures.to_pixels("task.image", images, model.size_multiple, height, width)
        height, width = pixels.shape[2:]
        for found in sorted({pictures.size(image) for image in images} - {(width, height)}):
            self.note(f"task.image: resized from {found[0]} x {found[1]} to {width} x {height} pixels.")
        return images, pixels

    def _size(self, model: ModelFacts) -> tuple[int | None, int | None]:
        """Height and width in pixels; None for the picture's own."""
        if not model.resizes_pictures:
            return self.height, self.width
        _, height, width = model.latent_shape(self.height, self.width)
        return height * model.vae_factor, width * model.vae_factor


def of_batch(values: Tensor, run: Batch) -> Tensor:
    """The batch's rows of values [K, ...] that are one an image; what is one for all images stays as it is."""
    return values[list(run.rows)] if len(values) > 1 else values
