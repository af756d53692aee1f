"""Feynman-Kac steering: particles that are weighed and resampled on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from research.checks import check_choice, check_number
from research.errors import ConfigError
from research.samplers.particles import Particles, check_draws, check_particles
from research.samplers.search import Found, Group, Search, candidate_seed
from research.sampling import Guidance, Hook, LoopSampler, Solver
from research.sampling.loop import exchange

POTENTIALS = ("difference", "max", "sum")


class FKSteering(Search):
    """Feynman-Kac steering (Singhal et al., arXiv:2501.06848, algorithm 1): particles of an image go through the
    loop together; now and then they are weighed by a potential of the score of their clean estimates, and resampled.

    It draws from the model's density times ``exp(scale * score)``. With ``r_t`` the score of the clean estimate at step t, and
    ``r`` that of the finished image, the potentials of the paper are

        difference  G_t = exp(scale * (r_t - r_{t+1})),  G_T = exp(scale * r_T)
        max         G_t = exp(scale * max_{s >= t} r_s)
        sum         G_t = exp(scale * sum_{s >= t} r_s)

    and the last is what makes their product ``exp(scale * r)``. "max" and "sum" count a score at each weighing and take it
    back at the end, for which no number of particles makes up after many weighings: what is drawn goes beyond the tilted
    density ("sum" on a Gaussian, from 8 to 256 particles: right after 3 weighings, two thirds of its spread too far after 12).
    Weigh seldom then (``every``).

    Weights gather until an image is resampled (systematically), which happens where the effective sample size falls below
    ``threshold`` of the particles. The first particle is the loop's own of the seed, so that with a score that is the same for
    all, the image is the loop's.

    On purpose different from the published code: weights that were not resampled are kept and not forgotten, resampling is
    systematic and not multinomial, and an image is drawn by its own seed alone.

    Args:
        sampler, score: see `Search`. The scheduler must add noise: copies part by it alone.
        particles: of an image, from 2.
        scale: lambda: how strongly the score counts; 0 is no steering. The score's own units matter: a difference of ``1 /
            scale`` makes a particle 2.7 times as heavy.
        potential: "difference", "max" or "sum".
        every: weigh after every so many of the user's steps.
        window: the part of the steps in which they are weighed, two fractions; the estimates of the first ones say little.
        threshold: from 0 (never resample) to 1 (whenever weights differ). The effective sample size is 1 at least, so that two
            particles are resampled above 0.5 alone.
        pick: "best": the finished particle of the best score, as in the paper; "draw": one drawn by the final weights, which is a
            draw from the tilted density.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        sampler: LoopSampler | None = None,
        score: Any = None,
        particles: int = 4,
        scale: float = 1.0,
        potential: str = "difference",
        every: int = 1,
        window: Sequence[float] = (0.2, 1.0),
        threshold: float = 0.5,
        pick: str = "best",
    ):
        super().__init__(sampler, score)
        self.particles, self.threshold, self.every, self.pick = check_particles(particles, threshold, every, pick)
        self.scale = check_number("sampler.scale", scale)
        self.potential = check_choice("sampler.potential", potential, POTENTIALS)
        self.window = checked_window(window)

    @property
    def candidates(self) -> int:
        return self.particles

    def steps_of(self, steps: int) -> int:
        return self.particles * steps

    def check_loop(self, solver: Solver, guidance: Guidance, hooks: Sequence[Hook]) -> None:
        check_draws(solver, "fk_steering")

    def search(self, group: Group) -> list[Found]:
        count = self.particles
        everyone = [(image, candidate_seed(seed, k)) for image, seed in enumerate(group.seeds) for k in range(count)]
        chunks = list(group.chunks(everyone))
        ways = [group.trajectory(chunk) for chunk in chunks]
        particles = Particles(group.seeds, count)
        shape = (len(group), count)
        # of each particle's own past: the product of its potentials so far (log), the last score, the largest and the sum
        told = {name: torch.zeros(shape, dtype=torch.float64) for name in ("product", "last", "total")}
        told["largest"] = torch.full(shape, -torch.inf, dtype=torch.float64)
        try:
            walks = [group.walked(chunk, way) for chunk, way in zip(chunks, ways, strict=True)]
            for states in zip(*walks, strict=True):
                stage = states[0].stage
                if not self._weighs(stage.step, stage.n_steps) or not stage.last_of_step or ways[0].stage is None:
                    continue
                scores = [
                    group.estimated(chunk, state.x0, way)
                    for chunk, way, state in zip(chunks, ways, states, strict=True)
                ]
                gain = self._gain(torch.cat(scores).reshape(shape), told)
                particles.log_weights += gain
                told["product"] += gain
                chosen = particles.ancestors(self.threshold)
                order = torch.tensor(chosen)
                told = {name: values.gather(1, order) for name, values in told.items()}
                exchange(ways, [image * count + k for image, mine in enumerate(chosen) for k in mine])
            made, values = [], []
            for chunk, way in zip(chunks, ways, strict=True):
                mine = group.finished(chunk, way)
                values += group.score_of(chunk, mine, way)
                made += mine
        finally:
            for way in ways:
                way.close()
        final = torch.tensor(values, dtype=torch.float64).reshape(shape)
        particles.log_weights += self.scale * final - told["product"]
        found = []
        for image in range(len(group)):
            place = particles.picked(image, final[image], self.pick)
            trace = {"scores": final[image].tolist(), "chosen": place, "resampled": particles.resampled[image]}
            found.append(Found(made[image * count + place], float(final[image, place]), trace))
        return found

    def _weighs(self, step: int, n_steps: int) -> bool:
        low, high = self.window
        return low <= step / n_steps < high and (step + 1) % self.every == 0

    def _gain(self, scores: Tensor, told: dict[str, Tensor]) -> Tensor:
        """The logarithms of the potentials [images, particles]; ``told`` goes on."""
        before, told["last"] = told["last"], scores
        told["largest"], told["total"] = torch.maximum(told["largest"], scores), told["total"] + scores
        return (
            self.scale * {"difference": scores - before, "max": told["largest"], "sum": told["total"]}[self.potential]
        )


def checked_window(window: Any) -> tuple[float, float]:
    """Two fractions of the steps.

    Raises:
        ConfigError: they are none.
    """
    try:
        low, high = (float(bound) for bound in window)
        good = 0 <= low < high <= 1
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ConfigError(f"sampler.window: found {window!r}; accepted are two fractions, 0 <= lo < hi <= 1.")
    return low, high
