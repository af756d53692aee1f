"""Euler's method with ancestral noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update, to_data
from research.solvers.native.ancestral import ancestral


@dataclass(frozen=True)
class EulerAncestral(LinearSolver):
    """Euler's method to a level below the next, and fresh noise up to it (k-diffusion's ``sample_euler_ancestral``).

    At eta 1 on variance-preserving models it samples the posterior as DDPM does.

    Args:
        eta: how much of the noise is fresh; 0 is Euler's method.
        s_noise: factor of the noise that is added.
        clip: of data predictions, see `LinearSolver`.
    """

    eta: float = 1.0
    s_noise: float = 1.0
    clip: float | None = None
    levels_like = "EulerAncestralDiscreteScheduler"

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        _, noise = ancestral(start, end, self.eta)
        step = to_data(start, end, {0: 1.0}, noise=noise)
        return Update(step.latents, step.data, noise=self.s_noise * noise)

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> EulerAncestral | None:
        return None if step_options else cls()
