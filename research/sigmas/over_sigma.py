"""Grids that are curves over sigma, from the largest level to the smallest. For flow models sigma is the flow time, in (0, 1].

Where a model was trained at zero terminal SNR its largest level is infinite: the curve then begins at the largest finite one, and
the run at noise alone in its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from research.checks import check_fractions, check_number
from research.errors import ConfigError
from research.sigmas.grid import Range, as_levels, check_end, check_range, check_steps, range_of, shares
from research.solvers.levels import Levels, TrainedLevels


@dataclass(frozen=True)
class OverSigma:
    """A curve over sigma.

    Args:
        end: "zero" puts 0 after the smallest level, so that the last step ends clean; with "smallest" the last step ends at the
            smallest level.
        sigma_min, sigma_max: ends of the curve; None is the model's own.

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
        found = self._range(trained)
        sigmas = self._sigmas(check_steps(steps), found)
        return as_levels(self.name, sigmas, trained, self.end, from_noise_alone=found.from_noise_alone)

    def _range(self, trained: TrainedLevels) -> Range:
        return range_of(trained, self.sigma_min, self.sigma_max)

    def _sigmas(self, steps: int, ends: Range) -> list[float]:
        """Without the zero at the end."""
        between = [self._at(share, ends.low, ends.high) for share in shares(steps, self.end)]
        between[0] = ends.high
        if len(between) > 1:
            between[-1] = ends.low
        return between

    def _at(self, share: float, low: float, high: float) -> float:
        """The level at a share of the way from ``high`` to ``low``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Karras(OverSigma):
    """Even in ``sigma ** (1 / rho)`` (Karras et al., arXiv:2206.00364, eq. 5).

    ``sigma_i = (max ** (1/rho) + i / (n-1) * (min ** (1/rho) - max ** (1/rho))) ** rho``

    Args:
        rho: above 0; 7 in the paper, larger ones take smaller steps near the end.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sigmas.rho", self.rho, above=0.0)

    def _at(self, share: float, low: float, high: float) -> float:
        first, last = high ** (1 / self.rho), low ** (1 / self.rho)
        return float((first + share * (last - first)) ** self.rho)


@dataclass(frozen=True)
class EDM(Karras):
    """`Karras` over the range of EDM's own models, 0.002 to 80 (arXiv:2206.00364, table 1), cut to what the model knows.

    A model that was trained on less, as Stable Diffusion on 0.029 to 14.6, has its own range, so this is then `Karras`;
    so it is for flow models, whose times are another scale.
    """

    sigma_min: float | None = 0.002
    sigma_max: float | None = 80.0

    def _range(self, trained: TrainedLevels) -> Range:
        own = range_of(trained, None, None)
        if trained.flow:
            return own
        low = own.low if self.sigma_min is None else max(self.sigma_min, own.low)
        if self.sigma_max is None or self.sigma_max >= trained.sigma_max:
            return replace(own, low=low)
        if low >= self.sigma_max:
            raise ConfigError(f"sigmas.sigma_max: found {self.sigma_max:g}; accepted is a number above {low:g}.")
        return Range(low, self.sigma_max)


@dataclass(frozen=True)
class Exponential(OverSigma):
    """Even in ``log(sigma)``, as in k-diffusion: ``sigma_i = exp(log(max) + i / (n-1) * (log(min) - log(max)))``.

    For models that predict noise this is even in half-log-SNR; see `LogSnrUniform`, which is so for flow models too.
    """

    def _at(self, share: float, low: float, high: float) -> float:
        return math.exp(math.log(high) + share * (math.log(low) - math.log(high)))


@dataclass(frozen=True)
class Polyexponential(OverSigma):
    """A power in ``log(sigma)``, as in k-diffusion: ``sigma_i = min * (max / min) ** ((1 - i / (n-1)) ** rho)``.

    Args:
        rho: above 0; 1 is `Exponential`.
    """

    rho: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sigmas.rho", self.rho, above=0.0)

    def _at(self, share: float, low: float, high: float) -> float:
        return float(math.exp((1 - share) ** self.rho * math.log(high / low) + math.log(low)))


@dataclass(frozen=True)
class KLOptimal(OverSigma):
    """Even in ``arctan(sigma)``: what minimises an upper bound of the KL divergence for Gaussian data of unit variance (Align
    Your Steps, arXiv:2404.14507, theorem 3.1), ``sigma_i = tan(i / (n-1) * arctan(min) + (1 - i / (n-1)) * arctan(max))``.
    """

    def _at(self, share: float, low: float, high: float) -> float:
        return math.tan(share * math.atan(low) + (1 - share) * math.atan(high))


@dataclass(frozen=True)
class LinearQuadratic(OverSigma):
    """Small even steps first, then steps that grow quadratically (Movie Gen, arXiv:2410.13720, section 3.4.2; LTX-Video, Mochi).

    The first ``linear`` of the steps go evenly down to ``1 - threshold`` of the largest level; a parabola with the same slope
    goes on to 0. For noise-predicting models the levels of [0, 1] are multiplied by the largest sigma.

    Args:
        threshold: share of the way that the even steps go, between 0 and 1.
        linear: share of the steps that are even, between 0 and 1.
    """

    threshold: float = 0.025
    linear: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sigmas.threshold", self.threshold, above=0.0, below=1.0)
        check_fractions("sigmas.linear", (0.0, self.linear))

    def _sigmas(self, steps: int, ends: Range) -> list[float]:
        even = int(steps * self.linear)
        even_step = self.threshold / even if even else 0.0
        gone = [i * even_step for i in range(even)]
        rest = steps - even
        start = self.threshold if even else 0.0
        # of the parabola through (0, start) with slope even_step, and through (rest, 1)
        bend = (1.0 - start - even_step * rest) / rest**2 if rest else 0.0
        gone += [start + even_step * i + bend * i**2 for i in range(rest)]
        low = 0.0 if self.end == "zero" else ends.low
        found = [low + (1.0 - share) * (ends.high - low) for share in gone]
        return found if self.end == "zero" else [*found, ends.low]
