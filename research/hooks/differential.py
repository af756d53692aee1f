"""Differential diffusion: every pixel has its own strength."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError
from research.hooks.mask_composite import Composite
from research.sampling.interfaces import Run, StepState


class Differential(Composite):
    """Changes a picture by a strength for each pixel (differential diffusion, arXiv:2306.00950, algorithm 1).

    A latent whose map says ``s`` joins in where image-to-image of strength ``s`` begins, with the last ``floor(s * steps)`` of
    the steps; until then it is the picture's own, noised to the level that each step led to. White (1) is never put back,
    black (0) to the end, so that there the final latents are the picture's. A map of one grey is image-to-image at that
    strength for schedulers without memory; those with memory have seen the noised picture in the steps before. A map of black
    and white alone is `MaskComposite`. The start is the task's: all noise in text-to-image; with image-to-image at strength
    ``S`` the first steps are saved, and what the map says above ``S`` counts as ``S``.

    Published code begins a latent one step earlier and changes all of them in the last step, black ones too.

    Args:
        image: the picture, encoded when the run starts; any kind that `research.pictures.read` takes, one or one an image.
        strength_map: a picture likewise (one channel is enough). At the size of the latents each takes the largest of its
            pixels. Beside ``latents``: a tensor [N or 1, 1, h, w] in [0, 1] of the latents' size.
        latents: the picture's latents [N or 1, C, h, w] instead of ``image``.
        noise, fresh_noise: see `Composite`.

    Raises:
        ConfigError: neither or both of image and latents are given, sizes do not match, or strengths are not within [0, 1].
    """

    name = "differential"
    map_name = "strength_map"

    def __init__(
        self,
        image: Any = None,
        strength_map: Any = None,
        *,
        latents: Tensor | None = None,
        noise: Tensor | None = None,
        fresh_noise: bool | None = None,
    ):
        if strength_map is None:
            raise ConfigError(
                "hooks.differential.strength_map: found none; accepted is a picture, white where all may change and black "
                "where nothing may."
            )
        super().__init__(strength_map, image, latents, noise, fresh_noise)

    def on_start(self, run: Run) -> None:
        super().on_start(run)
        run.look(((self._where >= 0) & (self._where <= 1)).all(), _check_range)  # NaN fails it as well
        # how many of the full schedule's steps each latent takes part in; the margin is that of single precision
        steps = run.timeline.n_steps
        kept = torch.floor(self._where.double() * steps * (1 + 1e-6)).clamp(max=steps)
        # the stage that each latent begins at: the first of its first step
        begins = torch.full(kept.shape, len(run.timeline), device=kept.device)
        for stage in reversed(run.timeline.stages):
            if not run.going_back(stage):
                begins[kept >= steps - stage.step] = stage.index
        self._begins = begins

    def composed(self, state: StepState) -> Tensor:
        return torch.where(self._begins > state.stage.index, self.known(state), state.x)


def _check_range(inside: Tensor) -> None:
    if not bool(inside):
        raise ConfigError("hooks.differential.strength_map: found values outside 0 to 1; accepted are these.")
