"""Sana-Sprint (arXiv:2503.09641): Sana distilled into a consistency model of trigonometric flow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from research.models.denoiser import NetworkDenoiser
from research.models.families.sana import SanaModel
from research.sampling.interfaces import Batch, Condition
from research.solvers.trigflow import angle_of


class SanaSprintModel(SanaModel):
    """Its network knows the flow times of Sana; angles and latents are brought there, and what it says back (section 3.2)."""

    family = "sana-sprint"
    resizes_pictures = True
    encodes_once = True

    @classmethod
    def facts_of(cls, configs: Mapping[str, Mapping[str, Any]], index: Mapping[str, Any]) -> Mapping[str, Any]:
        embeds = configs.get("transformer", {}).get("guidance_embeds")
        return {**super().facts_of(configs, index), "distilled_guidance": 4.5 if embeds else None}

    def denoiser(self, run: Batch) -> NetworkDenoiser:
        made = super().denoiser(run)
        made.evaluate = partial(self.evaluate, parity=run.parity)
        return made

    def evaluate(self, x: Tensor, t: Tensor, told: Condition, *, parity: bool = False) -> Tensor:
        """The velocity ``cos(t) epsilon - sin(t) x0``; the pipeline tells the angle itself, other solvers timesteps."""
        angle = (t if parity else angle_of(t)).expand(len(x))
        time = torch.sin(angle) / (torch.cos(angle) + torch.sin(angle))
        wide = time.view(-1, 1, 1, 1)
        norm = torch.sqrt(wide**2 + (1 - wide) ** 2)
        seen = x * norm
        out = self.network(
            seen.to(self.dtype),
            encoder_hidden_states=told.embeds,
            encoder_attention_mask=told.mask,
            guidance=self._guidance(len(x), told),
            timestep=time,
            return_dict=False,
        )[0]
        return (((1 - 2 * wide) * seen + (1 - 2 * wide + 2 * wide**2) * out) / norm).float()

    def _guidance(self, rows: int, told: Condition) -> Tensor | None:
        if self.distilled_guidance is None:
            return None
        assert told.embeds is not None
        scale = torch.full([1], self.distilled_guidance, device=told.embeds.device).expand(rows).to(told.embeds.dtype)
        return scale * self.network.config.guidance_embeds_scale
