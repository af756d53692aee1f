"""A guidance and a hook to start from: copy the file, keep the methods that you need, delete the rest.

research --config-dir my_conf guidance=template hooks=template
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from research.guidance import Guidance
from research.sampling import Branch, Guided, Hook, Prediction, Run, StepState


class MyGuidance(Guidance):
    """Classifier-free guidance, to be made into something else.

    Args:
        scale: 1 is no guidance.
    """

    requires = frozenset(
        {"uncond"}
    )  # of model and scheduler: "uncond", "text", "attention", "first-order", "renoise", "deterministic"
    neutral = 1.0  # the scale that is no guidance, where the Schedule modifier starts

    def __init__(self, scale: float = 3.0):
        self.scale = scale

    def start(self, run: Run) -> None:
        """Reset here what is kept from step to step; one object serves many runs."""

    def branches(self, state: StepState) -> Sequence[Branch]:
        """What to evaluate at this stage; ``state.stage`` knows step, sigma and log-SNR. Not asked for, not computed."""
        return [Branch(name, state.conditions[name]) for name in ("uncond", "cond")]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        """One prediction of them: values [N, C, h, w] of the kind the model makes (``research.sampling.convert`` to others)."""
        u, c = predictions["uncond"], predictions["cond"]
        return Guided(Prediction(u.value + state.scale_of(self) * (c.value - u.value), c.kind))


class MyHook(Hook):
    """Does nothing at every point of the loop."""

    order = 0  # hooks run in ascending order

    def on_start(self, run: Run) -> None:
        """Before the first stage; ``run.noise.draw("hook/mine", shape)`` is noise that moves nobody else's."""

    def pre_step(self, state: StepState) -> None:
        """Assign ``state.x`` [N, C, h, w] to change the latents themselves."""

    def pre_model(self, state: StepState, inputs: Tensor) -> Tensor | None:
        """Return what the model is to see instead, or None."""

    def post_model(self, state: StepState, predictions: Mapping[str, Prediction]) -> dict[str, Prediction] | None:
        """Return other predictions, by branch, or None."""

    def post_guidance(self, state: StepState) -> None:
        """``state.x0`` is the clean estimate; assign ``state.guided`` to change it."""

    def post_step(self, state: StepState) -> None:
        """``state.x`` is the next latents; assign it to change them."""

    def on_end(self, run: Run) -> None:
        """Leave what was measured in ``run.trace["mine"]``; it goes to the result and to trace.json."""

    def pictures(self, images: Sequence[Any]) -> Mapping[str, Any]:
        """Further pictures of all images, by name."""
        return {}
