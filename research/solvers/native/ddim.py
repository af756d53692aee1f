"""DDIM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update, to_data
from research.solvers.native.upstream_options import clip_of, only_defaults


@dataclass(frozen=True)
class DDIM(LinearSolver):
    """Denoising diffusion implicit models (arXiv:2010.02502, eq. 12; the variance is that of eq. 16).

    ``x' = signal' D + sqrt(noise'^2 - c^2) e + c z`` with the noise ``e = (x - signal D) / noise`` that the data prediction
    implies, clipped or not (as guided-diffusion's ``ddim_sample``; diffusers' class goes along the unclipped noise), and
    ``c = eta * (noise' / noise) * sqrt(1 - signal^2 / signal'^2)``. For flow models at eta 0 it is Euler's step.

    Args:
        eta: 0 is deterministic, 1 has the variance of DDPM.
        clip: of data predictions, see `LinearSolver`.
    """

    eta: float = 0.0
    clip: float | None = None
    levels_like = "DDIMScheduler"

    @property
    def claimed_order(self) -> int | None:
        return None if self.eta else 1

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        shrunk = 1.0 - (start.signal / end.signal) ** 2 if self.eta else 0.0
        noise = self.eta * end.noise / start.noise * math.sqrt(max(shrunk, 0.0))
        return to_data(start, end, {0: 1.0}, noise=min(noise, end.noise))

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> DDIM | None:
        # its class goes along the noise of the prediction that was not clipped, and so to another picture than any solver of the
        # clipped ODE: whoever says so gets it
        asked = step_options.get("use_clipped_model_output", True) or not config.get("clip_sample")
        own = {"eta", "use_clipped_model_output"}
        if not asked or not only_defaults(config, thresholding=False) or set(step_options) - own:
            return None
        return cls(eta=float(step_options.get("eta", 0.0)), clip=clip_of(config))
