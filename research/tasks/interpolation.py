"""A smooth path of images between two seeds, and between prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from research.checks import check_whole_number
from research.errors import ConfigError
from research.sampling.interfaces import Batch, Condition, ModelFacts
from research.sampling.noise import INITIAL, NoiseSource
from research.tasks.base import BaseTask, Conditions
from research.tasks.sheets import enlarged, side_by_side
from research.tasks.text_to_image import encode_texts, note_dropped, one_or_each, sentences


class Interpolation(BaseTask):
    """Frames on the arc between the start noise of two seeds, each denoised by itself (DDIM, arXiv:2010.02502, section 5.3).

    The first frame is the image of ``start_seed``, the last that of ``end_seed``. Only a scheduler that adds no noise of
    its own gives a smooth path; another one is refused.

    Args:
        start_seed, end_seed: whole numbers from 0; if they are the same, only the prompt changes.
        frames: images on the path, ends included, from 2.
        prompt: one sentence, or two or more that the path passes through at even distances; None for a model without text, and
            for the empty sentence.
        negative_prompt: what guidance leads away from, for all frames.
        height, width: pixels; the model's own size by default.

    Raises:
        ConfigError: fewer than two frames, or a seed or prompt that is none.
    """

    name = "interpolation"
    varies = False  # its frames name their noises
    requires = frozenset({"deterministic"})

    def __init__(
        self,
        start_seed: int,
        end_seed: int,
        frames: int,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
    ):
        self.ends = tuple(
            check_whole_number(f"task.{name}", seed)
            for name, seed in (("start_seed", start_seed), ("end_seed", end_seed))
        )
        self.frames = check_whole_number("task.frames", frames, least=2)
        texts = sentences("task.prompt", "" if prompt is None else prompt)
        self.keys = [texts] if isinstance(texts, str) else texts
        if negative_prompt is not None and not isinstance(negative_prompt, str):
            raise ConfigError(f"task.negative_prompt: found {negative_prompt!r}; accepted is a sentence.")
        self.negative_prompt: str = negative_prompt or ""
        self.height, self.width = height, width
        self.prompts = None if prompt is None else [self.keys[round(self._key(k))] for k in range(self.frames)]

    def seeds(self, given: Sequence[int] | None) -> Sequence[int]:
        """The start seed for each frame: whatever else a hook draws is the same in all of them. Seeds that were given must be
        one for all, or one a frame, and name the frames' other noise.
        """
        if given is None:
            return [self.ends[0]] * self.frames
        listed = list(given)
        if len(listed) not in (1, self.frames):
            raise ConfigError(
                f"seeds: found {len(listed)}; {self.name} makes {self.frames} frames between its own two seeds: leave seeds out."
            )
        return listed if len(listed) > 1 else listed * self.frames

    def vectorises(self) -> bool:
        return True

    def check(self, model: ModelFacts, n_images: int) -> None:
        super().check(model, n_images)
        if len(self.keys) > self.frames:
            raise ConfigError(
                f"task.prompt: found {len(self.keys)} sentences for {self.frames} frames; accepted is at most one a frame."
            )
        if "text" not in model.supports and any(self.keys):
            raise ConfigError(f"task.prompt: found {self.keys[0]!r}; {model.name} takes no text.")
        if model.n_classes:
            raise ConfigError(f"task: {self.name} is not for class-conditional models such as {model.name}.")

    def conditions(self, run: Batch) -> Mapping[str, Condition]:
        if "text" not in run.model.supports:
            return Conditions({"cond": Condition})
        size = self.picture_size(run.model)
        return Conditions(
            {
                "cond": lambda: self._along(run, size),
                "uncond": lambda: encode_texts(run, self.negative_prompt, together=False, negative=True, size=size),
            }
        )

    def condition(self, run: Batch, texts: str | Sequence[str], *, negative: bool = False) -> Condition:
        if "text" not in run.model.supports:
            return super().condition(run, texts)
        given, size = one_or_each(run, texts), self.picture_size(run.model)
        return encode_texts(run, given, together=isinstance(given, list), negative=negative, size=size)

    def start(self, run: Batch) -> Tensor:
        shape = run.model.latent_shape(self.height, self.width)
        # both ends as any other task would draw them
        ends = NoiseSource(self.ends, run.model.device, parity=run.parity)
        first, last = ends.draw(INITIAL, shape, run.model.noise_dtype)
        run.start_noise = torch.stack([slerp(first, last, row / (self.frames - 1)) for row in run.rows])
        return run.solver.scale_noise(run.start_noise)

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        frames = enlarged(list(images))
        # there and back, without showing either end twice
        return {"strip": side_by_side([list(images)]), "animation": [*frames, *frames[-2:0:-1]]}

    def _key(self, frame: int) -> float:
        """Where a frame stands among the prompts: 0 at the first, 1 at the second."""
        return frame / (self.frames - 1) * (len(self.keys) - 1)

    def _along(self, run: Batch, size: tuple[int, int]) -> Condition:
        """Each frame's place on the arcs between the prompts."""
        note_dropped(run, self.keys)
        encoded = [run.model.condition([text], size=size) for text in self.keys]
        rows = []
        for row in run.rows:
            place = self._key(row)
            before = min(int(place), max(len(self.keys) - 2, 0))
            after = min(before + 1, len(self.keys) - 1)
            mix = partial(slerp, part=place - before, each=-1)
            rows.append(encoded[before].mixed(encoded[after], mix))
        return Condition.joined(rows)


def slerp(first: Tensor, last: Tensor, part: float, *, each: int | None = None) -> Tensor:
    """The point at ``part`` (0 to 1) of the arc between two vectors of one shape (Shoemake 1985; arXiv:2010.02502, eq. 67).

    The ends come out exactly. Vectors in nearly the same direction are mixed linearly, as the arc's formula divides by the
    sine of their angle.

    Args:
        each: take the tensors as vectors along this dimension (one a token, say) instead of as one vector each.
    """
    if part <= 0.0 or part >= 1.0:
        return first if part <= 0.0 else last
    a, b = first.double(), last.double()
    dims = tuple(range(a.ndim)) if each is None else (each,)
    squares = a.square().sum(dim=dims, keepdim=True) * b.square().sum(dim=dims, keepdim=True)
    cosine = ((a * b).sum(dim=dims, keepdim=True) / squares.sqrt().clamp_min(1e-30)).clamp(-1.0, 1.0)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    near = sine < 1e-6
    safe = torch.where(near, torch.ones_like(sine), sine)
    of_first = torch.where(near, torch.full_like(sine, 1.0 - part), torch.sin((1.0 - part) * angle) / safe)
    of_last = torch.where(near, torch.full_like(sine, part), torch.sin(part * angle) / safe)
    return (of_first * a + of_last * b).to(first.dtype)
