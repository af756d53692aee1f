"""AuraFlow (fal, 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from research.models.families.pipeline_model import PipelineModel, patched_geometry
from research.models.families.texts import padded
from research.models.geometry import LatentGeometry
from research.models.memory import device_of
from research.sampling.interfaces import Condition


class AuraFlowModel(PipelineModel):
    """UMT5, whose padding is zeros that the network attends to."""

    family = "auraflow"
    supports = PipelineModel.supports | {"word-places"}
    steps_by_seed = False
    max_length: int = 256

    @classmethod
    def geometry_of(cls, network: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentGeometry:
        return patched_geometry(network, vae)

    def tokenizers(self) -> Sequence[tuple[Any, int]]:
        return [(self.parts["tokenizer"], self.max_length)]

    def encode_texts(self, texts: Sequence[str], *, negative: bool) -> Condition:
        encoder = self.parts["text_encoder"]
        found = padded(self.parts["tokenizer"], texts, self.max_length, device_of(encoder))
        embeds = encoder(found.input_ids, attention_mask=found.attention_mask)[0]
        return Condition(embeds=embeds * found.attention_mask.unsqueeze(-1).expand(embeds.shape))

    def evaluate(self, x: Tensor, t: Tensor, told: Condition) -> Tensor:
        return self.network(
            x, encoder_hidden_states=told.embeds, timestep=(t / 1000).expand(len(x)).to(x.dtype), return_dict=False
        )[0]
