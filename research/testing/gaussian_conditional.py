"""Guidance known exactly: every condition has Gaussian data of its own.

For data ``N(m_i, s_i^2)`` of branch i and ``y = x / a = x0 + sigma * epsilon``, the best denoiser is ``D_i(y) = m_i + s_i^2 /
(s_i^2 + sigma^2) * (y - m_i)``. Guidance with scale ``w`` has ``D = D_u + w (D_c - D_u)``, linear in y, so that the
probability-flow ODE ``dy/dsigma = (y - D) / sigma`` (arXiv:2206.00364, eq. 1) is linear too. With ``z = y - m_u``, ``d = m_c -
m_u`` and

    Phi(sigma) = (s_u^2 + sigma^2)^((1 - w) / 2) * (s_c^2 + sigma^2)^(w / 2)

it reads ``dz/dsigma = (Phi'/Phi) z - w d sigma / (s_c^2 + sigma^2)``; divided by Phi both sides are derivatives, and from sigma_1
down to sigma_0,

    z_0 = Phi_0 / Phi_1 * z_1 + w d Phi_0 * integral of sigma dsigma / ((s_c^2 + sigma^2) Phi).

The reverse SDE with the same marginals (arXiv:2011.13456, eq. 6), which ancestral samplers and DDIM with eta 1 follow, has twice
that drift and noise of variance ``2 sigma dsigma``: Phi is squared, the integral counts twice, and the noise on the way adds
``Phi_0^4 * integral of 2 sigma dsigma / Phi^4``.

So from pure noise of a high level the ODE ends with the spread ``s_u^(1 - w) s_c^w``, and not with that of the density
``p_c^w p_u^(1 - w)``, to which guidance is often likened. Theorem 1 of arXiv:2408.09000 is the case ``m = 0``, ``s_c^2 = 1``,
``s_u^2 = 2``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from research.errors import ConfigError
from research.sampling.interfaces import Batch, Branch, Condition
from research.sampling.prediction import Kind, Prediction
from research.sampling.timeline import Stage
from research.testing.gaussian import GaussianDenoiser, GaussianModel
from research.testing.gaussian_error import GaussianTask


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """``N(mean, diag(std^2))``; numbers, or tensors that broadcast to an image's latents."""

    mean: Any
    std: Any


def _numbers(of: Gaussian) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(of.mean, dtype=torch.float64), torch.as_tensor(of.std, dtype=torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """``y -> gain * y + shift`` plus noise of a variance: what a linear ODE or SDE does between two levels."""

    gain: Tensor
    shift: Tensor
    variance: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        """The mean of where ``y`` goes."""
        return self.gain * y + self.shift

    def then(self, after: Affine) -> Affine:
        """First this and ``after`` afterwards."""
        return Affine(after.gain * self.gain, after(self.shift), after.gain**2 * self.variance + after.variance)

    def of(self, start: Gaussian) -> Gaussian:
        """The distribution that ``start`` is taken to."""
        mean, std = _numbers(start)
        return Gaussian(self(mean), (self.gain**2 * std**2 + self.variance).sqrt())


def guided_path(
    cond: Gaussian, uncond: Gaussian, scale: float, start: float, end: float = 0.0, stochastic: bool = False
) -> Affine:
    """What guidance with a constant scale does to ``y = x / signal`` between two noise levels ``sigma``, to some 1e-12.

    Args:
        cond, uncond: the data of the two branches, std above 0. Any two: autoguidance has the good model's and the weak one's.
        scale: 1 is ``cond`` alone, 0 is ``uncond`` alone.
        start, end: sigma, finite, ``start`` the higher one.
        stochastic: the reverse SDE, and not the probability-flow ODE.

    Raises:
        ConfigError: the levels are the wrong way round or not finite, or a std is not above 0.
    """
    if not 0 <= end <= start < math.inf:
        raise ConfigError(f"sigma: found {start} to {end}; accepted are finite levels, the higher one first.")
    (m_c, s_c), (m_u, s_u) = _numbers(cond), _numbers(uncond)
    if not bool((s_c > 0).all() and (s_u > 0).all()):
        raise ConfigError("std: found 0 or less; accepted are numbers above 0.")
    m_c, s_c, m_u, s_u = torch.broadcast_tensors(m_c, s_c, m_u, s_u)
    power = 2 if stochastic else 1

    def phi(square: Tensor) -> Tensor:  # Phi to the power, of sigma^2
        exponent = (1 - scale) * torch.log(s_u**2 + square) + scale * torch.log(s_c**2 + square)
        return torch.exp(0.5 * power * exponent)

    first, last = (phi(torch.tensor(sigma**2, dtype=torch.float64)) for sigma in (start, end))
    # in t = log(s^2 + sigma^2), s the smaller of the two: all that varies does so slowly
    least = torch.minimum(s_c, s_u) ** 2
    low, high = torch.log(least + end**2), torch.log(least + start**2)
    places, weights = _nodes()
    width = torch.exp(low + places.view(-1, *[1] * low.ndim) * (high - low))
    square = (width - least).clamp_min(0.0)
    weighted = weights.view(-1, *[1] * low.ndim) * (high - low) * width / phi(square)
    drift = (weighted / (s_c**2 + square)).sum(dim=0)
    noise = (weighted / phi(square)).sum(dim=0)
    gain = last / first
    shift = m_u - gain * m_u + scale * (m_c - m_u) * last * (power / 2) * drift
    return Affine(gain, shift, last**2 * noise if stochastic else torch.zeros_like(gain))


def _nodes(panels: int = 24, order: int = 16) -> tuple[Tensor, Tensor]:
    """Places and weights of a composite Gauss-Legendre rule on [0, 1]."""
    at, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(order))
    places = (torch.arange(panels).unsqueeze(1) + 0.5 * (at + 1)) / panels
    return places.flatten(), (weights / (2 * panels)).repeat(panels)


def guided_end(
    cond: Gaussian,
    uncond: Gaussian,
    scale: float | Sequence[tuple[float, float]],
    start: float,
    stochastic: bool = False,
    end: float = 0.0,
) -> Gaussian:
    """What guidance samples from, when it starts from pure noise ``N(0, start^2)``.

    Args:
        cond, uncond: the data of the two branches.
        scale: a number, or, for a scale that changes on the way, pairs ``(sigma down to which, scale)`` in falling order;
            the last sigma is ``end``.
        start, end: the noise levels between which samples are drawn.
        stochastic: by the reverse SDE, and not by the probability-flow ODE.
    """
    pieces = [(end, scale)] if isinstance(scale, (int, float)) else list(scale)
    whole, sigma = None, start
    for below, value in pieces:
        piece = guided_path(cond, uncond, value, sigma, below, stochastic)
        whole, sigma = piece if whole is None else whole.then(piece), below
    assert whole is not None
    return whole.of(Gaussian(0.0, start))


def tilted(cond: Gaussian, uncond: Gaussian, scale: float) -> Gaussian:
    """The density ``p_c^scale * p_u^(1 - scale)``, normalised, that guidance is often said to sample from.

    Raises:
        ConfigError: there is none, since its precision is not above 0 everywhere.
    """
    (m_c, s_c), (m_u, s_u) = _numbers(cond), _numbers(uncond)
    precision = scale / s_c**2 + (1 - scale) / s_u**2
    if not bool((precision > 0).all()):
        raise ConfigError(f"scale: found {scale}; at it the tilted density of these two has no finite mass.")
    mean = (scale * m_c / s_c**2 + (1 - scale) * m_u / s_u**2) / precision
    return Gaussian(mean, precision.rsqrt())


class ConditionalGaussianModel(GaussianModel):
    """A `GaussianModel` whose data depend on the condition.

    Args:
        gaussians: the data by the condition's name; "cond" there must be, and "uncond" for guidance that asks for it. Other names
            are sentences that `ConditionalGaussianTask` can make conditions of.
        **settings: of `GaussianModel`: shape, prediction, scheduler_config, dtype.
    """

    name = "conditional_gaussian"

    def __init__(self, gaussians: Mapping[str, Gaussian], **settings: Any):
        data = gaussians["cond"]
        super().__init__(data.mean, data.std, **settings)
        self.gaussians = {
            name: Gaussian(*(value.expand(self.shape) for value in _numbers(g))) for name, g in gaussians.items()
        }
        self.settings = settings
        self.supports = frozenset({"text"} | ({"uncond"} if "uncond" in gaussians else set()))

    def denoiser(self, run: Batch) -> GaussianDenoiser:
        return ConditionalGaussianDenoiser(self, run.solver.kind)


class ConditionalGaussianDenoiser(GaussianDenoiser):
    """The closed-form denoisers of all conditions."""

    def __init__(self, model: ConditionalGaussianModel, kind: Kind):
        super().__init__(model, kind)
        self._by_name = {
            name: GaussianDenoiser(GaussianModel(g.mean, g.std, **model.settings), kind)
            for name, g in model.gaussians.items()
        }

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        """A prediction a branch, each for the data of its condition."""
        found: dict[str, Prediction] = {}
        for branch in branches:
            name = branch.condition.extra["gaussian"]
            found |= self._by_name[name].predict(x, stage, [branch])
        return found


class ConditionalGaussianTask(GaussianTask):
    """A `GaussianTask` with the conditions of a `ConditionalGaussianModel`, from noise alone."""

    name = "conditional_gaussian"

    def __init__(self, strength: float = 1.0, pure_noise: bool = True):
        super().__init__(strength, pure_noise)

    def conditions(self, run: Batch) -> Mapping[str, Condition]:
        model: Any = run.model
        return {name: Condition(extra={"gaussian": name}) for name in model.gaussians}

    def condition(self, run: Batch, texts: str | Sequence[str], *, negative: bool = False) -> Condition:
        """The condition whose name is the sentence."""
        if not isinstance(texts, str) or texts not in run.conditions:
            raise ConfigError(f"prompt: found {texts!r}; accepted: {', '.join(run.conditions)}.")
        return run.conditions[texts]
