"""Noise by image and by stream: an image is named by its seed and is the same alone and in any batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

INITIAL, STEP, ENCODE, HOOK = "initial", "step", "encode", "hook"


def stream_seed(seed: int, stream: str) -> int:
    """The seed of one stream of an image, in [0, 2**63).

    The initial stream is the seed itself, so that seed 42 is seed 42 in diffusers. The others are hashed from it, so that
    they do not depend on each other or on how much of another was drawn.
    """
    if stream == INITIAL:
        return seed
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class NoiseSource:
    """The noise of one batch of images.

    Noise is always drawn on the CPU, so that a picture does not depend on the device it is made on.

    Args:
        seeds: one an image.
        device: where the drawn tensors go.
        parity: every stream of an image is one and the same generator, drawn in the dtype asked for, as a diffusers
            pipeline does with a list of generators.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu", *, parity: bool = False):
        self.seeds = tuple(seeds)
        self.device = torch.device(device)
        self.parity = parity
        self._streams: dict[str, list[torch.Generator]] = {}

    def generators(self, stream: str) -> list[torch.Generator]:
        """One CPU generator an image, the same objects at each call: they remember how much was drawn."""
        stream = INITIAL if self.parity else stream
        if stream not in self._streams:
            self._streams[stream] = [
                torch.Generator("cpu").manual_seed(stream_seed(seed, stream)) for seed in self.seeds
            ]
        return self._streams[stream]

    def draw(self, stream: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal noise, shape [N, *shape], on the device: the next of the stream for each image.

        A hook that draws uses a stream of its own name and so moves nobody else's noise.
        """
        # fp16 and fp32 draws differ: outside parity the noise is that of fp32 whatever the model's dtype
        drawn_as = dtype if self.parity else torch.float32
        shape = (1, *shape)
        rows = [torch.randn(shape, generator=g, dtype=drawn_as) for g in self.generators(stream)]
        return (torch.cat(rows) if len(rows) > 1 else rows[0]).to(self.device, dtype)

    def seeds_of(self, stream: str) -> list[int]:
        """A seed an image, for samplers that take seeds and not generators (Brownian trees)."""
        return [stream_seed(seed, stream) for seed in self.seeds]
