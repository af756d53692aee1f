"""The noise levels of a network of one's own, and what the network is told of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError, nearest
from research.sampling.prediction import Kind
from research.sigmas import Karras
from research.solvers.levels import Levels, Schedule, TrainedLevels

Tell = Callable[[Tensor], Tensor]
_N = 1000
_EDM = 0.002, 80.0  # Karras et al., table 1
# betas as diffusers writes them; of Ho et al. (linear) and of Nichol and Dhariwal, arXiv:2102.09672 (cosine)
_BETAS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
NAMES = ("cosine", "linear", "edm", "flow")
_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
SCALINGS = ("vp", "ve", "flow")
PREDICTS = ("epsilon", "x0", "v", "flow", "flow_to_data", "score")
TOLD = ("timestep", "index", "sigma", "time", "time_to_data", "log_snr")


@dataclass(frozen=True)
class OwnLevels:
    """What a network was trained at.

    Attributes:
        config: as a diffusers scheduler config.
        trained: the same exactly, where the config cannot say it; None where it does.
        grid: the levels that a run visits, where ``sigmas`` names no others; None for the scheduler's own.
        scaling: of what the network sees, x = signal * x0 + noise * epsilon: "vp" (signal^2 + noise^2 = 1), "ve" (signal = 1) or
            "flow" (signal + noise = 1).
        told: what the network is told, one of `TOLD`.
    """

    config: Mapping[str, Any]
    trained: TrainedLevels | None
    grid: Schedule | None
    scaling: str
    told: str

    @property
    def flow(self) -> bool:
        """Whether the loop's own latents lie on the path of a flow."""
        return self.scaling == "flow" if self.trained is None else self.trained.flow


@dataclass(frozen=True)
class GivenGrid:
    """The levels of a `Levels` object, as a schedule of its own number of steps."""

    grid: Levels

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        if steps != self.grid.steps:
            raise ConfigError(
                f"steps: found {steps}; the levels of this model are a grid of {self.grid.steps}: accepted is {self.grid.steps}, "
                "or sigmas of your own."
            )
        return self.grid


@dataclass(frozen=True)
class FlowFrom:
    """Even flow times from a first one to 0: below 1 there is some signal left. At 1 a network that predicts noise says nothing
    of the data, and close to it its errors count a thousandfold."""

    first: float = 1.0

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        grid = [trained.at_sigma(self.first * (1.0 - i / steps)) for i in range(steps)]
        return Levels((*grid, trained.clean()), trained, n_steps=steps)


def own_levels(levels: Any, predicts: str, scaling: str | None = None) -> OwnLevels:
    """Read the argument ``levels`` of `research.models.wrap`.

    Args:
        predicts, scaling: its others.

    Raises:
        ConfigError: it is none of what is accepted.
    """
    if isinstance(levels, Levels):
        return _of_trained(levels.trained, GivenGrid(levels))
    if isinstance(levels, TrainedLevels):
        return _of_trained(levels, None)
    if hasattr(levels, "config") and hasattr(levels, "set_timesteps"):  # a scheduler object of diffusers
        levels = {**levels.config, "_class_name": type(levels).__name__}
    if isinstance(levels, Mapping):
        return _of_config(levels, predicts)
    if levels == "flow":
        flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": _N, "shift": 1.0}
        needs_signal = kind_of(predicts) == "epsilon" or scaling == "ve"
        return OwnLevels(flow, None, FlowFrom(0.98 if needs_signal else 1.0), "flow", "time")
    if levels == "edm":
        low, high = _EDM
        sigmas = tuple(low * (high / low) ** (i / (_N - 1)) for i in range(_N))
        found = _of_trained(TrainedLevels(sigmas, _N), Karras())
        return OwnLevels(found.config, found.trained, found.grid, "ve", "sigma")
    if isinstance(levels, str) and levels in _BETAS:
        return _of_config(_BETAS[levels], predicts)
    hint = nearest(levels, NAMES) if isinstance(levels, str) else ""
    raise ConfigError(
        f"levels: found {levels!r:.100}.{hint} Accepted: {', '.join(NAMES)}, a TrainedLevels or Levels object, or the config of "
        "a diffusers scheduler."
    )


def _of_config(config: Mapping[str, Any], predicts: str) -> OwnLevels:
    if "FlowMatch" in str(config.get("_class_name", "")) or config.get("prediction_type") == "flow_prediction":
        return OwnLevels({"_class_name": "FlowMatchEulerDiscreteScheduler", **config}, None, None, "flow", "time")
    kind = _TYPES.get(predicts, "v_prediction" if predicts.startswith("flow") else "epsilon")
    # at the last timestep there is next to no signal, and what an error of epsilon does to x0 has no bound
    spacing = "leading" if kind == "epsilon" else "trailing"
    usual = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": _N,
        "clip_sample": False,
        "timestep_spacing": spacing,
    }
    return OwnLevels({**usual, **config, "prediction_type": kind}, None, None, "vp", "timestep")


def _of_trained(trained: TrainedLevels, grid: Schedule | None) -> OwnLevels:
    if trained.flow:
        config: dict[str, Any] = {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": trained.n_timesteps,
            "shift": trained.shift,
        }
        return OwnLevels(config, trained, grid, "flow", "time")
    bars = [1.0, *(1.0 / (1.0 + sigma * sigma) for sigma in trained.sigmas)]
    config = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": trained.n_timesteps,
        "trained_betas": [1.0 - after / before for before, after in pairwise(bars)],
        "clip_sample": False,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }
    return OwnLevels(config, trained, grid or Karras(), "vp", "timestep")


def scaled(signal: float, noise: float, scaling: str) -> tuple[float, float]:
    """Signal and noise of a level in another scaling.

    Raises:
        ConfigError: noise alone has no finite place where the signal is 1.
    """
    if scaling == "flow":
        norm = signal + noise
    elif scaling == "vp":
        norm = math.hypot(signal, noise)
    else:
        norm = signal
        if not signal:
            raise ConfigError(
                "sigmas: begin with noise alone, which the scaling 've' has no place for; accepted are levels with signal."
            )
    return signal / norm, noise / norm


def teller(told: Any) -> str | Tell:
    """Read the argument ``told`` of `research.models.wrap`.

    Raises:
        ConfigError: it is none of what is accepted.
    """
    if callable(told):
        found: Tell = told
        return found
    if told not in TOLD:
        hint = nearest(str(told), TOLD)
        raise ConfigError(
            f"told: found {told!r}.{hint} Accepted: {', '.join(TOLD)}, or a function of sigma (noise over signal), [B] to [B]."
        )
    return str(told)


def tell(told: str | Tell, signal: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """What the network is told at levels [B], in float64.

    Args:
        signal, noise: of the levels, in any scaling.
        time: their timesteps.
    """
    if told == "timestep":
        return time
    if told == "index":
        return time.round().long()
    if told == "time":
        return noise / (signal + noise)
    if told == "time_to_data":
        return signal / (signal + noise)
    if told == "log_snr":
        return 2.0 * (signal.clamp(min=1e-12).log() - noise.clamp(min=1e-12).log())
    sigma = noise / signal
    return sigma if isinstance(told, str) else torch.as_tensor(told(sigma))


def kind_of(predicts: str) -> Kind:
    """The kind of prediction that what a network predicts is turned into.

    Raises:
        ConfigError: it is none of `PREDICTS`.
    """
    if predicts not in PREDICTS:
        raise ConfigError(
            f"predicts: found {predicts!r}.{nearest(str(predicts), PREDICTS)} Accepted: {', '.join(PREDICTS)}."
        )
    kinds: dict[str, Kind] = {"epsilon": "epsilon", "score": "epsilon", "x0": "x0", "v": "v"}
    return kinds.get(predicts, "flow")
