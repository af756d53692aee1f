"""Best of n: random search over start noises."""

from __future__ import annotations

from typing import Any

from research.checks import check_whole_number
from research.samplers.search import Found, Group, Search, candidate_seed
from research.sampling import LoopSampler


class BestOfN(Search):
    """Each image is made ``n`` times from noises of its own, and the one that scores best is kept: random search (Ma et al.,
    arXiv:2501.09732).

        x* = argmax_k score(x(noise_k)),  k = 0 ... n-1

    The first candidate is the image that the loop makes of the seed, so that n = 1 is the loop; candidate ``k`` is that of
    `candidate_seed`. Of equal scores the first counts.

    Args:
        sampler, score: see `Search`.
        n: candidates an image, from 1.

    Raises:
        ConfigError: another n.
    """

    def __init__(self, sampler: LoopSampler | None = None, score: Any = None, n: int = 4):
        super().__init__(sampler, score)
        self.n = check_whole_number("sampler.n", n, least=1)

    @property
    def candidates(self) -> int:
        return self.n

    def steps_of(self, steps: int) -> int:
        return self.n * steps

    def search(self, group: Group) -> list[Found]:
        best: list[Found | None] = [None] * len(group)
        scores: list[list[float]] = [[] for _ in range(len(group))]
        all_of_them = [
            (image, candidate_seed(seed, k)) for image, seed in enumerate(group.seeds) for k in range(self.n)
        ]
        for chunk in group.chunks(all_of_them):
            with group.trajectory(chunk) as trajectory:
                made = group.finished(chunk, trajectory)
                found = group.score_of(chunk, made, trajectory)
            for (image, _), one, score in zip(chunk, made, found, strict=True):
                before = best[image]
                if before is None or before.score is None or score > before.score:
                    best[image] = Found(one, score, {"chosen": len(scores[image])})
                scores[image].append(score)
        return [
            Found(each.made, each.score, {**each.trace, "scores": listed})
            for each, listed in zip(best, scores, strict=True)
            if each is not None
        ]
