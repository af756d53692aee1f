"""Zero-order search: start noises in the neighbourhood of the best so far."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from research.checks import check_number, check_whole_number
from research.errors import SamplingError
from research.samplers.search import Found, Group, Search
from research.sampling import LoopSampler
from research.sampling.noise import stream_seed


class ZeroOrder(Search):
    """Zero-order search (Ma et al., arXiv:2501.09732): from a pivot noise, make the images of ``neighbours`` noises
    around it; the best of them is the next pivot, ``iterations`` times.

    A neighbour of ``n`` lies on the sphere of its norm, ``|n| (c u + sqrt(1 - c^2) w)`` with ``u = n / |n|``, ``w`` a random
    direction at a right angle to it, and ``c`` the ``cosine``: it stays a likely noise, at the distance ``|n| sqrt(2 - 2 c)``
    (the paper sets the distance, and says nothing of the norm). A pivot that no neighbour beats stays. The first pivot is the
    seed's own noise, so that with 0 iterations it is the loop. Noise of the steps is the seed's own for all candidates.

    Args:
        sampler, score: see `Search`.
        neighbours: candidates an iteration, from 1; N in the paper.
        iterations: K in the paper, from 0.
        cosine: of the angle between a pivot and its neighbours, above -1 and below 1; nearer to 1 is a closer neighbourhood.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        sampler: LoopSampler | None = None,
        score: Any = None,
        neighbours: int = 4,
        iterations: int = 2,
        cosine: float = 0.95,
    ):
        super().__init__(sampler, score)
        self.neighbours = check_whole_number("sampler.neighbours", neighbours, least=1)
        self.iterations = check_whole_number("sampler.iterations", iterations, least=0)
        self.cosine = check_number("sampler.cosine", cosine, above=-1, below=1)

    @property
    def candidates(self) -> int:
        return self.neighbours

    def steps_of(self, steps: int) -> int:
        return (1 + self.neighbours * self.iterations) * steps

    def search(self, group: Group) -> list[Found]:
        draws = [torch.Generator().manual_seed(stream_seed(seed, "zero_order")) for seed in group.seeds]
        first = [(image, seed) for image, seed in enumerate(group.seeds)]
        best: list[Found | None] = [None] * len(group)
        pivots: list[Tensor | None] = [None] * len(group)
        scores: list[list[float]] = [[] for _ in first]
        for iteration in range(self.iterations + 1):
            around = list(pivots)
            everyone = first if iteration == 0 else [each for each in first for _ in range(self.neighbours)]
            for chunk in group.chunks(everyone):
                noise = None
                if iteration:
                    noise = torch.stack([self._neighbour(around[image], draws[image]) for image, _ in chunk])
                with group.trajectory(chunk, noise=noise) as way:
                    start = way.run.start_noise
                    if start is None:
                        raise SamplingError("sampler: zero_order needs a task that starts from noise.")
                    start = start.detach().cpu()
                    made = group.finished(chunk, way)
                    found = group.score_of(chunk, made, way)
                for place, ((image, _), one, score) in enumerate(zip(chunk, made, found, strict=True)):
                    before = best[image]
                    if before is None or before.score is None or score > before.score:
                        best[image] = Found(one, score, {"chosen": len(scores[image])})
                        pivots[image] = start[place]
                    scores[image].append(score)
        return [
            Found(each.made, each.score, {**each.trace, "scores": listed})
            for each, listed in zip(best, scores, strict=True)
            if each is not None
        ]

    def _neighbour(self, pivot: Tensor | None, draw: torch.Generator) -> Tensor:
        assert pivot is not None
        flat = pivot.float().flatten()
        size = flat.norm()
        along = flat / size
        across = torch.randn(flat.shape, generator=draw)
        across -= (across @ along) * along
        across /= across.norm()
        moved = size * (self.cosine * along + math.sqrt(1 - self.cosine**2) * across)
        return moved.reshape(pivot.shape).to(pivot.dtype)
