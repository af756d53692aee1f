"""A model that is known exactly and whose trajectories bend: each element is drawn from a mixture of Gaussians.

With data ``x0 ~ sum_k w_k N(m_k, s_k^2)`` and latents ``x = a x0 + b epsilon``, latents are distributed as
``sum_k w_k N(a m_k, a^2 s_k^2 + b^2)`` and the best denoiser is the mean over components of
``m_k + a s_k^2 / (a^2 s_k^2 + b^2) (x - a m_k)``, weighted by how likely each is at x.
The probability-flow ODE (arXiv:2011.13456, eq. 13) keeps the order of points on a line and so their quantiles: the right end of a
trajectory is where the distribution function has the same value, found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError
from research.sampling.prediction import Kind
from research.testing.gaussian import GaussianModel

_HALVINGS = 70  # of an interval of some ten: to the last bit of a float64


class GaussianMixtureModel(GaussianModel):
    """The best possible network for data whose elements are drawn from a mixture of Gaussians. It works in float64.

    Args:
        weights: of the components, positive; they are made to sum to 1.
        means, stds: of the components; stds above 0.
        shape: of one image's latents (C, h, w).
        prediction, scheduler_config, dtype: see `GaussianModel`.

    Raises:
        ConfigError: lists of different lengths, or a weight or std that is not above 0.
    """

    name = "gaussian mixture"
    path = "gaussian mixture"

    def __init__(
        self,
        weights: Sequence[float] = (0.3, 0.45, 0.25),
        means: Sequence[float] = (-1.4, 0.2, 1.5),
        stds: Sequence[float] = (0.35, 0.5, 0.3),
        shape: Sequence[int] = (1, 8, 8),
        prediction: Kind = "epsilon",
        scheduler_config: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        if not len(weights) == len(means) == len(stds) or not weights:
            raise ConfigError(
                f"weights: found {len(weights)} weights, {len(means)} means and {len(stds)} stds; accepted are as many of each."
            )
        if min(weights) <= 0 or min(stds) <= 0:
            raise ConfigError(f"weights, stds: found {list(weights)} and {list(stds)}; accepted are numbers above 0.")
        self.weights = torch.tensor(weights, dtype=torch.float64) / math.fsum(weights)
        self.means, self.stds = (torch.tensor(values, dtype=torch.float64) for values in (means, stds))
        mean = float((self.weights * self.means).sum())
        std = float((self.weights * (self.stds**2 + self.means**2)).sum() - mean**2) ** 0.5
        super().__init__(mean, std, shape, prediction, scheduler_config, dtype)

    def sample_clean(self, noise: Tensor) -> Tensor:
        """Data made of standard normal noise [N, C, h, w]: the element with the same quantile."""
        return self._inverse(torch.special.ndtr(noise.double()), 1.0, 0.0)

    def transport(self, x: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
        """Where the probability-flow ODE takes latents [N, C, h, w] from one level ``(signal, noise)`` to another."""
        return self._inverse(self._distribution(x.double(), *start), *end)

    def clean(self, x: Tensor, signal: float, noise: float) -> Tensor:
        """The mean of the data given latents at a level, shape of ``x``; float64."""
        wide = x.double().unsqueeze(-1)
        variance = signal**2 * self.stds**2 + noise**2
        apart = wide - signal * self.means
        likely = torch.softmax(self.weights.log() - 0.5 * variance.log() - 0.5 * apart**2 / variance, dim=-1)
        return (likely * (self.means + signal * self.stds**2 / variance * apart)).sum(-1)

    def estimates(self, x: Tensor, signal: float, noise: float) -> tuple[Tensor, Tensor]:
        """The means of data and noise given latents at a level, shape of ``x``."""
        clean = self.clean(x, signal, noise)
        return clean, (x - signal * clean) / noise

    def _distribution(self, x: Tensor, signal: float, noise: float) -> Tensor:
        spread = (signal**2 * self.stds**2 + noise**2).sqrt()
        return (self.weights * torch.special.ndtr((x.unsqueeze(-1) - signal * self.means) / spread)).sum(-1)

    def _inverse(self, value: Tensor, signal: float, noise: float) -> Tensor:
        spread = (signal**2 * self.stds**2 + noise**2).sqrt()
        low = torch.full_like(value, float((signal * self.means - 9 * spread).min()))
        high = torch.full_like(value, float((signal * self.means + 9 * spread).max()))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            above = self._distribution(middle, signal, noise) < value
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2
