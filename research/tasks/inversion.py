"""DDIM inversion: from a picture to the noise that makes it, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from research.image_tensors import images_to_pixels
from research.sampling.interfaces import Batch, Hook, Solver, StepState
from research.sampling.noise import ENCODE
from research.sampling.timeline import Timeline
from research.solvers.round_trip import RoundTripSolver
from research.tasks.base import BaseTask
from research.tasks.image_to_image import ImageToImage
from research.tasks.sheets import side_by_side


class Inversion(ImageToImage):
    """A picture walked back to noise along DDIM's path, and from there forth again (arXiv:2010.02502, section 5.4).

    It takes twice the steps. ``result.scores`` holds what was lost: ``inversion_latent_mse`` between the picture's latents and
    those that came back, and ``inversion_psnr`` (dB) between pictures, where the VAE's own loss counts too: that of the
    picture encoded and decoded alone is ``vae_psnr``. Strong guidance does not invert well: use none, a scale of 1, or CFG++,
    whose step back is the inversion of its paper (see `RoundTripSolver`).

    Each way counts the user's steps as sampling does, from the noisiest. So a window, a schedule of scales or a prompt over the
    steps is the same at the same levels on both ways. Hooks that put a picture's own latents back do so coming forth alone.

    Args:
        prompt, image, negative_prompt, height, width, background: see `ImageToImage`; the prompt should say what is in the
            picture.
        reconstruct: False ends at the noise: ``result.latents`` then starts other tasks, as `TextToImage`'s ``latents``.
    """

    name = "inversion"
    varies = False  # it starts from a picture
    roles = ("text",)
    requires = frozenset({"text", "deterministic"})

    def __init__(
        self,
        prompt: str | Sequence[str],
        image: Any,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        reconstruct: bool = True,
        background: str = "white",
    ):
        super().__init__(prompt, image, 1.0, negative_prompt, height, width, background=background)
        self.reconstruct = reconstruct
        self._noise: dict[int, Any] = {}

    def solver(self, solver: Solver) -> Solver:
        return RoundTripSolver(solver, back_only=not self.reconstruct)

    def timeline(self, solver: Solver, steps: int, device: torch.device) -> Timeline:
        return BaseTask.timeline(self, solver, steps, device)

    def start(self, run: Batch) -> Tensor:
        self._say_read(run)
        run.task_tensors["clean"] = run.model.encode(run, self.rows(self._pixels, run), ENCODE)
        return run.task_tensors["clean"]

    def hooks(self, run: Batch) -> Sequence[Hook]:
        return [_KeepTurn()]

    def finish(self, run: Batch, latents: Tensor) -> list[Any]:
        images = BaseTask.finish(self, run, latents)
        self._noise |= dict(zip(run.rows, run.model.decode(run, run.task_tensors["turn"]), strict=True))
        noise = run.task_tensors["turn"].float()
        run.scores["inverted_noise_std"] = noise.flatten(1).std(dim=1).tolist()
        if self.reconstruct:
            clean = run.task_tensors["clean"]
            originals = images_to_pixels(self.originals(run.rows))
            alone = images_to_pixels(run.model.decode(run, clean))
            lost = (latents.float() - clean.float()).flatten(1).square().mean(dim=1)
            run.scores["inversion_latent_mse"] = lost.tolist()
            run.scores["inversion_psnr"] = psnr(images_to_pixels(images), originals)
            run.scores["vae_psnr"] = psnr(alone, originals)
        return images

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        rows = range(len(images))
        columns = [self.originals(rows), [self._noise[row] for row in rows]]
        if self.reconstruct:
            columns.append(list(images))
        return {"before_noise_after": side_by_side(list(zip(*columns, strict=True)))}


class _KeepTurn(Hook):
    """Keeps the latents at the end of the way back."""

    order = 1000

    def post_step(self, state: StepState) -> None:
        if state.stage.index == state.run.solver.turn:
            state.run.task_tensors["turn"] = state.x


def psnr(found: Tensor, wanted: Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB of pixels [N, C, H, W] in [-1, 1], image by image; 99 where they are equal."""
    errors = (found - wanted).flatten(1).square().mean(dim=1).tolist()
    return [99.0 if error == 0 else min(99.0, 10 * math.log10(4 / error)) for error in errors]
