"""A second, weaker model beside the first: another checkpoint, or the model itself made worse."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from research.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from research.models.base import BaseModel
    from research.models.summary import Outline

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


def second_model(model: BaseModel, path: str | os.PathLike[str] | None, noise: float) -> BaseModel:
    """See `BaseModel.second`."""
    key = (None if path is None else os.fspath(path), noise, model.device, model.dtype)
    kept: dict[Any, BaseModel] = model.__dict__.setdefault("_seconds", {})
    if key not in kept:
        if path is None:
            network, name, hashed = copy.deepcopy(model.network), f"{model.name}-noisy", model.weights_sha256
        else:
            other = _loaded(model, path)
            network, name, hashed = other.network, other.name, other.weights_sha256
        if noise:
            add_noise(network, noise)
        kept[key] = _with_network(model, network)
        kept[key].name, kept[key].weights_sha256 = name, hashed
    return kept[key]


def check_second(model: BaseModel | Outline, path: str | os.PathLike[str]) -> None:
    """Check from its small files that a second model fits a first one. One that is not on this disk is looked at when it loads.

    Raises:
        ConfigError: there is no such model, or it differs where they must agree; the message names ``guidance.model``.
    """
    from research.models.summary import outline

    try:
        second = outline(os.fspath(path))
    except (ModelError, TypeError) as error:
        raise ConfigError(str(error).replace("model.path:", f"{KEY}:", 1)) from error
    if second is not None:
        _check_fit(model, second)


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


def _loaded(model: BaseModel, path: str | os.PathLike[str]) -> BaseModel:
    from research.models.load import load_model

    check_second(model, path)
    try:
        other = load_model(path, dtype=model.dtype, device=model.device)
    except ModelError as error:
        raise ConfigError(str(error).replace("model.path:", f"{KEY}:", 1)) from error
    _check_fit(model, other)
    return other


def _with_network(model: BaseModel, network: nn.Module) -> BaseModel:
    """The model with another network: all else is shared, text encoder and decoder too."""
    found = copy.copy(model)
    found.__dict__.pop("_seconds", None)
    for name, part in vars(model).items():
        if part is model.network:
            setattr(found, name, network)
    return found


def _check_fit(model: BaseModel | Outline, second: BaseModel | Outline) -> None:
    mine, other = _facts(model), _facts(second)
    for name, found in other.items():
        if found != mine[name]:
            raise ConfigError(
                f"{KEY}: {second.path} has the {name} {_told(found)}; accepted is that of {model.path}, {_told(mine[name])}."
            )


def _facts(model: Any) -> dict[str, Any]:
    """What two models must agree in to be guided by one another."""
    unet = model.unet if isinstance(model.unet, Mapping) else model.network.config
    return {
        "family": model.family,
        "latent shape": tuple(model.latent_shape(None, None)),
        "input channels": unet.get("in_channels"),
        "conditioning width": unet.get("cross_attention_dim"),
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
