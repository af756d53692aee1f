"""Latents as small pictures by one matrix: what `research-preview` fits and the preview hook draws with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from research import zoo
from research.errors import ConfigError, ModelError

FILE = "preview.json"


@dataclass(frozen=True, eq=False)
class Projection:
    """A linear map of latents to colours in [-1, 1]: ``rgb = weight * latents + bias`` with a small neighbourhood of each cell.

    Attributes:
        weight: [3, C, k, k] with an odd k; 1 is the cell alone. Beyond the border the outermost cells are repeated.
        bias: [3].
        info: what the file says of the fit (``r2``, ``pictures``, ...).
    """

    weight: Tensor
    bias: Tensor
    info: Mapping[str, Any]

    @property
    def channels(self) -> int:
        return self.weight.shape[1]

    def __call__(self, latents: Tensor) -> Tensor:
        """Colours [N, 3, h, w] in about [-1, 1] of latents [N, C, h, w]."""
        weight, bias = self.weight.to(latents.device), self.bias.to(latents.device)
        return F.conv2d(_widened(latents.float(), weight.shape[-1]), weight, bias)

    @classmethod
    def of(cls, key: str, content: Any) -> Projection:
        """From a mapping with ``weight`` ([3][C][k][k], or [3][C] for k = 1) and ``bias`` ([3]).

        Raises:
            ConfigError: it is none.
        """
        accepted = "accepted is weight [3][C] or [3][C][k][k] for C latent channels and an odd k, and bias [3]"
        try:
            weight = torch.tensor(content["weight"], dtype=torch.float32)
            bias = torch.tensor(content["bias"], dtype=torch.float32)
        except (TypeError, KeyError, ValueError, RuntimeError):
            raise ConfigError(f"{key}: found no projection; {accepted}, as research-preview writes them.") from None
        found = list(weight.shape)
        if weight.ndim == 2:
            weight = weight[..., None, None]
        shape = weight.shape
        if (
            weight.ndim != 4
            or shape[0] != 3
            or not shape[1]
            or shape[2] != shape[3]
            or not shape[2] % 2
            or bias.shape != (3,)
        ):
            raise ConfigError(f"{key}: found weight of {found} and bias of {list(bias.shape)}; {accepted}.")
        if not (math.isfinite(float(weight.abs().sum())) and math.isfinite(float(bias.abs().sum()))):
            raise ConfigError(f"{key}: found NaN or infinite numbers; {accepted}.")
        info = {name: value for name, value in content.items() if name not in ("weight", "bias")}
        return cls(weight, bias, info)

    @classmethod
    def read(cls, key: str, file: Path) -> Projection:
        """From a JSON file; see `of`.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{key}: {file} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:
            raise ConfigError(f"{key}: {file} is no JSON: {error}") from error
        return cls.of(f"{key}: {file}", content)


def projection_of(key: str, given: Any, model: Any) -> Projection | None:
    """The projection for a model: the one that is given, that of the model's directory, or None if its latents are pixels.

    Args:
        key: how messages call it.
        given: None, a file, or a mapping; see `Projection.of`.
        model: a loaded model or its outline.

    Raises:
        ConfigError: there is none, or it is for another number of latent channels.
    """
    if "pixels" in model.supports:
        if given is not None:
            raise ConfigError(f"{key}: found one; {model.name} works on pixels, which need none: leave it out.")
        return None
    if given is None:
        file = Path(zoo.zoo_path(str(model.path)) or Path(str(model.path)).expanduser()) / FILE
        if not file.is_file():
            raise ConfigError(
                f"{key}: {model.name} has no {FILE}; fit one with: research-preview {model.path} --out FILE, "
                f"and give it with {key}=FILE (in the model's folder it is found by itself)."
            )
        found = Projection.read(key, file)
    elif isinstance(given, str | Path):
        found = Projection.read(key, Path(given).expanduser())
    else:
        found = Projection.of(key, given)
    channels = model.latent_shape(None, None)[0]
    if found.channels != channels:
        raise ConfigError(
            f"{key}: found one for {found.channels} latent channels; {model.name} has {channels}: fit its own with "
            "research-preview."
        )
    return found


def _widened(latents: Tensor, size: int) -> Tensor:
    return F.pad(latents, (size // 2,) * 4, mode="replicate") if size > 1 else latents


def fit_projection(latents: Tensor, colours: Tensor, size: int = 1) -> tuple[Projection, float]:
    """The projection with the least squared error, and the share of the colours' variance that it explains (R^2, at most 1).

    Args:
        latents: [N, C, h, w].
        colours: the pictures at the latents' size, [N, 3, h, w] in [-1, 1].
        size: of the neighbourhood, odd.

    Raises:
        ModelError: too few cells for the number of channels, or all of one colour.
    """
    channels = latents.shape[1]
    z = F.unfold(_widened(latents.double(), size), size).transpose(1, 2).flatten(0, 1)  # [cells, C * size * size]
    y = colours.double().permute(0, 2, 3, 1).reshape(-1, 3)
    z1 = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
    total = (y - y.mean(dim=0)).square().sum()
    unknown = z1.shape[1]
    if len(z) < 4 * unknown or float(total) < 1e-6:
        raise ModelError(
            f"--pictures: found {len(z)} latent cells with colours of variance {float(total) / y.numel():.2g}; accepted are "
            f"pictures of different colours with {4 * unknown} cells and more."
        )
    solved = torch.linalg.lstsq(z1, y, driver="gelsd").solution
    r2 = 1.0 - float((y - z1 @ solved).square().sum() / total)
    weight, bias = solved[:-1].T.float().reshape(3, channels, size, size), solved[-1].float()
    return Projection(weight, bias, {"r2": r2, "cells": len(z)}), r2
