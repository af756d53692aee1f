"""Skip-layer guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from research.guidance.perturbed import LayerPatch, PatchedLayers
from research.sampling.interfaces import Guidance, Patch, StepState


class SLG(PatchedLayers):
    """Skip-layer guidance, as Stable Diffusion 3.5 has it: ``g + scale * (c - p)``.

    ``p`` is the conditional prediction of the network with some blocks skipped: what comes in goes out. ``g`` is what the base
    gives, ``c`` without one. It was published as code with that model and has no paper; the formula is that of
    `StableDiffusion3Pipeline`, which uses it in a part of the steps: ``Interval(SLG(...), steps=(0.01, 0.2), outside="base")``.

    Args:
        scale: strength of the push, from 0; Stable Diffusion 3.5 takes 2.8.
        layers: transformer blocks, by pattern; in a network without any, its self-attention layers.
        base: for example ``CFG(5)``; by default none, which costs two evaluations a stage.

    Raises:
        ConfigError: see `PatchedLayers`.
    """

    kind = "block"
    branch = "skipped"

    def __init__(self, scale: float = 2.8, layers: str | Sequence[str] = "mid", base: Guidance | None = None):
        super().__init__(scale, layers, base)

    def vectorises(self) -> bool:
        return self.pushes_each_alone()

    def patch(self, state: StepState) -> Patch:
        return Skip(self.chosen)


class Skip(LayerPatch):
    """A block left out."""

    kind = "block"

    def __call__(self, layer: Any, forward: Any, hidden: Tensor, **kwargs: Any) -> Any:
        # blocks of two streams hand on both, the text first
        return (kwargs["encoder_hidden_states"], hidden) if type(layer).__name__ in _TWO_STREAMS else hidden


_TWO_STREAMS = {
    "JointTransformerBlock",
    "AuraFlowJointTransformerBlock",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
    "ChromaTransformerBlock",
    "QwenImageTransformerBlock",
}
