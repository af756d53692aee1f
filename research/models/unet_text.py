"""Text-conditioned latent UNets: Stable Diffusion 1.x and 2.x, and models of the same layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from research.errors import ModelError
from research.models.denoiser import NetworkDenoiser
from research.models.depth import DepthEstimator
from research.models.geometry import LatentGeometry
from research.models.guidance_embedding import guidance_embedding
from research.models.inspect.families import mends, tells_strength
from research.models.inspect.find_model import pipeline_class
from research.models.inspect.weights import loaded_module
from research.models.latent_model import LatentModel
from research.models.patching import has_attention
from research.models.scheduler_config import mended
from research.models.text import TextEncoder
from research.sampling.interfaces import Batch, Condition


class UnetTextModel(LatentModel):
    """UNet, VAE and text encoder of a Stable Diffusion checkpoint, with a depth estimator if the directory has one.

    Attributes:
        role: what the UNet's input channels are: "text" (the latents alone), "inpaint" (latents, mask, masked latents) or
            "depth" (latents and a depth map).
    """

    family = "unet-text"
    supports = frozenset({"text", "word-places", "uncond", "latents"})
    weighted = ("unet", "vae", "text_encoder")

    def __init__(
        self,
        *,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        depth: DepthEstimator | None = None,
        pipeline: str = "StableDiffusionPipeline",
        **common: Any,
    ):
        super().__init__(**common)
        self.unet, self.vae, self.depth = unet, vae, depth
        self._text = TextEncoder(tokenizer, text_encoder, self.weights_sha256)
        self.tells_strength = tells_strength(pipeline)
        if mends(pipeline):
            self.scheduler_config = mended(self.scheduler_config)
        self.geometry = LatentGeometry.of(unet.config, vae.config)
        self._role = self.geometry.role(self.path)
        if has_attention(unet.config, text=True):
            self.supports = self.supports | {"attention"}
        self.distilled_guidance = _embedded(unet.config)

    @classmethod
    def facts_of(cls, configs: Mapping[str, Mapping[str, Any]], index: Mapping[str, Any]) -> Mapping[str, Any]:
        attention = {"attention"} if has_attention(configs.get("unet", {}), text=True) else set()
        return {
            "supports": cls.supports | attention,
            "geometry": LatentGeometry.of(configs.get("unet", {}), configs.get("vae", {})),
            "distilled_guidance": _embedded(configs.get("unet", {})),
            "tells_strength": tells_strength(str(index.get("_class_name"))),
            "has_depth": (index.get("depth_estimator") or [None])[0] is not None,
        }

    @classmethod
    def load_parts(
        cls, directory: Path, *, dtype: torch.dtype, safe: bool | None, quantization: Any = None
    ) -> dict[str, Any]:
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
            "pipeline": pipeline_class(directory),
            "depth": DepthEstimator.load(directory, dtype=dtype, safe=safe),
            "unet": load(UNet2DConditionModel, "unet", torch_dtype=dtype, quantization_config=quantization),
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

    def named_parts(self) -> Mapping[str, Any]:
        return {
            "unet": self.unet,
            "vae": self.vae,
            "text_encoder": self._text.encoder,
            "tokenizer": self._text.tokenizer,
        }

    def denoiser(self, run: Batch) -> NetworkDenoiser:
        return NetworkDenoiser(self.unet, self.evaluate, kind=run.solver.kind, look=run.look, timings=run.timings)

    def evaluate(self, x: Tensor, t: Tensor, told: Condition) -> Tensor:
        """What the network predicts; see `NetworkDenoiser`."""
        scale = self.distilled_guidance
        cond = None if scale is None else guidance_embedding(scale, len(x), self.unet.config.time_cond_proj_dim, x)
        return self.unet(x, t, encoder_hidden_states=told.embeds, timestep_cond=cond, return_dict=False)[0]


def _embedded(unet: Mapping[str, Any]) -> float | None:
    """The guidance scale that a UNet of this config is told where nobody chooses one, as of `LatentConsistencyModelPipeline`."""
    return None if unet.get("time_cond_proj_dim") is None else 8.5


def _check_tokenizer(folder: Path) -> None:
    """Without its files transformers makes a tokenizer with an empty vocabulary and says nothing."""
    if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
        raise ModelError(
            f"model.path: {folder} has no tokenizer; accepted is a tokenizer.json, or a vocab.json with merges.txt."
        )
