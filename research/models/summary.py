"""What a model is, told from its small files: enough to say whether task, guidance and scheduler fit it before weights load."""

from __future__ import annotations

import importlib
import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.errors import ConfigError, ModelError
from research.models.inspect.find_model import FAMILIES, find_pipeline, pipeline_class
from research.models.inspect.safe_files import read_json
from research.models.patching import has_attention, outlined_layers
from research.models.scheduler_config import scheduler_config
from research.models.weak_model import check_second


@dataclass(frozen=True)
class LatentGeometry:
    """The shapes of a latent diffusion model.

    Attributes:
        in_channels: of the UNet.
        latent_channels: of the VAE.
        sample_size: height and width of the latents it was made for.
        vae_factor: pixels a latent, on a side.
    """

    in_channels: int
    latent_channels: int
    sample_size: tuple[int, int]
    vae_factor: int

    @classmethod
    def of(cls, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentGeometry:
        """From the configs of UNet and VAE; what they leave out has diffusers' defaults."""
        size = unet.get("sample_size")
        return cls(
            in_channels=unet.get("in_channels", 4),
            latent_channels=vae.get("latent_channels", 4),
            sample_size=(size, size) if isinstance(size, int) else tuple(size or (64, 64)),
            vae_factor=2 ** (len(vae.get("block_out_channels", (64,))) - 1),
        )

    def role(self, path: str) -> str:
        """What the UNet's input channels are: "text" (latents alone), "inpaint" (mask, masked latents) or "depth".

        Raises:
            ModelError: none of these.
        """
        latent = self.latent_channels
        roles = {latent: "text", 2 * latent + 1: "inpaint", latent + 1: "depth"}
        if self.in_channels not in roles:
            accepted = ", ".join(f"{channels} ({role})" for channels, role in roles.items())
            raise ModelError(
                f"model.path: the UNet of {path} takes {self.in_channels} input channels and its VAE makes {latent}; "
                f"accepted are {accepted}."
            )
        return roles[self.in_channels]

    def latent_shape(self, height: Any = None, width: Any = None) -> tuple[int, int, int]:
        """Channels, height and width of the latents for an image of ``height`` x ``width`` pixels.

        Raises:
            ConfigError: a side is no positive multiple of the VAE's factor.
        """
        sides = []
        for key, pixels, latent in (("height", height, self.sample_size[0]), ("width", width, self.sample_size[1])):
            if pixels is None:
                sides.append(latent)
                continue
            try:
                number = None if isinstance(pixels, bool) else operator.index(pixels)
            except TypeError:
                number = None
            if number is None or number < 1 or number % self.vae_factor:
                raise ConfigError(
                    f"task.{key}: found {pixels!r}; accepted is a positive multiple of {self.vae_factor}, the factor of the VAE."
                )
            sides.append(number // self.vae_factor)
        return self.latent_channels, sides[0], sides[1]


@dataclass(frozen=True)
class Outline:
    """A model as tasks and guidance ask it in their checks; the same names as on the loaded model."""

    name: str
    path: str
    family: str
    supports: frozenset[str]
    scheduler_config: Mapping[str, Any]
    geometry: LatentGeometry | None = None
    own_shape: tuple[int, int, int] | None = None  # of a model on pixels
    n_classes: int | None = None
    depth: bool | None = None  # whether it has a depth estimator
    unet: Mapping[str, Any] = field(default_factory=dict)  # its config

    @property
    def vae_factor(self) -> int:
        return self.geometry.vae_factor if self.geometry else 1

    @property
    def role(self) -> str:
        return self.geometry.role(self.path) if self.geometry else "text"

    def latent_shape(self, height: Any = None, width: Any = None) -> tuple[int, int, int]:
        if self.geometry:
            return self.geometry.latent_shape(height, width)
        assert self.own_shape is not None
        return pixel_shape(self.own_shape, height, width)

    def layers(self, kind: str) -> list[str]:
        """As on the loaded model; the network is built once without its weights.

        Raises:
            ConfigError: an unknown kind.
            ModelError: the config makes no network.
        """
        config = json.dumps(dict(self.unet), sort_keys=True)
        return list(outlined_layers(config, kind, text=self.family == "unet-text"))

    def check_second(self, path: str) -> None:
        """As on the loaded model: raise a ConfigError if another one's small files say that it cannot guide this one."""
        check_second(self, path)


def pixel_shape(own: tuple[int, int, int], height: Any, width: Any) -> tuple[int, int, int]:
    """Channels, height and width of a model on pixels, which makes one size.

    Raises:
        ConfigError: another size is asked for.
    """
    if (height, width) not in ((None, None), own[1:]):
        raise ConfigError(f"task.height, task.width: found {height} x {width}; this model makes {own[1]} x {own[2]}.")
    return own


def outline(path: str) -> Outline | None:
    """The outline of a model on this disk; None for a hub id and for a single file, which are looked at when they load.

    Raises:
        ModelError: there is no such model, or its configs do not tell.
    """
    directory = find_pipeline(path).directory
    if directory is None:
        return None
    module, _, name = FAMILIES[pipeline_class(directory)].partition(":")
    family = getattr(importlib.import_module(module), name)
    schedule = scheduler_config(path)
    unet = read_json(directory / "unet" / "config.json")
    common = {
        "name": Path(path).name,
        "path": path,
        "family": family.family,
        "scheduler_config": schedule.config if schedule else {},
        "unet": unet,
    }
    text = family.family == "unet-text"
    attention = {"attention"} if has_attention(unet, text=text) else set()
    if text:
        index = read_json(directory / "model_index.json")
        return Outline(
            **common,
            supports=family.supports | attention,
            geometry=LatentGeometry.of(unet, read_json(directory / "vae" / "config.json")),
            depth=(index.get("depth_estimator") or [None])[0] is not None,
        )
    size, classes = unet.get("sample_size"), unet.get("num_class_embeds")
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    return Outline(
        **common,
        supports=family.supports | attention | ({"class_label"} if classes else set()),
        own_shape=(unet.get("in_channels", 3), *sides) if len(sides) == 2 else None,
        n_classes=classes,
    )
