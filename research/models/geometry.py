"""Shapes of latents: of a latent diffusion model by its UNet and VAE, and of a model on pixels."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.errors import ConfigError, ModelError


@dataclass(frozen=True)
class LatentGeometry:
    """The shapes of a latent diffusion model.

    Attributes:
        in_channels: of the UNet.
        latent_channels: of the VAE.
        sample_size: height and width of the latents it was made for; None where its config does not say.
        vae_factor: pixels a latent, on a side.
        patch: latents a token of the network, on a side; 1 for a UNet.
    """

    in_channels: int
    latent_channels: int
    sample_size: tuple[int, int] | None
    vae_factor: int
    patch: int = 1

    @classmethod
    def of(cls, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentGeometry:
        """From the configs of UNet and VAE; what they leave out has diffusers' defaults."""
        size = unet.get("sample_size")
        return cls(
            in_channels=unet.get("in_channels", 4),
            latent_channels=vae.get("latent_channels", 4),
            sample_size=(size, size) if isinstance(size, int) else tuple(size) if size else None,
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
        for place, (key, pixels) in enumerate((("height", height), ("width", width))):
            if pixels is None:
                if self.sample_size is None:
                    raise ConfigError(
                        f"task.{key}: is missing; the model's config says no sample_size, accepted is a number of pixels."
                    )
                sides.append(self.sample_size[place])
                continue
            try:
                number = None if isinstance(pixels, bool) else operator.index(pixels)
            except TypeError:
                number = None
            multiple = self.vae_factor * self.patch
            if number is None or number < 1 or number % multiple:
                raise wrong_side(key, pixels, self.vae_factor, self.patch)
            sides.append(number // self.vae_factor)
        return self.latent_channels, sides[0], sides[1]


def factor_and_patch(family: str, network: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[int, int]:
    """Pixels a latent, and latents a token of the network, on a side, told from configs as `LatentGeometry` of the family has
    them."""
    if family == "qwen-image":
        factor = 2 ** len(vae.get("temperal_downsample", (False, True, True)))
    elif family.startswith("sana"):
        factor = 2 ** (len(vae.get("encoder_block_out_channels", (64,) * 6)) - 1)
    else:
        factor = 2 ** (len(vae.get("block_out_channels", (64,))) - 1)
    if family in ("flux", "chroma", "qwen-image"):
        return factor, 2
    if family in ("unet-text", "unet-pixel", "sdxl", "dit"):
        return factor, 1
    return factor, int(network.get("patch_size", 1 if family.startswith("sana") else 2))


def wrong_side(key: str, pixels: Any, factor: int, patch: int) -> ConfigError:
    """What is said of a side that factor and patch do not divide."""
    what = "the factor of the VAE" if patch == 1 else f"the factor of the VAE times patches of {patch}"
    return ConfigError(f"task.{key}: found {pixels!r}; accepted is a positive multiple of {factor * patch}, {what}.")


def pixel_shape(own: tuple[int, int, int], height: Any, width: Any) -> tuple[int, int, int]:
    """Channels, height and width of a model on pixels, which makes one size.

    Raises:
        ConfigError: another size is asked for.
    """
    if (height, width) not in ((None, None), own[1:]):
        raise ConfigError(f"task.height, task.width: found {height} x {width}; this model makes {own[1]} x {own[2]}.")
    return own
