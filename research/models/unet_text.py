"""Text-conditioned latent UNets: Stable Diffusion 1.x and 2.x, and models of the same layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from research.errors import ConfigError, ModelError
from research.models.base import BaseModel, pixels_to_images
from research.models.text import TextEncoder
from research.models.unet_denoiser import UnetDenoiser
from research.sampling.run import Run


class UnetTextModel(BaseModel):
    """UNet, VAE and text encoder of a Stable Diffusion checkpoint."""

    family = "unet-text"
    supports = frozenset({"text", "uncond", "latents"})
    weighted = ("unet", "vae", "text_encoder")

    def __init__(self, *, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, **common: Any):
        super().__init__(**common)
        self.unet, self.vae = unet, vae
        self.text = TextEncoder(tokenizer, text_encoder)
        self.vae_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if unet.config.in_channels != vae.config.latent_channels:
            raise ModelError(
                f"model.path: the UNet of {self.path} takes {unet.config.in_channels} input channels and its VAE makes "
                f"{vae.config.latent_channels}; accepted are UNets that take the latents alone."
            )
        if getattr(unet.config, "time_cond_proj_dim", None) is not None:
            raise ModelError(
                f"model.path: the UNet of {self.path} embeds the guidance scale (time_cond_proj_dim); not supported yet."
            )

    @classmethod
    def load_parts(cls, directory: Path, *, dtype: torch.dtype, safe: bool) -> dict[str, Any]:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        shared: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": safe, "local_files_only": True}
        return {
            "unet": UNet2DConditionModel.from_pretrained(directory, subfolder="unet", **shared).eval(),
            "vae": AutoencoderKL.from_pretrained(directory, subfolder="vae", **shared).eval(),
            "text_encoder": CLIPTextModel.from_pretrained(
                directory, subfolder="text_encoder", dtype=dtype, use_safetensors=safe, local_files_only=True
            ).eval(),
            "tokenizer": CLIPTokenizer.from_pretrained(
                directory, subfolder="tokenizer", local_files_only=True
            ),
        }

    @property
    def network(self) -> Any:
        return self.unet

    def modules(self) -> list[torch.nn.Module]:
        return [self.unet, self.vae, self.text.encoder]

    def denoiser(self, run: Run) -> UnetDenoiser:
        return UnetDenoiser(self.unet, kind=run.solver.kind, text=True)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """Channels, height and width of the latents for an image of ``height`` x ``width`` pixels.

        Raises:
            ConfigError: a side is no positive multiple of what the VAE and the UNet halve.
        """
        size = self.unet.config.sample_size
        default = (size, size) if isinstance(size, int) else tuple(size)
        sides = []
        for key, pixels, latent in (("height", height, default[0]), ("width", width, default[1])):
            if pixels is None:
                sides.append(latent)
                continue
            if (
                isinstance(pixels, bool)
                or not isinstance(pixels, int)
                or pixels < 1
                or pixels % self.vae_factor
            ):
                raise ConfigError(
                    f"task.{key}: found {pixels!r}; accepted is a positive multiple of {self.vae_factor}, the factor of the VAE."
                )
            sides.append(pixels // self.vae_factor)
        return self.vae.config.latent_channels, sides[0], sides[1]

    def decode(self, run: Run, latents: Tensor) -> list[Image.Image]:
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        scaled = latents / self.vae.config.scaling_factor + shift
        return pixels_to_images(self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0])
