"""Pictures that losses are given, at the size of the pixels they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from research import pictures
from research.arguments import Recorded
from research.errors import ConfigError
from research.sampling.interfaces import Batch

Check = Callable[[Tensor], None]


class GivenPictures(Recorded):
    """One picture for all images of a job, or one an image, read when the first size is known.

    Args:
        key: how messages call it.
        given: what `research.pictures.read` takes.
        mask: read as masks in [0, 1] and not as pixels in [-1, 1].
        what: the pixels that a mask leaves, for the message about one that leaves none.
        check: looks at what was read, once, on the CPU; raises a ConfigError.

    Raises:
        ConfigError: a file is missing or no picture.
    """

    def __init__(self, key: str, given: Any, *, mask: bool = False, what: str = "", check: Check | None = None):
        pictures.check(key, given)
        self.key, self.given, self.mask, self.what, self.check = key, given, mask, what, check
        self._rows: Sequence[int] | None = None
        self._count = 0
        self._made: dict[tuple[Any, ...], Tensor] = {}
        self._warn: Callable[[str], None] = _quiet

    def start(self, run: Batch) -> None:
        """Learn which images of the job the batch has; without it a batch is all images."""
        self._rows, self._count, self._made, self._warn = run.rows, run.n_images, {}, run.warn

    def like(self, pixels: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        """The batch's pictures [N or 1, 3 or 1, height, width], of the dtype and on the device of ``pixels`` [N, 3, H, W].

        Raises:
            ConfigError: neither one picture nor one an image, or an empty mask.
        """
        size = (height or pixels.shape[2], width or pixels.shape[3])
        if self._rows is None and self._count != len(pixels):
            self._count, self._made = len(pixels), {}
        key = *size, pixels.device, pixels.dtype
        if key not in self._made:
            read = self._read(*size)
            if self.check is not None:
                self.check(read)
            self._made[key] = read.to(pixels.device, pixels.dtype)
        return self._made[key]

    def size(self) -> tuple[int, int]:
        """Height and width of the first picture as it was given."""
        parts = self.given if isinstance(self.given, list | tuple) else [self.given]
        width, height = pictures.size(pictures.read(self.key, list(parts)[:1], 1, mask=self.mask)[0])
        return height, width

    def _read(self, height: int, width: int) -> Tensor:
        found = pictures.read(self.key, self.given, self._count, mask=self.mask, say=self._warn)
        if self.mask:
            read = pictures.to_masks(found, 1, height, width, binary=False)
            if bool((read.flatten(1).sum(1) == 0).any()):
                raise ConfigError(f"{self.key}: found a mask that leaves no pixel to {self.what}; accepted has some.")
        else:
            read = pictures.to_pixels(self.key, found, 1, height, width)
        return read[torch.tensor(self._rows)] if self._rows is not None and len(read) > 1 else read


def _quiet(message: str) -> None:
    """Before a run there is nobody to tell."""
