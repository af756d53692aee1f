"""Weighted particles of the images of a group: normalised weights, effective sample size, and who goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from research.checks import check_choice, check_number, check_whole_number
from research.errors import ConfigError
from research.sampling import Solver
from research.sampling.noise import stream_seed

PICKS = ("best", "draw")


class Particles:
    """``count`` particles of each of several images, with log-weights [images, count] in float64.

    Args:
        seeds: of the images, which the draws depend on alone.
        count: particles an image.
    """

    def __init__(self, seeds: list[int], count: int):
        self.count = count
        self.log_weights = torch.zeros(len(seeds), count, dtype=torch.float64)
        self.resampled = [0] * len(seeds)
        self._draws = [torch.Generator().manual_seed(stream_seed(seed, "particles")) for seed in seeds]

    def weights(self) -> Tensor:
        """Normalised, [images, count]."""
        return torch.softmax(self.log_weights, dim=1)

    def effective(self) -> Tensor:
        """Effective sample sizes [images], from 1 to the count: ``1 / sum w^2``."""
        return 1 / self.weights().square().sum(1)

    def ancestors(self, threshold: float | None) -> list[list[int]]:
        """Who goes on in each place of each image, by systematic resampling; weights of images that are resampled are even then.

        Args:
            threshold: resample the images whose effective sample size is below this part of the count; None: all.
        """
        weights, effective, found = self.weights(), self.effective(), []
        for image in range(len(weights)):
            even = bool((self.log_weights[image] == self.log_weights[image, 0]).all())
            if even or (threshold is not None and float(effective[image]) >= threshold * self.count):
                found.append(list(range(self.count)))
                continue
            start = torch.rand((), generator=self._draws[image], dtype=torch.float64)
            points = (torch.arange(self.count, dtype=torch.float64) + start) / self.count
            edges = weights[image].cumsum(0)
            chosen = torch.searchsorted(edges / edges[-1], points, right=True).clamp(max=self.count - 1).tolist()
            self.log_weights[image] = 0.0
            self.resampled[image] += 1
            found.append(_in_place(chosen, self.count))
        return found

    def picked(self, image: int, scores: Tensor, pick: str) -> int:
        """The particle that is given: that of the best score, or one drawn by the weights."""
        if pick == "best":
            return int(scores.argmax())
        edges = self.weights()[image].cumsum(0)
        point = torch.rand((), generator=self._draws[image], dtype=torch.float64)
        return int(torch.searchsorted(edges / edges[-1], point, right=True).clamp(max=self.count - 1))


def _in_place(chosen: list[int], count: int) -> list[int]:
    """The same ancestors, with each that goes on in its own place if it does at all."""
    left, found = list(chosen), [-1] * count
    for place in range(count):
        if place in left:
            left.remove(place)
            found[place] = place
    further = iter(left)
    return [next(further) if one < 0 else one for one in found]


def check_particles(particles: int, threshold: float, every: int, pick: str) -> tuple[int, float, int, str]:
    """The settings that samplers with particles share.

    Raises:
        ConfigError: one is out of range.
    """
    return (
        check_whole_number("sampler.particles", particles, least=2),
        check_number("sampler.threshold", threshold, least=0, most=1),
        check_whole_number("sampler.every", every, least=1),
        check_choice("sampler.pick", pick, PICKS),
    )


def check_draws(solver: Solver, name: str) -> None:
    """Refuse a scheduler whose steps draw no noise for each image, by which alone copies of a particle part.

    Raises:
        ConfigError: it is one.
    """
    accepted = "accepted are euler_a, ddpm, dpmpp_2m_sde, ddim with scheduler.options.eta=1 and others that add noise"
    if "deterministic" in solver.supports:
        raise ConfigError(
            f"sampler: {name} copies particles, which part by the noise of the steps alone, and scheduler {solver.name} adds "
            f"none; {accepted}."
        )
    if not getattr(solver, "draws_by_image", True):
        raise ConfigError(
            f"sampler: {name} needs noise by particle, and scheduler {solver.name} draws for the whole batch; {accepted}."
        )
