"""Grids that are curves over the ratio of noise and signal, for models that predict noise and flow alike.

With ``r = noise / signal``, which is sigma for models that predict epsilon, x0 or v, and ``sigma / (1 - sigma)`` for flow. Noise
alone is infinitely far: a run of a flow model, or of one trained at zero terminal SNR, begins there, and the curve in its place
at the model's largest level below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from research.checks import check_number
from research.sigmas.grid import as_levels, check_end, check_range, check_steps, largest_finite, range_of, shares
from research.solvers.levels import Levels, TrainedLevels


@dataclass(frozen=True)
class OverSnr:
    """A curve over ``log(noise / signal)``.

    Args:
        end: "zero" puts a clean end after the smallest level; with "smallest" the last step ends at the smallest level.
        sigma_min, sigma_max: ends of the curve, as sigmas; None is the model's own.

    Raises:
        ConfigError: an option out of its range; when levels are asked for, a range that the model does not know.
    """

    end: str = "zero"
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        check_end(self.end)
        check_range(self.sigma_min, self.sigma_max)

    @property
    def name(self) -> str:
        return type(self).__name__

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        """See `research.solvers.levels.Schedule`."""
        found = range_of(trained, self.sigma_min, self.sigma_max)
        from_noise_alone = found.from_noise_alone or (trained.flow and found.high == 1.0)
        high = largest_finite(trained) if from_noise_alone else found.high
        first, last = self._place(_log_ratio(trained, high)), self._place(_log_ratio(trained, found.low))
        places = shares(check_steps(steps), self.end)
        logs = [self._log_ratio(first + share * (last - first)) for share in places]
        sigmas = [trained.at_half_log_snr(-log).sigma for log in logs]
        sigmas[0] = high
        if len(sigmas) > 1:
            sigmas[-1] = found.low
        return as_levels(self.name, sigmas, trained, self.end, from_noise_alone=from_noise_alone)

    def _place(self, log_ratio: float) -> float:
        """Where on the axis on which the grid is even a log-ratio lies."""
        raise NotImplementedError

    def _log_ratio(self, place: float) -> float:
        """The inverse of `_place`."""
        raise NotImplementedError


def _log_ratio(trained: TrainedLevels, sigma: float) -> float:
    return -trained.at_sigma(sigma).half_log_snr


@dataclass(frozen=True)
class LogSnrUniform(OverSnr):
    """Even in half-log-SNR, ``log(signal / noise)`` (DPM-Solver, arXiv:2206.00927, section 3.4; Lu's lambdas in diffusers)."""

    def _place(self, log_ratio: float) -> float:
        return log_ratio

    def _log_ratio(self, place: float) -> float:
        return place


@dataclass(frozen=True)
class Cosine(OverSnr):
    """Even in the time of the cosine schedule (Improved DDPM, arXiv:2102.09672, eq. 17), of which the levels that the model
    knows are used: ``signal**2 = f(t) / f(0)``, ``f(t) = cos((t + s) / (1 + s) * pi / 2) ** 2``.

    Args:
        s: the paper's offset, from 0 to 1. With 0 this is even in ``arctan(sigma)``, so `KLOptimal`.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sigmas.s", self.s, least=0.0, most=1.0)

    @property
    def _f0(self) -> float:
        return math.cos(self.s / (1 + self.s) * math.pi / 2) ** 2

    def _place(self, log_ratio: float) -> float:
        # signal**2 = 1 / (1 + r**2)
        f = self._f0 / (1.0 + math.exp(2 * log_ratio))
        return math.acos(math.sqrt(f)) * 2 / math.pi * (1 + self.s) - self.s

    def _log_ratio(self, place: float) -> float:
        f = math.cos((place + self.s) / (1 + self.s) * math.pi / 2) ** 2
        return 0.5 * math.log((self._f0 - f) / f)


@dataclass(frozen=True)
class Laplace(OverSnr):
    """Even quantiles of a Laplace distribution of ``log(noise / signal)``, cut to the model's range: most levels lie where that
    is near ``mu`` (Improved Noise Schedule, arXiv:2407.03297, table 1: ``mu - b * sgn(0.5 - t) * log(1 - 2 * |t - 0.5|)``).

    ComfyUI clamps the outer quantiles instead of cutting the distribution, so a level may come twice there.

    Args:
        mu: the middle. Both numbers are of the logarithm of the ratio, as ComfyUI's; the paper's log-SNR is -2 times it.
        b: width, above 0.
    """

    mu: float = 0.0
    b: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sigmas.mu", self.mu)
        check_number("sigmas.b", self.b, above=0.0)

    # A share of the distribution rounds to 1 far out, so a place is signed: below 0 it is minus what lies above the level,
    # else what lies below it, each less the half at the middle.
    def _place(self, log_ratio: float) -> float:
        distance = (log_ratio - self.mu) / self.b
        return -math.copysign(0.5 * -math.expm1(-abs(distance)), distance)

    def _log_ratio(self, place: float) -> float:
        return self.mu - self.b * math.copysign(-math.log1p(-2 * abs(place)), place)
