"""Sana (arXiv:2410.10629)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from research.models.families.pipeline_model import PipelineModel
from research.models.families.texts import padded
from research.models.geometry import LatentGeometry
from research.models.memory import device_of
from research.sampling.interfaces import Batch, Condition


class SanaModel(PipelineModel):
    """Gemma 2 with its mask and an autoencoder of factor 32; an instruction stands before all but negative prompts."""

    family = "sana"
    max_length: int = 300

    @property
    def noise_dtype(self) -> torch.dtype:
        return torch.float32

    @classmethod
    def geometry_of(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentGeometry:
        size = network.get("sample_size", 32)
        return LatentGeometry(
            in_channels=network.get("in_channels", 32),
            latent_channels=vae.get("latent_channels", 32),
            sample_size=(size, size),
            vae_factor=2 ** (len(vae.get("encoder_block_out_channels", (64,) * 6)) - 1),
            patch=network.get("patch_size", 1),
        )

    def tokenizers(self) -> Sequence[tuple[Any, int]]:
        return [(self.parts["tokenizer"], self.max_length)]

    def encode_texts(self, texts: Sequence[str], *, negative: bool) -> Condition:
        tokenizer, encoder = self.parts["tokenizer"], self.parts["text_encoder"]
        tokenizer.padding_side = "right"
        given, length = [text.lower().strip() for text in texts], self.max_length
        if not negative:
            given = [instruction() + text for text in given]
            length += len(tokenizer.encode(instruction())) - 2
        found = padded(tokenizer, given, length, device_of(encoder), add_special_tokens=True)
        embeds = encoder(found.input_ids, attention_mask=found.attention_mask)[0]
        kept = [0, *range(-self.max_length + 1, 0)]  # begin of text, and what comes after most of the instruction
        return Condition(embeds=embeds[:, kept], mask=found.attention_mask[:, kept])

    def evaluate(self, x: Tensor, t: Tensor, told: Condition) -> Tensor:
        out = self.network(
            x.to(self.dtype),
            encoder_hidden_states=told.embeds,
            encoder_attention_mask=told.mask,
            timestep=t.expand(len(x)) * self.network.config.timestep_scale,
            return_dict=False,
        )[0]
        return out.float()[:, : x.shape[1]]

    def encode(self, run: Batch, pixels: Tensor, stream: str) -> Tensor:
        """Latents of pixels; this autoencoder has no posterior to draw from. With parity all are encoded in one batch."""
        pixels = pixels.to(self.device, self.vae.dtype)
        parts = pixels.split(len(pixels) if run.parity else 1)
        rows = [self.vae.encode(part, return_dict=False)[0] for part in parts]
        return self.normalised(torch.cat(rows)).to(self.noise_dtype).contiguous()


@cache
def instruction() -> str:
    """What the pipeline has stand before a prompt by default."""
    from diffusers import SanaPipeline

    return "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
