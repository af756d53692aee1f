"""Noise by image and by stream: an image is named by its seed and is the same alone and in any batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from research.errors import SamplingError

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
        initial: [N, ...], handed out instead of the first draw of the initial stream.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        parity: bool = False,
        initial: Tensor | None = None,
    ):
        self.seeds = tuple(seeds)
        self.device = torch.device(device)
        self.parity = parity
        self._initial = initial
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
        if stream == INITIAL and self._initial is not None:
            given, self._initial = self._initial, None
            if given.shape != (len(self.seeds), *shape):
                raise SamplingError(
                    f"noise: found the shape {list(given.shape)}; accepted here is {[len(self.seeds), *shape]}."
                )
            return given.to(self.device, dtype)
        # fp16 and fp32 draws differ: outside parity the noise is that of fp32 whatever the model's dtype
        drawn_as = dtype if self.parity else torch.float32
        shape = (1, *shape)
        rows = [torch.randn(shape, generator=g, dtype=drawn_as) for g in self.generators(stream)]
        return (torch.cat(rows) if len(rows) > 1 else rows[0]).to(self.device, dtype)

    def seeds_of(self, stream: str) -> list[int]:
        """A seed an image, for samplers that take seeds and not generators (Brownian trees)."""
        return [stream_seed(seed, stream) for seed in self.seeds]

    def states(self) -> dict[str, list[Tensor]]:
        """Where each stream stands, by its name: a state an image."""
        return {name: [g.get_state() for g in generators] for name, generators in self._streams.items()}

    def go_to(self, states: Mapping[str, Sequence[Tensor]]) -> None:
        """Have streams stand where `states` found them. Others begin anew."""
        self._initial = None
        for name in [name for name in self._streams if name not in states]:
            del self._streams[name]
        for name, each in states.items():
            for generator, state in zip(self.generators(name), each, strict=True):
                generator.set_state(state)

    def copy(self) -> NoiseSource:
        """Another of the same images whose streams stand where these do, and go on by themselves."""
        found = NoiseSource(self.seeds, self.device, parity=self.parity)
        found.go_to(self.states())
        return found
