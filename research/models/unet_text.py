"""Text-conditioned latent UNets: Stable Diffusion 1.x and 2.x, and models of the same layout."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from research.caches import MIB, Cache
from research.errors import ModelError
from research.models.base import BaseModel
from research.models.depth import DepthEstimator
from research.models.geometry import LatentGeometry
from research.models.inspect.weights import loaded_module
from research.models.patching import has_attention
from research.models.scheduler_config import mended
from research.models.text import TextEncoder
from research.models.unet_denoiser import UnetDenoiser
from research.sampling.interfaces import Batch

_pictures = Cache("pictures", 256 * MIB)  # encoded; one of 512 x 512 takes 0.1 MB


class UnetTextModel(BaseModel):
    """UNet, VAE and text encoder of a Stable Diffusion checkpoint, with a depth estimator if the directory has one.

    Attributes:
        role: what the UNet's input channels are: "text" (the latents alone), "inpaint" (latents, mask, masked latents) or
            "depth" (latents and a depth map).
    """

    family = "unet-text"
    supports = frozenset({"text", "uncond", "latents"})
    weighted = ("unet", "vae", "text_encoder")

    def __init__(
        self,
        *,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        depth: DepthEstimator | None = None,
        **common: Any,
    ):
        super().__init__(**common)
        self.unet, self.vae, self.depth = unet, vae, depth
        self._text = TextEncoder(tokenizer, text_encoder, self.weights_sha256)
        self.scheduler_config = mended(self.scheduler_config)
        self.geometry = LatentGeometry.of(unet.config, vae.config)
        self._role = self.geometry.role(self.path)
        if has_attention(unet.config, text=True):
            self.supports = self.supports | {"attention"}
        if getattr(unet.config, "time_cond_proj_dim", None) is not None:
            raise ModelError(
                f"model.path: the UNet of {self.path} embeds the guidance scale (time_cond_proj_dim); not supported yet."
            )

    @classmethod
    def load_parts(cls, directory: Path, *, dtype: torch.dtype, safe: bool | None) -> dict[str, Any]:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        def load(loader: Any, part: str, **precision: Any) -> Any:
            loaded = loader.from_pretrained(
                directory,
                subfolder=part,
                use_safetensors=safe,
                local_files_only=True,
                output_loading_info=True,
                **precision,
            )
            return loaded_module(loaded, directory / part)

        _check_tokenizer(directory / "tokenizer")
        return {
            "depth": DepthEstimator.load(directory, dtype=dtype, safe=safe),
            "unet": load(UNet2DConditionModel, "unet", torch_dtype=dtype),
            "vae": load(AutoencoderKL, "vae", torch_dtype=dtype),
            "text_encoder": load(CLIPTextModel, "text_encoder", dtype=dtype),
            "tokenizer": CLIPTokenizer.from_pretrained(directory, subfolder="tokenizer", local_files_only=True),
        }

    @property
    def network(self) -> Any:
        return self.unet

    @property
    def role(self) -> str:
        return self._role

    @property
    def vae_factor(self) -> int:
        return self.geometry.vae_factor

    @property
    def text(self) -> TextEncoder:
        return self._text

    @text.setter
    def text(self, encoder: TextEncoder) -> None:
        self._text = encoder

    @property
    def has_depth(self) -> bool:
        return self.depth is not None

    def depth_maps(self, images: Sequence[Any]) -> Sequence[Tensor]:
        return super().depth_maps(images) if self.depth is None else list(self.depth(images))

    def modules(self) -> list[torch.nn.Module]:
        return [self.unet, self.vae, self._text.encoder, *([self.depth.network] if self.depth else [])]

    def denoiser(self, run: Batch) -> UnetDenoiser:
        return UnetDenoiser(self.unet, kind=run.solver.kind, text=True, look=run.look, timings=run.timings)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """See `LatentGeometry.latent_shape`."""
        return self.geometry.latent_shape(height, width)

    def encode(self, run: Batch, pixels: Tensor, stream: str) -> Tensor:
        """Latents [N, C, h, w] of pixels [N or 1, 3, H, W] in [-1, 1], drawn from the VAE's posterior.

        Each picture is encoded by itself, as pipelines do with a generator an image, so that it does not depend on what it is
        batched with. With parity there is a row for each row of ``pixels``, drawn in their order.
        """
        given, pixels = pixels, pixels.to(self.device, self.vae.dtype)
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        if run.parity:
            posteriors = [self.vae.encode(pixels[i : i + 1]).latent_dist for i in range(len(pixels))]
            drawn = [p.sample(g) for p, g in zip(posteriors, run.noise.generators(stream), strict=False)]
            return self.vae.config.scaling_factor * (torch.cat(drawn) - shift if shift else torch.cat(drawn))
        mean, std = map(torch.cat, zip(*map(self._posterior, pixels.split(1), given.split(1)), strict=True))
        latents = mean + std * run.noise.draw(stream, mean.shape[1:], mean.dtype)
        # laid out as noise is: the kernels of the network depend on the layout in memory, and so the last bits
        return ((latents - shift) * self.vae.config.scaling_factor).to(self.dtype).contiguous()

    def _posterior(self, pixels: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [1, C, h, w] of a picture's latents, kept by VAE and picture; ``given`` are its pixels as
        they were before they went to the device."""
        if pixels.requires_grad:
            return self._encoded(pixels)
        picture = hashlib.sha256(given.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).digest()
        # the network itself and not its file: who changes one in a notebook sees the change
        key = weakref.ref(self.vae), self.device, self.vae.dtype, tuple(pixels.shape), given.dtype, picture
        return _pictures.get(key, lambda: self._encoded(pixels), lambda made: sum(t.nbytes for t in made))

    def _encoded(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.mean, posterior.std

    def decode_pixels(self, latents: Tensor) -> Tensor:
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        scaled = latents / self.vae.config.scaling_factor + shift
        return self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0]


def _check_tokenizer(folder: Path) -> None:
    """Without its files transformers makes a tokenizer with an empty vocabulary and says nothing."""
    if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
        raise ModelError(
            f"model.path: {folder} has no tokenizer; accepted is a tokenizer.json, or a vocab.json with merges.txt."
        )
