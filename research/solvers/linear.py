"""Solvers as tables of numbers: what a solver of one's own says, and the two steps that most are made of.

Nearly every solver of the field moves latents by a linear combination of what is known,

    x[i+1] = sum_j latents[j] * x[i-j] + sum_j data[j] * D[i-j] + sum_j slopes[j] * d[i-j] + noise * z,

with latents ``x`` and data predictions ``D`` (estimates of x0) at the evaluations behind, ``z`` fresh standard normal noise, and
slopes ``d = (x / scale - D) / sigma``, the derivative of ``x / scale`` by sigma: the predicted noise of a variance-preserving
model, the predicted velocity of a flow model. All coefficients are known once the noise levels are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from research.arguments import Recorded
from research.errors import ConfigError
from research.solvers.levels import Level, Levels

_NOTHING: Mapping[int, float] = {}


@dataclass(frozen=True, slots=True)
class Update:
    """How latents get from one evaluation of the model to the next.

    Attributes:
        latents, data, slopes: factors by how many evaluations back, 0 is the one just made.
        noise: factor of the fresh noise; 0 draws none.
        interval: two sigmas, the larger first: the noise is the increment of one Brownian path of the image between them, scaled
            to variance 1, so that it does not depend on the number of steps.
        lead: for guidance with a noise of its own to go along (CFG++, arXiv:2406.08070): all above is then made of the
            predictions that this noise implies, and the data prediction of the guidance, minus that of the noise, is added this
            many times. 0 within a step, the signal at its end where it is the step; None has no such kind. A step without memory
            needs none said: it is a function of the two.
    """

    latents: Mapping[int, float]
    data: Mapping[int, float] = field(default_factory=lambda: _NOTHING)
    slopes: Mapping[int, float] = field(default_factory=lambda: _NOTHING)
    noise: float = 0.0
    interval: tuple[float, float] | None = None
    lead: float | None = None

    @property
    def depth(self) -> int:
        """The furthest evaluation back that is looked at."""
        return max((back for part in (self.latents, self.data, self.slopes) for back in part), default=0)

    def scaled(self, factor: float, noise: float = 0.0) -> Update:
        """The same, times a factor, with other noise."""
        latents, data, slopes = (
            {back: factor * value for back, value in part.items()} for part in (self.latents, self.data, self.slopes)
        )
        lead = None if self.lead is None else factor * self.lead
        return Update(latents, data, slopes, noise, self.interval, lead)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One evaluation of the model.

    Attributes:
        level: where the model is asked.
        update: what leads from there to the level of the next evaluation, or to the end.
        step: the step of the grid that it belongs to, from 0.
    """

    level: Level
    update: Update
    step: int


class LinearSolver(Recorded):
    """A solver whose updates are linear. One with an evaluation a step writes `update`; any other writes `plan`.

    Attributes:
        levels_like: the class of diffusers whose timesteps are "the model's own" for this solver.
        divides: whether it divides by the distance of two levels, so that none may come twice.
        clip: data predictions are cut to [-clip, clip], and slopes are those to what is left; None cuts where the config of the
            model asks for it (``clip_sample`` of pixel models), infinity leaves them whatever it asks.
    """

    levels_like: ClassVar[str] = "EulerDiscreteScheduler"
    divides: ClassVar[bool] = False
    clip: float | None = None

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        """The evaluations of a run over a grid, in order.

        Args:
            levels: what is walked, at least two; a run sliced by strength gets the last ones alone.
        """
        return [StagePlan(levels[i], self.update(levels, i), i) for i in range(levels.steps)]

    def update(self, levels: Levels, i: int) -> Update:
        """What leads from level ``i`` to level ``i + 1`` when ``i`` evaluations were made before, one at each level."""
        raise ConfigError(
            f"scheduler: {type(self).__name__} has neither update nor plan; accepted is a LinearSolver with one of the two."
        )

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> LinearSolver | None:
        """The solver that does what diffusers' class of this config does, or None where it does something else.

        Args:
            config: all of the class's settings, defaults included.
            step_options: further arguments of its ``step``.
        """
        return None

    @property
    def claimed_order(self) -> int | None:
        """How fast the error falls with the number of steps, as a power, on smooth levels that begin with short steps; None where
        nothing is claimed, as of what adds noise. `research.testing.orders` measures it."""
        return None


def to_data(
    start: Level, end: Level, weights: Mapping[int, float], *, noise: float = 0.0, back: int = 0, interval: Any = None
) -> Update:
    """The step from ``start`` to ``end`` if the data prediction were constant, at an affine combination of data predictions.

    With ``c`` the noise added, ``x' = s x + (signal' - s signal) * sum_j w[j] D[j] + c z`` and
    ``s = sqrt(noise'^2 - c^2) / noise``: the exact solution of the probability-flow ODE at c = 0 (DDIM, arXiv:2010.02502, eq. 12;
    DPM-Solver++, arXiv:2211.01095, eq. 8), and for every c of the family that keeps the marginals (DDIM, eq. 7).

    Args:
        start, end: levels; ``start`` has noise.
        weights: of data predictions by how many evaluations back; they sum to 1.
        noise: standard deviation ``c`` of what is added, at most that of ``end``.
        back: how many evaluations back the latents of ``start`` are.
    """
    kept = math.sqrt(max(end.noise**2 - noise**2, 0.0)) / start.noise
    toward = end.signal - kept * start.signal
    data = {key: toward * weight for key, weight in weights.items()}
    return Update({back: kept}, data, noise=noise, interval=interval)


def along(start: Level, end: Level, weights: Mapping[int, float], *, back: int = 0) -> Update:
    """The straight step from ``start`` to ``end`` in sigma along an average of slopes: Euler's (EDM, arXiv:2206.00364, alg. 1).

    Args:
        weights: of slopes by how many evaluations back; they sum to 1.
        back: how many evaluations back the latents of ``start`` are.
    """
    if not start.signal and not start.flow:
        # no signal, sigma is infinite: what the step leads to is the data prediction, noised with the predicted noise
        newest = min(weights)
        return Update({back: end.noise / start.noise}, {newest: end.signal})
    if len(weights) == 1 and back in weights:
        return to_data(start, end, {back: 1.0}, back=back)
    length = end.scale * (end.sigma - start.sigma)
    return Update({back: end.scale / start.scale}, slopes={key: length * weight for key, weight in weights.items()})


def after_noise(update: Update, level: Level, noisier: Level) -> Update:
    """An update to ``level`` that goes on by fresh noise to ``noisier``, where the next evaluation is made.

    Latents are rescaled and noise is added: ``x' = r x + sqrt(noise'^2 - (r noise)^2) z`` with ``r = signal' / signal``.
    """
    factor = noisier.signal / level.signal
    added = math.sqrt(max(noisier.noise**2 - (factor * level.noise) ** 2, 0.0))
    return update.scaled(factor, math.hypot(factor * update.noise, added))
