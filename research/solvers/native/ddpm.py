"""DDPM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from research.errors import ConfigError
from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update, to_data
from research.solvers.native.upstream_options import clip_of, only_defaults


@dataclass(frozen=True)
class DDPM(LinearSolver):
    """Ancestral sampling (DDPM, arXiv:2006.11239, algorithm 2 and eq. 7): the posterior mean at the data prediction, and noise.

    With ``beta = 1 - (signal / signal')^2`` the noise has variance ``beta (noise' / noise)^2`` ("small", the posterior's) or
    ``beta`` ("large", section 3.2). The last step adds none; diffusers' class adds it with "fixed_large" where its last timestep
    is above 0 (``steps_offset: 1``).

    Args:
        variance: "small" or "large".
        clip: of data predictions, see `LinearSolver`.

    Raises:
        ConfigError: another variance.
    """

    variance: Literal["small", "large"] = "small"
    clip: float | None = None
    levels_like = "DDPMScheduler"

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise ConfigError(f"scheduler.options.variance: found {self.variance!r}; accepted are 'small' and 'large'.")

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        beta = 1.0 - (start.signal / end.signal) ** 2
        posterior = math.sqrt(max(beta, 0.0)) * end.noise / start.noise
        step = to_data(start, end, {0: 1.0}, noise=min(posterior, end.noise))
        if i + 1 == levels.steps:
            return Update(step.latents, step.data)
        return step if self.variance == "small" else Update(step.latents, step.data, noise=math.sqrt(max(beta, 0.0)))

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> DDPM | None:
        kinds: dict[Any, Literal["small", "large"]] = {
            "fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "fixed_large_log": "large"
        }  # fmt: skip
        variance = kinds.get(config.get("variance_type", "fixed_small"))
        if variance is None or step_options or not only_defaults(config, thresholding=False):
            return None
        return cls(variance=variance, clip=clip_of(config))
