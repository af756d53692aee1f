"""Stable Diffusion 3 and 3.5 (Esser et al., arXiv:2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from research.models.families.flow_times import linear_mu
from research.models.families.pipeline_model import PipelineModel
from research.models.families.texts import clip_hidden_and_pooled, padded
from research.models.geometry import LatentGeometry
from research.models.memory import device_of
from research.sampling.interfaces import Condition
from research.solvers.upstream_levels import Shape


class SD3Model(PipelineModel):
    """Two CLIP towers and T5 (or zeros in its place) beside one another in a transformer that predicts flow."""

    family = "sd3"
    together = "plain"  # the pipeline of skip-layer guidance asks for its third prediction apart
    steps_by_seed = False
    resizes_pictures = True
    max_length: int = 256
    middle_layers = ("transformer_blocks.1",)  # as diffusers' PAG has by default

    @classmethod
    def geometry_of(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentGeometry:
        size = network.get("sample_size", 128)
        return LatentGeometry(
            in_channels=network.get("in_channels", 16),
            latent_channels=vae.get("latent_channels", 4),
            sample_size=(size, size),
            vae_factor=2 ** (len(vae.get("block_out_channels", (64,))) - 1),
            patch=network.get("patch_size", 2),
        )

    @classmethod
    def schedule_of(
        cls, network: Mapping[str, Any], scheduler: Any, steps: int, shape: Shape, parity: bool
    ) -> Mapping[str, Any]:
        if not scheduler.config.get("use_dynamic_shifting"):
            return {}
        patch = network.get("patch_size", 2)
        tokens = (shape[1] // patch) * (shape[2] // patch)
        return {"mu": linear_mu(tokens, scheduler.config, max_shift=1.16)}

    def tokenizers(self) -> Sequence[tuple[Any, int]]:
        clip = self.parts["tokenizer"]
        t5 = self.parts.get("tokenizer_3")
        return [*([(t5, self.max_length)] if t5 is not None else []), (clip, clip.model_max_length)]

    def encode_texts(self, texts: Sequence[str], *, negative: bool) -> Condition:
        parts = self.parts
        towers = [clip_hidden_and_pooled(parts[f"tokenizer{n}"], parts[f"text_encoder{n}"], texts) for n in ("", "_2")]
        clip, pooled = (torch.cat(pair, dim=-1) for pair in zip(*towers, strict=True))
        t5 = self._t5(texts)
        wide = torch.nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return Condition(embeds=torch.cat([wide, t5], dim=-2), pooled=pooled)

    def _t5(self, texts: Sequence[str]) -> Tensor:
        """States of T5 [N, tokens, dim], which attends to its padding too; zeros without T5."""
        encoder = self.parts.get("text_encoder_3")
        if encoder is None:
            width = self.network.config.joint_attention_dim
            return torch.zeros(len(texts), self.max_length or 0, width, dtype=self.dtype, device=self.device)
        found = padded(self.parts["tokenizer_3"], texts, self.max_length, device_of(encoder), add_special_tokens=True)
        return encoder(found.input_ids)[0]

    def evaluate(self, x: Tensor, t: Tensor, told: Condition) -> Tensor:
        return self.network(
            hidden_states=x,
            timestep=t.expand(len(x)),
            encoder_hidden_states=told.embeds,
            pooled_projections=told.pooled,
            joint_attention_kwargs=None,
            return_dict=False,
        )[0]
