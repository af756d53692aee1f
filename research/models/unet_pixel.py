"""Unconditional and class-conditional UNets on pixels: the DDPM and DDIM pipelines of the course."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from research.models.base import BaseModel
from research.models.denoiser import NetworkDenoiser
from research.models.geometry import pixel_shape
from research.models.inspect.weights import loaded_module
from research.models.patching import has_attention
from research.sampling.interfaces import Batch, Condition


class UnetPixelModel(BaseModel):
    """The UNet of a DDPM-layout checkpoint; its latents are the pixels in [-1, 1]."""

    family = "unet-pixel"
    supports = frozenset({"pixels"})

    def __init__(self, *, unet: Any, **common: Any):
        super().__init__(**common)
        self.unet = unet
        self.n_classes: int | None = getattr(unet.config, "num_class_embeds", None)
        if self.n_classes:
            self.supports = self.supports | {"class_label"}
        if has_attention(unet.config, text=False):
            self.supports = self.supports | {"attention"}

    @classmethod
    def facts_of(cls, configs: Mapping[str, Mapping[str, Any]], index: Mapping[str, Any]) -> Mapping[str, Any]:
        unet = configs.get("unet", {})
        size, classes = unet.get("sample_size"), unet.get("num_class_embeds")
        sides = (size, size) if isinstance(size, int) else tuple(size or ())
        attention = {"attention"} if has_attention(unet, text=False) else set()
        return {
            "supports": cls.supports | attention | ({"class_label"} if classes else set()),
            "own_shape": (unet.get("in_channels", 3), *sides) if len(sides) == 2 else None,
            "n_classes": classes,
        }

    @classmethod
    def load_parts(
        cls, directory: Path, *, dtype: torch.dtype, safe: bool | None, quantization: Any = None
    ) -> dict[str, Any]:
        from diffusers import UNet2DModel

        loaded = UNet2DModel.from_pretrained(
            directory,
            subfolder="unet",
            torch_dtype=dtype,
            quantization_config=quantization,
            use_safetensors=safe,
            local_files_only=True,
            output_loading_info=True,
        )
        return {"unet": loaded_module(loaded, directory / "unet")}

    @property
    def network(self) -> Any:
        return self.unet

    def modules(self) -> list[torch.nn.Module]:
        return [self.unet]

    def denoiser(self, run: Batch) -> NetworkDenoiser:
        return NetworkDenoiser(self.unet, self.evaluate, kind=run.solver.kind, look=run.look, timings=run.timings)

    def evaluate(self, x: Tensor, t: Tensor, told: Condition) -> Tensor:
        """What the network predicts; see `NetworkDenoiser`."""
        labels = {} if told.class_labels is None else {"class_labels": told.class_labels}
        made = self.unet(x, t, return_dict=False, **labels)[0]
        # of a network that learned its sigmas too, what it predicts comes first
        return made[:, : x.shape[1]] if made.shape[1] == 2 * x.shape[1] else made

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        size = self.unet.config.sample_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return pixel_shape((self.unet.config.in_channels, *sides), height, width)

    def encode(self, run: Batch, pixels: Tensor, stream: str) -> Tensor:
        """The pixels themselves, [N, C, H, W] in [-1, 1]."""
        return pixels.to(self.device, self.dtype).expand(len(run.seeds), -1, -1, -1)

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """The latents themselves."""
        return latents
