"""Latent consistency models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update
from research.solvers.native.upstream_options import clip_of, only_defaults


@dataclass(frozen=True)
class LCM(LinearSolver):
    """Multistep consistency sampling (Latent consistency models, arXiv:2310.04378, algorithm 3): the consistency function
    ``f = c_skip x + c_out D`` is noised afresh to the next level, ``x' = signal' f + noise' z``; the last step is ``f``.

    Boundary conditions (Consistency models, arXiv:2303.01469, appendix C) at the scaled timestep ``s = timestep_scaling * t``:
    ``c_skip = sigma_data^2 / (s^2 + sigma_data^2)`` and ``c_out = s / sqrt(s^2 + sigma_data^2)``.

    Args:
        timestep_scaling, sigma_data: of the boundary conditions.
        clip: of data predictions, see `LinearSolver`.
    """

    timestep_scaling: float = 10.0
    sigma_data: float = 0.5
    clip: float | None = None
    levels_like = "LCMScheduler"

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        total = (self.timestep_scaling * start.time) ** 2 + self.sigma_data**2
        skip, out = self.sigma_data**2 / total, self.timestep_scaling * start.time / total**0.5
        if i + 1 == levels.steps:
            return Update({0: skip}, {0: out})
        return Update({0: end.signal * skip}, {0: end.signal * out}, noise=end.noise)

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> LCM | None:
        if step_options or not only_defaults(config, thresholding=False, sigma_data=0.5):
            return None
        return cls(float(config.get("timestep_scaling", 10.0)), clip=clip_of(config))
