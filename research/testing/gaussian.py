"""A model that is known exactly: Gaussian data, whose best denoiser has a closed form.

With data ``x0 ~ N(mu, diag(s^2))`` and latents ``x = a x0 + b epsilon``, the latents at every level are
``N(a mu, a^2 s^2 + b^2)`` and the best denoiser is

    E[x0 | x] = mu + a s^2 / (a^2 s^2 + b^2) * (x - a mu).

The probability-flow ODE (arXiv:2011.13456, eq. 13) keeps the standard score ``z = (x - a mu) / sqrt(a^2 s^2 + b^2)`` of each
element, so the right end of every trajectory is known and the error of a scheduler is a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from research.image_tensors import pixels_to_images
from research.sampling.interfaces import Batch, Branch, Model, Solver
from research.sampling.prediction import Kind, Prediction
from research.sampling.timeline import Stage
from research.solvers.build import SolverFactory

# Stable Diffusion's noise schedule
SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
TYPES = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow_prediction"}


class GaussianModel(Model):
    """The best possible network for Gaussian data. It works in float64 unless told otherwise.

    Like a network it is told a timestep and latents as the scheduler scales them, and nothing else: a scheduler that tells
    the wrong timestep gets the prediction for the wrong level. Between timesteps its log-SNR is interpolated linearly.

    Args:
        mean, std: of the data: numbers, or tensors that broadcast to ``shape``; std at least 0.
        shape: of one image's latents (C, h, w).
        prediction: what it predicts: "epsilon", "v", "x0" or "flow" (a flow-matching model).
        scheduler_config: laid over Stable Diffusion's: the noise schedule it was "trained" with.
        dtype: of latents and predictions.
    """

    name = "gaussian"
    path = "gaussian"
    weights_sha256 = ""
    supports: frozenset[str] = frozenset()

    def __init__(
        self,
        mean: float | Tensor = 0.0,
        std: float | Tensor = 1.0,
        shape: Sequence[int] = (4, 16, 16),
        prediction: Kind = "epsilon",
        scheduler_config: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        channels, height, width = shape
        self.shape = (channels, height, width)
        self.mean, self.std = (torch.as_tensor(value, dtype=torch.float64).expand(self.shape) for value in (mean, std))
        self.prediction: Kind = prediction
        self._dtype = dtype
        start = {"_class_name": "FlowMatchEulerDiscreteScheduler"} if prediction == "flow" else SCHEDULE
        self._scheduler_config: dict[str, Any] = {
            "num_train_timesteps": 1000,
            **start,
            "prediction_type": TYPES[prediction],
            **(scheduler_config or {}),
        }
        if prediction != "flow":
            from diffusers import DDPMScheduler

            trained = {k: v for k, v in self.scheduler_config.items() if not k.startswith("_")}
            bars = DDPMScheduler.from_config(trained).alphas_cumprod.double()
            self._log_sigmas = (0.5 * torch.log((1 - bars) / bars)).numpy()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        return self._scheduler_config

    def solvers(
        self, scheduler: Any, options: Mapping[str, Any] | None = None, *, parity: bool = False, sigmas: Any = None
    ) -> Callable[[], Solver]:
        return SolverFactory(scheduler, options, self.scheduler_config, parity=parity, sigmas=sigmas)

    def denoiser(self, run: Batch) -> GaussianDenoiser:
        return GaussianDenoiser(self, run.solver.kind)

    def latent_shape(self, height: int | None, width: int | None) -> tuple[int, int, int]:
        return self.shape[0], height or self.shape[1], width or self.shape[2]

    def layers(self, kind: str) -> Sequence[str]:
        return ()

    def encode(self, run: Batch, pixels: Tensor, stream: str) -> Tensor:
        """Pixels as latents; three channels are repeated or cut to as many as there are."""
        found = pixels[:, torch.arange(self.shape[0]) % pixels.shape[1]]
        return found.to(self.dtype)

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """The first three channels as colours, or the first as grey."""
        return latents[:, : 3 if latents.shape[1] >= 3 else 1]

    def decode(self, run: Batch, latents: Tensor) -> list[Image.Image]:
        """Small pictures."""
        return pixels_to_images(self.decode_pixels(latents).float())

    def level(self, time: float) -> tuple[float, float]:
        """``(signal, noise)`` that a timestep stands for, variance-preserving (or of a flow: their sum is 1)."""
        if self.prediction == "flow":
            noise = time / self.scheduler_config["num_train_timesteps"]
            return 1.0 - noise, noise
        low = min(max(math.floor(time), 0), len(self._log_sigmas) - 1)
        part = min(max(time, 0.0), len(self._log_sigmas) - 1.0) - low
        log_sigma = float(self._log_sigmas[low])
        if part > 0:  # and not at all where it is a whole number: the neighbour may be infinite
            log_sigma = (1 - part) * log_sigma + part * float(self._log_sigmas[low + 1])
        if math.isinf(log_sigma):
            return 0.0, 1.0
        sigma = math.exp(log_sigma)
        return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)

    def sample_clean(self, noise: Tensor) -> Tensor:
        """Data made of standard normal noise [N, C, h, w]."""
        return self.mean + self.std * noise.double()

    def spread(self, signal: float, noise: float) -> Tensor:
        """The standard deviation of latents at a level, shape of one image."""
        return (signal**2 * self.std**2 + noise**2).sqrt()

    def transport(self, x: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
        """Where the probability-flow ODE takes latents [N, C, h, w] from one level ``(signal, noise)`` to another; exact."""
        z = (x.double() - start[0] * self.mean) / self.spread(*start)
        return end[0] * self.mean + self.spread(*end) * z

    def estimates(self, x: Tensor, signal: float, noise: float) -> tuple[Tensor, Tensor]:
        """The means of data and noise given latents at a level, shape of ``x``."""
        variance = self.std**2
        apart = (x - signal * self.mean) / (signal**2 * variance + noise**2)
        # the noise of itself and not (x - a clean) / b, which at low levels is a difference of equals
        return self.mean + signal * variance * apart, noise * apart

    def timestep_of(self, signal: float, noise: float) -> float:
        """The timestep of a level, fractional where it lies between two."""
        found = np.interp(math.log(noise / signal), self._log_sigmas, np.arange(len(self._log_sigmas)))
        return float(found)


class GaussianDenoiser:
    """The closed-form denoiser for one run; every branch gets the same prediction."""

    def __init__(self, model: GaussianModel, kind: Kind):
        self.model, self.kind = model, kind

    def predict(self, x: Tensor, stage: Stage, branches: Sequence[Branch]) -> dict[str, Prediction]:
        """Predictions for latents ``x`` as the scheduler scales them for a network: with the spread of the level told."""
        a, b = self.model.level(stage.time)
        clean, epsilon = self.model.estimates(x.double(), a, b)
        value = {
            "x0": lambda: clean,
            "epsilon": lambda: epsilon,
            "v": lambda: (a * epsilon - b * clean) / math.hypot(a, b),
            "flow": lambda: epsilon - clean,
        }[self.kind]()
        return {branch.name: Prediction(value.to(x.dtype), self.kind) for branch in branches}
