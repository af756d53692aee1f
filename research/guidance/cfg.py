"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from research.checks import check_number
from research.guidance.pairs import extrapolated
from research.sampling.interfaces import Batch, Branch, Guidance, Guided, Scale, StepState
from research.sampling.prediction import Prediction


class CFG(Guidance):
    """Classifier-free guidance (Ho & Salimans, arXiv:2207.12598, eq. 6, with ``scale = 1 + w``): ``u + scale * (c - u)``.

    ``u`` is the prediction for the negative prompt, or for the empty one. Linear, so it is the same whatever the model predicts.

    Args:
        scale: 1 is the conditional prediction alone and costs one evaluation a stage, 0 the unconditional one alone;
            other values cost two. Values between 0 and 1 are honoured (diffusers pipelines, and so parity, take them as 1).
            With parity the models whose pipelines guide only where a negative prompt is given (Flux, Qwen-Image) do as these.

    Raises:
        ConfigError: the scale is not a finite number.
    """

    _parity = False
    _off = False  # with parity, where the pipeline does not guide

    def __init__(self, scale: float = 7.5):
        self.scale = check_number("guidance.scale", scale)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset() if self.scale == 1 else frozenset({"uncond"})

    def vectorises(self) -> bool:
        return self.scale not in (0, 1)

    def start(self, run: Batch) -> None:
        self._parity = run.parity
        self._off = run.parity and run.model.guided_by_negative_alone and "uncond" not in run.conditions
        if self._off and self.scale > 1:
            run.warn(
                f"guidance: CFG of scale {self.scale:g} is off, because the pipeline of {run.model.name} does not guide without "
                "a negative prompt; accepted with parity is one, if an empty one."
            )

    def branches(self, state: StepState) -> Sequence[Branch]:
        # pipelines put the unconditional rows first in the batch
        conditions = state.conditions
        return [Branch(name, conditions[name]) for name in self._names(state.scale_of(self))]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        scale = state.scale_of(self)
        needed = self._names(scale)
        if len(needed) == 1 or len(predictions) == 1:
            return Guided(predictions[next(name for name in needed if name in predictions)])
        u, c = predictions["uncond"], predictions["cond"]
        return Guided(Prediction(extrapolated(u.value, c.value, scale, parity=self._parity), c.kind))

    def _names(self, scale: Scale) -> tuple[str, ...]:
        """The predictions that are needed at a scale."""
        if self._off:
            return ("cond",)
        if isinstance(scale, Tensor):  # one an image: some of them need both
            return ("uncond", "cond")
        if scale == 1 or (self._parity and scale < 1):
            return ("cond",)
        return ("uncond",) if scale == 0 else ("uncond", "cond")
