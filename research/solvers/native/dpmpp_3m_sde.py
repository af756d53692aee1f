"""DPM-Solver++(3M) for the SDE, on a Brownian path."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from research.checks import check_whole_number
from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update, to_data
from research.solvers.native.dpmpp import multistep_weights
from research.solvers.native.exponential import Noise, check_noise, check_range, path_between


@dataclass(frozen=True)
class DPMpp3MSDE(LinearSolver):
    """DPM-Solver++ (arXiv:2211.01095) for the SDE, multistep (k-diffusion's ``sample_dpmpp_3m_sde``): with lambda the half
    log-SNR and ``h = lambda' - lambda``,

        x' = (noise' / noise) e^(-eta h) x + signal' (1 - e^(-(1 + eta) h)) D* + noise' sqrt(1 - e^(-2 eta h)) z,

    where ``D*`` adds to the data prediction its first and second difference, weighted by phi_2 and phi_3.

    The second difference has half the weight that integrating the parabola through the three predictions gives, as in
    DPM-Solver++(3M) itself; so at eta 0 the order is 2 (`research.solvers.native.res.ResMultistep` has the whole, and order 3).

    Args:
        order: 1 to 3; the first steps have less, and the last, to a clean end, is of first order.
        eta: how much of the noise is fresh; 0 is the ODE, 1 the reverse SDE.
        s_noise: factor of the noise that is added.
        noise: "brownian", an increment of one path an image, which other step counts follow too, or "fresh".

    Raises:
        ConfigError: an option is none of these.
    """

    order: int = 3
    eta: float = 1.0
    s_noise: float = 1.0
    noise: Noise = "brownian"
    levels_like = "DPMSolverMultistepScheduler"
    divides = True

    def __post_init__(self) -> None:
        check_whole_number("scheduler.options.order", self.order, least=1, most=3)
        check_range("eta", self.eta)
        check_range("s_noise", self.s_noise)
        check_noise(self.noise)

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        if not end.noise:
            return to_data(start, end, {0: 1.0})
        h = end.half_log_snr - start.half_log_snr
        lambdas = [levels.half_log_snr(i - k) for k in range(min(self.order, i + 1))]
        weights = multistep_weights(lambdas, h, 1.0 + self.eta, "heun") if h else {0: 1.0}
        noise = end.noise * math.sqrt(-math.expm1(-2.0 * self.eta * h)) if self.eta else 0.0
        step = to_data(start, end, weights, noise=noise, interval=path_between(self.noise, start, end))
        return replace(step, noise=self.s_noise * noise)
