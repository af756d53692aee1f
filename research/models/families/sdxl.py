"""Stable Diffusion XL: base, refiner, inpainting and models distilled from them (Podell et al., arXiv:2307.01952)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError
from research.models.denoiser import NetworkDenoiser
from research.models.families.pipeline_model import PipelineModel
from research.models.families.texts import clip_hidden_and_pooled
from research.models.guidance_embedding import guidance_embedding
from research.models.size_conditioning import SizeConditioning
from research.sampling.interfaces import Batch, Condition


class SDXLModel(PipelineModel):
    """A UNet that is told two CLIP texts side by side, the pooled text of the second, and numbers about the picture: its size
    before and after training's crop and the crop's corner; for the refiner a score of looks in place of the second size."""

    family = "sdxl"
    network_part = "unet"
    supports = frozenset({"text", "word-places", "uncond", "latents", "attention"})
    size_conditioning = MappingProxyType({})  # nothing chosen

    def __init__(self, **common: Any):
        super().__init__(**common)
        if self.vae.dtype is torch.float16 and self.vae.config.force_upcast:
            self.vae.float()  # it overflows in half precision

    @classmethod
    def facts_of(cls, configs: Mapping[str, Mapping[str, Any]], index: Mapping[str, Any]) -> Mapping[str, Any]:
        embeds = configs.get("unet", {}).get("time_cond_proj_dim") is not None
        return {**super().facts_of(configs, index), "distilled_guidance": 5.0 if embeds else None}

    def _towers(self) -> list[str]:
        """Suffixes of the names of the text encoders; the refiner has the second alone."""
        return [suffix for suffix in ("", "_2") if f"text_encoder{suffix}" in self.parts]

    def tokenizers(self) -> Sequence[tuple[Any, int]]:
        found = [self.parts[f"tokenizer{suffix}"] for suffix in self._towers()]
        return [(each, each.model_max_length) for each in found]

    def encode_texts(self, texts: Sequence[str], *, negative: bool) -> Condition:
        parts = self.parts
        towers = [
            clip_hidden_and_pooled(parts[f"tokenizer{n}"], parts[f"text_encoder{n}"], texts) for n in self._towers()
        ]
        embeds = torch.cat([hidden for hidden, _ in towers], dim=-1)
        return Condition(embeds=embeds, pooled=towers[-1][1], extra={"negative": negative})

    def not_given(self, told: Condition) -> Condition:
        if not self.index.get("force_zeros_for_empty_prompt", True):
            return told
        assert told.embeds is not None
        assert told.pooled is not None
        return replace(told, embeds=torch.zeros_like(told.embeds), pooled=torch.zeros_like(told.pooled))

    def of_size(self, told: Condition, size: tuple[int, int]) -> Condition:
        assert told.embeds is not None
        scored = bool(self.index.get("requires_aesthetics_score"))
        known = SizeConditioning.of(self.size_conditioning)
        numbers = known.numbers(size, negative=told.extra["negative"], scored=scored)
        return replace(told, extra={"time_ids": told.embeds.new_tensor([numbers]).repeat(len(told.embeds), 1)})

    def denoiser(self, run: Batch) -> NetworkDenoiser:
        if run.parity and len(run.seeds) > 1 and SizeConditioning.of(self.size_conditioning).differs:
            raise ConfigError(
                "model.size_conditioning: found negative sizes with parity, where the pipeline tells images of one batch one "
                "another's; accepted is batch_size=1."
            )
        return super().denoiser(run)

    def evaluate(self, x: Tensor, t: Tensor, told: Condition) -> Tensor:
        scale = self.distilled_guidance
        return self.network(
            x,
            t,
            encoder_hidden_states=told.embeds,
            timestep_cond=None
            if scale is None
            else guidance_embedding(scale, len(x), self.network.config.time_cond_proj_dim, x),
            added_cond_kwargs={"text_embeds": told.pooled, "time_ids": told.extra["time_ids"]},
            return_dict=False,
        )[0]

    def normalised(self, sample: Tensor) -> Tensor:
        if (own := self._statistics(sample)) is None:
            return super().normalised(sample)
        return (sample - own[0]) * self.vae.config.scaling_factor / own[1]

    def denormalised(self, latents: Tensor) -> Tensor:
        if (own := self._statistics(latents)) is None:
            return super().denormalised(latents)
        return latents * own[1] / self.vae.config.scaling_factor + own[0]

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of latents by channel [1, C, 1, 1], where the VAE's config has them."""
        config = self.vae.config
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or std is None:
            return None
        return like.new_tensor(mean).view(1, -1, 1, 1), like.new_tensor(std).view(1, -1, 1, 1)
