"""Lumina-Image 2.0 (arXiv:2503.21758)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from research.models.families.flow_times import even_sigmas, linear_mu
from research.models.families.pipeline_model import PipelineModel, patched_geometry
from research.models.families.texts import padded
from research.models.geometry import LatentGeometry
from research.models.memory import device_of
from research.sampling.interfaces import Condition
from research.solvers.upstream_levels import Shape

_SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on textual "
    "prompts or user prompts. <Prompt Start> "
)


class Lumina2Model(PipelineModel):
    """Gemma 2 with its mask, before the last layer; a system prompt stands before the prompt, and not before the negative one."""

    family = "lumina2"
    steps_by_seed = False
    together = "none"
    max_length: int = 256

    @classmethod
    def geometry_of(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentGeometry:
        return patched_geometry(network, vae)

    @classmethod
    def schedule_of(
        cls, network: Mapping[str, Any], scheduler: Any, steps: int, shape: Shape, parity: bool
    ) -> Mapping[str, Any]:
        patch = network.get("patch_size", 2)
        # the pipeline counts channels for tokens
        tokens = shape[0] if parity else (shape[1] // patch) * (shape[2] // patch)
        mu = linear_mu(tokens, scheduler.config)
        if not parity and not scheduler.config.get("use_dynamic_shifting"):
            return {} if scheduler.config.get("use_flow_sigmas") else {"sigmas": even_sigmas(steps)}
        return {"mu": mu} if scheduler.config.get("use_flow_sigmas") else {"sigmas": even_sigmas(steps), "mu": mu}

    def tokenizers(self) -> Sequence[tuple[Any, int]]:
        return [(self.parts["tokenizer"], self.max_length)]

    def encode_texts(self, texts: Sequence[str], *, negative: bool) -> Condition:
        tokenizer, encoder = self.parts["tokenizer"], self.parts["text_encoder"]
        tokenizer.padding_side = "right"
        given = texts if negative else [_SYSTEM + text for text in texts]
        found = padded(tokenizer, given, self.max_length, device_of(encoder))
        out = encoder(found.input_ids, attention_mask=found.attention_mask, output_hidden_states=True)
        return Condition(embeds=out.hidden_states[-2], mask=found.attention_mask)

    def evaluate(self, x: Tensor, t: Tensor, told: Condition) -> Tensor:
        """Its network is told how much of the way to the picture is gone, and points there."""
        toward_picture = self.network(
            hidden_states=x,
            timestep=(1 - t / 1000).expand(len(x)),
            encoder_hidden_states=told.embeds,
            encoder_attention_mask=told.mask,
            return_dict=False,
        )[0]
        return -toward_picture
