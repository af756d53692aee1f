"""A cheap look at the image while it comes into being: the clean estimate as a small picture, without the decoder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from research.checks import check_number, check_whole_number
from research.errors import ConfigError
from research.hooks.projection import projection_of
from research.hooks.windows import first_of_step
from research.sampling.interfaces import Hook, ModelFacts, Run, Solver, StepState

KEY = "hooks.preview"
MOST_IMAGES = 16
_TILE, _GAP, _LINE = 96, 2, 12  # pixels
_HELD = 6  # how much longer the last frame is shown


class Preview(Hook):
    """Draws the clean estimate x0 every few steps, and an animation of them at the end: ``pictures/preview.gif`` of the job.

    Latents become colours by a linear projection, fitted by ``research-preview MODEL_PATH`` (a ``preview.json`` in the model's
    directory is found by itself; the embedded models have one); pixels are shown as they are. It only looks: the images are
    the same bits as without it. The animation ends with the decoded images. It shows the first ``images`` of the whole job,
    whatever its batches, and says how many there are if there are more.

    Args:
        every: draw each ``every``-th of the user's steps, and the last.
        images: how many images to show, from 1 to 16.
        projection: None (the model's own), a JSON file of ``research-preview``, or a mapping with ``weight`` (3 rows of C) and
            ``bias`` [3] that gives colours in [-1, 1].
        scale: pixels a latent cell; None for tiles of about 96 pixels.
        duration: milliseconds a frame.

    Raises:
        ConfigError: an argument is out of range, or there is no projection for the model.
    """

    requires = frozenset({"noise-levels"})
    order = 910

    keeps = ("_drawn",)

    def __init__(
        self,
        every: int = 1,
        images: int = MOST_IMAGES,
        projection: Any = None,
        scale: int | None = None,
        duration: float = 200,
    ):
        self.every = check_whole_number(f"{KEY}.every", every, least=1)
        self.images = check_whole_number(f"{KEY}.images", images, least=1, accepted=f"1 to {MOST_IMAGES}")
        if self.images > MOST_IMAGES:
            raise ConfigError(f"{KEY}.images: found {images!r}; accepted is 1 to {MOST_IMAGES}.")
        self.projection = projection
        self.scale = None if scale is None else check_whole_number(f"{KEY}.scale", scale, least=1)
        self.duration = check_number(f"{KEY}.duration", duration, least=20)
        self._batches: list[list[tuple[str, Tensor]]] = []

    def check(self, model: ModelFacts, solver: Solver) -> None:
        projection_of(f"{KEY}.projection", self.projection, model)

    def on_start(self, run: Run) -> None:
        if run.rows[0] == 0:  # a new job; its further batches go on
            self._batches = []
            self._total = run.n_images
        self._project = projection_of(f"{KEY}.projection", self.projection, run.model)
        self._here = sum(row < self.images for row in run.rows)
        self._drawn: list[tuple[str, Tensor]] = []

    def post_guidance(self, state: StepState) -> None:
        stage = state.stage
        if not self._here or (stage.step % self.every and stage.step != stage.n_steps - 1):
            return
        if not first_of_step(state.run, stage):
            return
        x0 = state.x0[: self._here].detach().float()
        colours = x0.expand(-1, 3, -1, -1) if self._project is None else self._project(x0)
        shown = ((colours / 2 + 0.5).clamp(0, 1) * 255).round().nan_to_num(0.0)
        way = "back, " if state.run.going_back(stage) else ""
        self._drawn.append((f"{way}step {stage.step + 1} of {stage.n_steps}", shown.to(torch.uint8)))

    def on_end(self, run: Run) -> None:
        if self._here:  # read from the device once
            self._batches.append([(caption, shown.cpu()) for caption, shown in self._drawn])

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        if not self._batches or not self._batches[0]:
            return {}
        frames = []
        for parts in zip(*self._batches, strict=False):
            rows = torch.cat([shown for _, shown in parts])
            tiles = [Image.fromarray(row.permute(1, 2, 0).numpy()) for row in rows]
            frames.append(self._frame(tiles, parts[0][0]))
        first = self._batches[0][0][1]
        size = self._tile(first.shape[3], first.shape[2])
        shown_images = [image.convert("RGB") for image in images[: self.images]]
        frames.append(self._frame(shown_images, "decoded", size))
        for frame in frames:
            frame.info["duration"] = self.duration
        frames[-1].info["duration"] = self.duration * _HELD
        return {"preview": frames}

    def _tile(self, width: int, height: int) -> tuple[int, int]:
        scale = self.scale or max(1, _TILE // max(width, height))
        return width * scale, height * scale

    def _frame(self, tiles: Sequence[Image.Image], caption: str, size: tuple[int, int] | None = None) -> Image.Image:
        """The tiles on white in about as many columns as rows, without blur, over the caption."""
        width, height = size or self._tile(*tiles[0].size)
        columns = math.ceil(math.sqrt(len(tiles)))
        rows = -(-len(tiles) // columns)
        lines = [caption]
        if self._total > len(tiles):
            lines.append(f"{len(tiles)} of {self._total} images")
        bottom = rows * (height + _GAP)
        sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, bottom + _LINE * len(lines)), "white")
        for place, tile in enumerate(tiles):
            y, x = divmod(place, columns)
            smooth = tile.width > width or width % tile.width or height % tile.height
            kept = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
            sheet.paste(tile.resize((width, height), kept), (x * (width + _GAP), y * (height + _GAP)))
        draw = ImageDraw.Draw(sheet)
        for number, line in enumerate(lines):
            draw.text((1, bottom + number * _LINE), line, fill="black")
        return sheet
