"""SEEDS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from research.checks import check_whole_number
from research.errors import ConfigError
from research.solvers.levels import Level, Levels
from research.solvers.linear import LinearSolver, StagePlan, Update, to_data
from research.solvers.native.exponential import Noise, check_noise, check_part, check_range, path_between, phi


@dataclass(frozen=True)
class SEEDS(LinearSolver):
    """Stochastic explicit exponential derivative-free solvers (arXiv:2305.14267, algorithms 2 and 3, data prediction; ComfyUI's
    ``sample_seeds_2`` and ``sample_seeds_3``): exponential Runge-Kutta in half-log-SNR for the SDE, where evaluations within a
    step see parts of that step's noise.

    With ``h = lambda' - lambda`` and ``z = (1 + eta) h``, a stage at the part c of a step is

        x_c = (noise_c / noise) e^(-eta c h) x + signal_c (1 - e^(-c z)) D* + noise_c sqrt(1 - e^(-2 eta c h)) w_c

    with ``D*`` by phi_2 from the stages before. SEEDS-3 is the third-order method of Hochbruck and Ostermann at eta 0.

    Args:
        order: 2 or 3, and so many evaluations a step; the last, to a clean end, has one, and so has one from noise alone.
        eta: how much of the noise is fresh; 0 is the ODE, 1 the paper's SDE.
        r1, r2: parts of the step at which the second and third evaluation are made; None is 1/2, and 1/3 and 2/3 at order 3.
        kind: weights of order 2: "phi_1", of the midpoint, or "phi_2".
        s_noise: factor of the noise that is added.
        noise: "fresh", or "brownian", an increment of one path an image.

    Raises:
        ConfigError: an option is none of these.
    """

    order: int = 2
    eta: float = 1.0
    r1: float | None = None
    r2: float | None = None
    kind: Literal["phi_1", "phi_2"] = "phi_1"
    s_noise: float = 1.0
    noise: Noise = "fresh"
    levels_like = "DPMSolverSinglestepScheduler"

    @property
    def claimed_order(self) -> int | None:
        return None if self.eta else self.order

    def __post_init__(self) -> None:
        check_whole_number("scheduler.options.order", self.order, least=2, most=3)
        check_range("eta", self.eta)
        check_range("s_noise", self.s_noise)
        check_noise(self.noise)
        for key, value in (("r1", self.r1), ("r2", self.r2)):
            if value is not None:
                check_part(key, value)
        if self.kind not in ("phi_1", "phi_2"):
            raise ConfigError(f"scheduler.options.kind: found {self.kind!r}; accepted are 'phi_1' and 'phi_2'.")
        parts = self._parts()
        if parts != sorted(set(parts)):
            raise ConfigError(
                f"scheduler.options.r2: found {parts[1]:g}, with r1={parts[0]:g}; accepted is more than r1."
            )

    def _parts(self) -> list[float]:
        if self.order == 2:
            return [0.5 if self.r1 is None else self.r1]
        return [1 / 3 if self.r1 is None else self.r1, 2 / 3 if self.r2 is None else self.r2]

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        stages = []
        for i in range(levels.steps):
            start, end = levels[i], levels[i + 1]
            h = end.half_log_snr - start.half_log_snr
            if not 0.0 < h < math.inf:
                stages.append(StagePlan(start, self._from_nothing(start, end, h), i))
                continue
            parts = [*self._parts(), 1.0]
            inner = [levels.trained.at_half_log_snr(start.half_log_snr + c * h) if c < 1 else end for c in parts[:-1]]
            reached = [start, *inner, end]
            before: Update | None = None
            for k, weights in enumerate(self._tableau((1.0 + self.eta) * h, parts)):
                spent = -math.expm1(-2.0 * self.eta * h * parts[k])
                smooth = to_data(start, reached[k + 1], weights, noise=reached[k + 1].noise * math.sqrt(spent), back=k)
                stages.append(StagePlan(reached[k], self._noised(smooth, before, reached, parts, h, k), i))
                before = smooth
        return stages

    def _from_nothing(self, start: Level, end: Level, h: float) -> Update:
        noise = end.noise if self.eta and h == math.inf else 0.0
        step = to_data(start, end, {0: 1.0}, noise=noise)
        interval = path_between(self.noise, start, end) if noise else None
        return Update(step.latents, step.data, noise=self.s_noise * noise, interval=interval)

    def _tableau(self, z: float, parts: list[float]) -> list[dict[int, float]]:
        """Weights of data predictions for each stage by how many evaluations back; they sum to 1."""
        c1 = parts[0]
        whole = z * phi(1, -z)
        if self.order == 2:
            b2 = 1.0 / (2.0 * c1) if self.kind == "phi_1" else z * phi(2, -z) / c1 / whole
            return [{0: 1.0}, {0: b2, 1: 1.0 - b2}]
        c2 = parts[1]
        a2 = c2 / c1 * phi(2, -c2 * z) / phi(1, -c2 * z)
        b3 = phi(2, -z) / c2 / phi(1, -z)
        return [{0: 1.0}, {0: a2, 1: 1.0 - a2}, {0: b3, 1: 0.0, 2: 1.0 - b3}]

    def _noised(
        self, smooth: Update, before: Update | None, reached: list[Level], parts: list[float], h: float, k: int
    ) -> Update:
        """A stage with its noise: fresh, and that of the stage before, by which latents there are off its smooth part."""
        end = reached[k + 1]
        if not self.eta:
            return Update(smooth.latents, smooth.data)
        gap = 2.0 * self.eta * h * (parts[k] - (parts[k - 1] if k else 0.0))
        fresh = end.noise * math.sqrt(-math.expm1(-gap))
        interval = path_between(self.noise, reached[k], end) if fresh else None
        latents, data = dict(smooth.latents), dict(smooth.data)
        if before is not None:
            kept = end.noise / reached[k].noise * math.exp(-gap / 2.0)
            latents[0] = latents.get(0, 0.0) + kept
            for own, part in ((latents, before.latents), (data, before.data)):
                for back, factor in part.items():
                    own[back + 1] = own.get(back + 1, 0.0) - kept * factor
        return Update(latents, data, noise=self.s_noise * fresh, interval=interval)
