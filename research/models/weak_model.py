"""A second, weaker model beside the first: another checkpoint, or the model itself made worse."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from research.errors import ConfigError, ModelError
from research.sampling.interfaces import Model, ModelFacts

M = TypeVar("M", bound=Model)
KEY = "guidance.model"
_SCHEDULE = {
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
}


class WeakModels(Generic[M]):
    """The weak models made beside one model, each once.

    Args:
        load: reads another checkpoint, given its path, dtype and device; `load_model` puts itself here.
    """

    def __init__(self, load: Callable[[str, torch.dtype, torch.device], M] | None = None):
        self.load = load
        self._made: dict[tuple[str | None, float, torch.device, torch.dtype], M] = {}

    def get(self, model: M, path: str | os.PathLike[str] | None, noise: float) -> M:
        """See `research.models.base.BaseModel.second`."""
        key = (None if path is None else os.fspath(path), noise, model.device, model.dtype)
        if key not in self._made:
            if path is None:
                network, name, hashed = copy.deepcopy(model.network), f"{model.name}-noisy", model.weights_sha256
            else:
                other = self._loaded(model, os.fspath(path))
                network, name, hashed = other.network, other.name, other.weights_sha256
            if noise:
                add_noise(network, noise)
            weak = _with_network(model, network)
            weak.name, weak.weights_sha256 = name, hashed
            self._made[key] = weak
        return self._made[key]

    def to(self, device: torch.device) -> None:
        """Move the weak models that were made, along with the first."""
        moved = {}
        for (path, noise, _, dtype), weak in self._made.items():
            weak.network.to(device)
            moved[path, noise, device, dtype] = weak
        self._made = moved

    def _loaded(self, model: M, path: str) -> M:
        if self.load is None:
            raise ConfigError(f"{KEY}: found {path}; {model.name} was not made by load_model, accepted is null.")
        model.check_second(path)
        try:
            other = self.load(path, model.dtype, model.device)
        except ModelError as error:
            raise ConfigError(str(error).replace("model.path:", f"{KEY}:", 1)) from error
        check_fit(model, other)
        return other


@torch.no_grad()
def add_noise(network: nn.Module, noise: float) -> None:
    """Add Gaussian noise to all weight matrices and convolutions, ``noise`` times the standard deviation of each.

    A tensor's noise depends on its name and shape alone: the same in every process and on every device.
    """
    for name, weight in network.named_parameters():
        if weight.ndim < 2:  # norms and biases stay
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        draw = torch.randn(weight.shape, generator=generator)
        exact = weight.float().cpu()
        weight.copy_(exact + noise * exact.std() * draw)


def _with_network(model: M, network: nn.Module) -> M:
    """The model with another network: all else is shared, text encoder and decoder too."""
    found = copy.copy(model)
    for name, part in vars(model).items():
        if part is model.network:
            setattr(found, name, network)
    return found


def check_fit(model: ModelFacts, second: ModelFacts) -> None:
    """Raise a ConfigError if a second model differs from the first where they must agree; it names ``guidance.model``."""
    mine, other = _facts(model), _facts(second)
    for name, found in other.items():
        if found != mine[name]:
            raise ConfigError(
                f"{KEY}: {second.path} has the {name} {_told(found)}; accepted is that of {model.path}, {_told(mine[name])}."
            )


def _facts(model: ModelFacts) -> dict[str, Any]:
    """What two models must agree in to be guided by one another."""
    unet = model.network_config
    return {
        "family": model.family,
        "latent shape": tuple(model.latent_shape(None, None)),
        "input channels": unet.get("in_channels"),
        "conditioning width": unet.get("cross_attention_dim"),
        "guidance embedding": unet.get("time_cond_proj_dim"),
        "number of classes": unet.get("num_class_embeds"),
        **_schedule(model.scheduler_config),
    }


def _schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    """Prediction type and noise schedule, with what the config leaves out at the default of its scheduler."""
    cls = getattr(importlib.import_module("diffusers"), str(config.get("_class_name")), None)
    parameters = {} if cls is None else inspect.signature(cls.__init__).parameters
    found = {}
    for name, usual in _SCHEDULE.items():
        default = parameters[name].default if name in parameters else usual
        value = config.get(name, default)
        found[name] = tuple(value) if isinstance(value, list) else value
    return found


def _told(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) and len(value) < 9 else str(value)[:60]
