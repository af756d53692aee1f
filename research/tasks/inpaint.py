"""Inpainting: new content where a mask is white, by compositing latents or with a model that sees the mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from research import pictures
from research.hooks.extra_channels import ExtraChannels
from research.hooks.mask_composite import MaskComposite, at_latent_size
from research.sampling.interfaces import Batch, Hook, Model, ModelFacts
from research.sampling.noise import ENCODE
from research.tasks.image_to_image import ImageToImage, of_batch
from research.tasks.sheets import side_by_side

_KEPT_BELOW = 0.1  # greys darker than this do not hide a pixel from a 9-channel model


class Inpaint(ImageToImage):
    """Images of sentences that keep a picture outside a mask.

    The model decides how: a UNet that takes the latents alone gets `MaskComposite`; one that takes the mask and the masked
    picture's latents as well (9 channels in Stable Diffusion) gets them as further input channels.

    Args:
        prompt, negative_prompt, image, on_no_steps, background: see `ImageToImage`.
        mask: a picture like ``image`` (one channel is enough), white where the model draws; of another size it is resized.
            Greys mix picture and drawing. With ``parity`` it is cut at 0.5 as in the pipeline. Labels 0 and 1 of any integer type
            are black and white; of a picture with transparent parts these are drawn (see `research.picture_modes.as_mask`).
        strength: from 0 to 1; 1 starts from pure noise.
        height, width: pixels; the model's own size by default.
        paste_back: pixels outside the mask are exactly the picture's. Not with ``parity``.

    Raises:
        ConfigError: a setting is out of range, or a picture cannot be read.
    """

    name = "inpaint"
    roles = ("inpaint", "text")

    def __init__(
        self,
        prompt: str | Sequence[str],
        image: Any,
        mask: Any,
        strength: float = 1.0,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        on_no_steps: str = "error",
        paste_back: bool = True,
        background: str = "white",
    ):
        super().__init__(prompt, image, strength, negative_prompt, height, width, on_no_steps, background)
        pictures.check("task.mask", mask)
        self.mask, self.paste_back = mask, paste_back

    def check(self, model: ModelFacts, n_images: int) -> None:
        super().check(model, n_images)
        self._read_masks(model, n_images)

    def prepare(self, model: Model, n_images: int, *, parity: bool) -> None:
        super().prepare(model, n_images, parity=parity)
        self._masks = self._read_masks(model, n_images)

    def vectorises(self) -> bool:
        return True

    def claims(self, model: ModelFacts) -> frozenset[str]:
        return MaskComposite.claims if model.role == "text" else frozenset()

    def start(self, run: Batch) -> Tensor:
        height, width = self._pixels.shape[2:]
        factor = run.model.vae_factor
        mask = pictures.to_masks(self._masks, factor, height, width, binary=run.parity)
        self._say_selected(run, mask)
        x = super().start(run)
        dtype, device = run.model.dtype, run.model.device
        hidden = mask >= (0.5 if run.parity else _KEPT_BELOW)
        small = at_latent_size(mask if run.model.role == "text" else hidden.float(), factor)
        if run.parity:
            small = torch.nn.functional.interpolate(mask, size=small.shape[2:])
        # the rows that a batch needs of pictures and masks that are one for all or one an image
        pixels, hidden, small = (of_batch(values, run) for values in (self._pixels, hidden, small))
        run.task_tensors["mask"] = small.to(device, dtype).expand(len(run.rows), -1, -1, -1)
        if run.parity or run.model.role == "inpaint":
            # the pipeline encodes it for every model, and so moves the generators
            masked = run.model.encode(run, pixels * ~hidden, f"{ENCODE}/masked")
            run.task_tensors["masked"] = masked.repeat(len(run.rows) // len(masked), 1, 1, 1)
        return x

    def clean_latents(self, run: Batch) -> Tensor | None:
        role = run.model.role
        if self.strength == 1 and role == "inpaint":
            return None
        clean = run.model.encode(run, of_batch(self._pixels, run), ENCODE)
        run.task_tensors["clean"] = clean.repeat(len(run.rows) // len(clean), 1, 1, 1)
        return None if self.strength == 1 else run.task_tensors["clean"]

    def hooks(self, run: Batch) -> Sequence[Hook]:
        kept = run.task_tensors
        if run.model.role == "inpaint":
            return [ExtraChannels(torch.cat([kept["mask"], kept["masked"]], dim=1))]
        return [MaskComposite(kept["mask"], latents=kept["clean"])]

    def finish(self, run: Batch, latents: Tensor) -> list[Any]:
        images = super().finish(run, latents)
        if run.parity or not self.paste_back:
            return images
        pairs = zip(self.originals(run.rows), images, self.mask_images(run.rows), strict=True)
        return [pasted(before, after, mask) for before, after, mask in pairs]

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        rows = range(len(images))
        shown = zip(self.originals(rows), self.mask_images(rows), images, strict=True)
        return {"before_mask_after": side_by_side(list(shown))}

    def mask_images(self, rows: Sequence[int]) -> list[Image.Image]:
        """The masks as grey pictures of the images' size, of the images with these numbers."""
        height, width = self._pixels.shape[2:]
        masks = (pictures.to_masks(self._masks, 1, height, width, binary=False)[:, 0] * 255).round().byte().numpy()
        return [Image.fromarray(masks[row if len(masks) > 1 else 0]) for row in rows]

    def _size(self, model: ModelFacts) -> tuple[int | None, int | None]:
        """The model's own size and not the picture's, as the inpainting pipeline does it."""
        _, height, width = model.latent_shape(self.height, self.width)
        return height * model.vae_factor, width * model.vae_factor

    def _read_masks(self, model: ModelFacts, n_images: int) -> list[Any]:
        said: list[str] = []
        masks = pictures.read("task.mask", self.mask, n_images, mask=True, say=said.append)
        height, width = self._size(model)
        for found in sorted({pictures.size(mask) for mask in masks} - {(width, height)}):
            self.note(f"task.mask: resized from {found[0]} x {found[1]} to {width} x {height} pixels, as the picture.")
        for message in said:
            self.note(message)
        return masks

    def _say_selected(self, run: Batch, mask: Tensor) -> None:
        """What is known once masks are of the picture's size, and cut with ``parity``; the same words are said once."""
        self._say_read(run)
        white = mask.flatten(1)
        if bool((white.amax(1) == 0).any()):
            run.warn("task.mask: all black, nothing is drawn and the picture stays.")
        if bool((white.amin(1) == 1).any()):
            run.warn("task.mask: all white, nothing of the picture is kept.")


def pasted(before: Image.Image, after: Image.Image, mask: Image.Image) -> Image.Image:
    """``after`` where the mask is white, exactly ``before`` where it is black, mixed where it is grey; all of one size."""
    part = np.asarray(mask, dtype=np.float32)[..., None] / 255
    old, new = (np.asarray(image.convert("RGB"), dtype=np.float32) for image in (before, after))
    return Image.fromarray((old * (1 - part) + new * part).round().astype(np.uint8))
