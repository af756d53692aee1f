"""Euler's method, with the churn of EDM."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, StagePlan, Update, after_noise, along
from research.solvers.native.upstream_options import only_defaults


@dataclass(frozen=True)
class Churn(LinearSolver):
    """What Euler's and Heun's methods share: before a step noise is raised from sigma to ``sigma * (1 + gamma)`` (EDM,
    arXiv:2206.00364, algorithm 2), with ``gamma = min(s_churn / steps, sqrt(2) - 1)`` where sigma is in [s_tmin, s_tmax].

    The model is asked at the raised level. (Diffusers' classes raise the latents after they asked, and ask at the lower one.)

    Args:
        s_churn: 0 is deterministic.
        s_tmin, s_tmax: sigmas between which noise is raised.
        s_noise: factor of the noise that is added.
        clip: of data predictions, see `LinearSolver`.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0
    clip: float | None = None

    def churned(self, levels: Levels) -> Levels:
        """The grid with the levels at which the model is asked; the end stays."""
        if not self.s_churn:
            return levels
        gamma = min(self.s_churn / max(levels.n_steps, levels.steps), math.sqrt(2.0) - 1.0)
        raised = []
        for level in levels[:-1]:
            inside = self.s_tmin <= level.sigma <= self.s_tmax
            sigma = min(level.sigma * (1.0 + gamma), 1.0) if levels.flow else level.sigma * (1.0 + gamma)
            raised.append(levels.trained.at_sigma(sigma) if inside else level)
        return replace(levels, grid=(*raised, levels[-1]))

    def raised(self, update: Update, levels: Levels, asked: Levels, i: int) -> Update:
        """An update that ends at level ``i`` of the grid, taken on to where the model is asked."""
        if asked[i] is levels[i] or i == levels.steps:
            return update
        more = after_noise(update, levels[i], asked[i])
        return replace(more, noise=self.s_noise * more.noise)

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> Churn | None:
        own = {"s_churn", "s_tmin", "s_tmax", "s_noise"}
        fits = only_defaults(config, stochastic_sampling=False)
        return cls(**{k: float(v) for k, v in step_options.items()}) if fits and set(step_options) <= own else None


@dataclass(frozen=True)
class Euler(Churn):
    """Euler's method in sigma (EDM, arXiv:2206.00364, algorithm 2 without its correction): ``x / scale`` moves along its slope.

    Without churn it is DDIM's step at eta 0; a flow model moves along its velocity.

    Args:
        s_churn, s_tmin, s_tmax, s_noise, clip: see `Churn`.
    """

    @property
    def claimed_order(self) -> int | None:
        return None if self.s_churn else 1

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        asked = self.churned(levels)
        stages = []
        for i in range(levels.steps):
            update = along(asked[i], levels[i + 1], {0: 1.0})
            stages.append(StagePlan(asked[i], self.raised(update, levels, asked, i + 1), i))
        return stages
