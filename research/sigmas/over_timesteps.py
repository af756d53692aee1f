"""Grids that choose among a model's timesteps. A flow model's are those of its own schedule, its shift included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from research.checks import check_choice, check_number, check_whole_number
from research.errors import ConfigError
from research.sigmas.grid import as_levels, check_end, check_steps, finished, largest_finite, range_of, shares, shifted
from research.solvers.levels import Level, Levels, TrainedLevels


def at_place(trained: TrainedLevels, place: float) -> Level:
    """The level at a place among the trained ones, 0 the smallest; between two linear in log-sigma, for flow in time."""
    if trained.flow:
        return trained.at_sigma(shifted(trained, min((place + 1.0) / trained.n_timesteps, 1.0)))
    last = trained.n_timesteps - 1
    if trained.sigma_max == math.inf and last - 1 < place < last:
        # between the largest finite level and noise alone: so far past it as the step before it is, at most
        high = largest_finite(trained)
        level = trained.at_sigma(high * (high / trained.sigmas[last - 2]) ** (place - last + 1))
        return Level(level.signal, level.noise, place)
    return trained.at_time(place)


@dataclass(frozen=True)
class OverTimesteps:
    """A choice among the timesteps.

    Args:
        end: "zero" puts a clean end after the last timestep; with "smallest" the last step ends at the level of timestep 0.

    Raises:
        ConfigError: an option out of its range; when levels are asked for, more steps than there are timesteps.
    """

    end: str = "zero"

    def __post_init__(self) -> None:
        check_end(self.end)

    @property
    def name(self) -> str:
        return type(self).__name__

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        """See `research.solvers.levels.Schedule`."""
        places = self._places(check_steps(steps), trained.n_timesteps)
        return finished(self.name, [at_place(trained, place) for place in places], trained, self.end)

    def _places(self, steps: int, count: int) -> list[float]:
        """Falling places among ``count`` timesteps, the end at zero left out."""
        raise NotImplementedError

    def _check_whole(self, steps: int, count: int) -> None:
        most = count if self.end == "zero" else count - 1
        check_whole_number("steps", steps, least=1, most=most, accepted=f"a whole number from 1 to {most}, as {self.name} takes "
                           f"whole timesteps and the model has {count}")  # fmt: skip


@dataclass(frozen=True)
class Simple(OverTimesteps):
    """Every so many-th timestep counted from the largest, as ComfyUI's simple: ``N - 1 - floor(i * N / n)``."""

    def _places(self, steps: int, count: int) -> list[float]:
        self._check_whole(steps, count)
        if self.end == "zero":
            return [float(count - 1 - i * count // steps) for i in range(steps)]
        return [float(count - 1 - i * (count - 1) // steps) for i in range(steps + 1)]


@dataclass(frozen=True)
class Normal(OverTimesteps):
    """Evenly spread timesteps, the first and the last included, as k-diffusion's and ComfyUI's normal (linspace in diffusers)."""

    def _places(self, steps: int, count: int) -> list[float]:
        return [(count - 1) * (1.0 - share) for share in shares(steps, self.end)]


@dataclass(frozen=True)
class SgmUniform(OverTimesteps):
    """Evenly spread timesteps, of which the last is left out, as Stability AI's generative-models: ``(N - 1) * (1 - i / n)``.

    Like trailing spacing; with ``end="smallest"`` it is `Normal`.
    """

    def _places(self, steps: int, count: int) -> list[float]:
        found = [(count - 1) * (1.0 - i / steps) for i in range(steps + 1)]
        return found[:-1] if self.end == "zero" else found


@dataclass(frozen=True)
class DDIMUniform(OverTimesteps):
    """Every so many-th timestep counted from the smallest, as in DDIM's code: ``1 + i * floor(N / n)`` (leading in diffusers).

    With few steps the largest levels are left out. ComfyUI's ddim_uniform goes on to the largest multiple, and takes more
    steps than asked for where ``n`` does not divide ``N``; here it is always ``n``. The offset of 1 is left out where it leads
    past the last timestep.
    """

    def _places(self, steps: int, count: int) -> list[float]:
        self._check_whole(steps, count)
        stride = count // steps
        offset = 1 if 1 + (steps - 1) * stride < count and count > 1 else 0
        found = [float(offset + i * stride) for i in reversed(range(steps))]
        return found if self.end == "zero" else [*found, 0.0]


@dataclass(frozen=True)
class Beta(OverTimesteps):
    """Quantiles of a Beta distribution (Beta Sampling is All You Need, arXiv:2407.12173): many steps at both ends.

    Over timesteps: ``F^-1(1 - i / n; alpha, beta) * (N - 1)`` for ``i = 0 .. n - 1``. Timesteps are not rounded, so none comes
    twice; ComfyUI rounds them and leaves out what then repeats.

    Args:
        alpha, beta: of the distribution, above 0; 0.6 in the paper.
        over: "timesteps", or "sigmas" as diffusers' ``use_beta_sigmas``: ``min + F^-1(1 - i / (n-1)) * (max - min)``.
    """

    alpha: float = 0.6
    beta: float = 0.6
    over: str = "timesteps"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sigmas.alpha", self.alpha, above=0.0)
        check_number("sigmas.beta", self.beta, above=0.0)
        check_choice("sigmas.over", self.over, ("timesteps", "sigmas"))

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        """See `research.solvers.levels.Schedule`."""
        if self.over == "timesteps":
            return super().levels(trained, steps)
        ends = range_of(trained, None, None)
        quantiles = self._quantiles([1.0 - share for share in shares(check_steps(steps), self.end)])
        sigmas = [ends.low + quantile * (ends.high - ends.low) for quantile in quantiles]
        return as_levels(self.name, sigmas, trained, self.end, from_noise_alone=ends.from_noise_alone)

    def _places(self, steps: int, count: int) -> list[float]:
        probabilities = [1.0 - i / steps for i in range(steps if self.end == "zero" else steps + 1)]
        return [quantile * (count - 1) for quantile in self._quantiles(probabilities)]

    def _quantiles(self, probabilities: list[float]) -> list[float]:
        from scipy.special import betaincinv

        found: list[float] = betaincinv(self.alpha, self.beta, probabilities).tolist()
        if any(later >= earlier for earlier, later in pairwise(found)):
            raise ConfigError(
                f"sigmas.alpha: Beta({self.alpha:g}, {self.beta:g}) has quantiles at {len(found)} levels that are the same; "
                "accepted are fewer steps, or numbers nearer to 1."
            )
        return found
