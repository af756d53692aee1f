"""Composable diffusion: several prompts at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from research.checks import check_number
from research.guidance.pairs import guided_in, names_at
from research.guidance.weighted import Prompt, WeightedPrompts
from research.sampling.interfaces import Batch, Branch, Guidance, Guided, Scale, StepState
from research.sampling.prediction import Prediction


class Composable(Guidance):
    """Composable diffusion (Liu et al., arXiv:2206.01714, eq. 11 and 12): ``u + scale * ((c - u) + sum_i weights[i] * (c_i
    - u))``.

    ``c`` is the prediction for the task's own prompt, the first of them, with weight 1; ``c_i`` those for further ones:
    conjunction (AND) with positive weights, negation (NOT) with negative ones. Linear, so it is the same whatever the
    model predicts.

    Args:
        scale: of all together; 0 is the unconditional prediction alone for one evaluation a stage, others cost two and one
            a further prompt. Unlike with CFG, 1 is not the conditional prediction: the further prompts count there too.
        prompts: the further prompts: sentences, or lists of them with one an image.
        weights: one a further prompt, relative to that of the task's own; 1 each by default.

    Raises:
        ConfigError: a number is not finite; or there is no prompt, or an empty one, or not one weight a prompt, or the
            weights sum to nothing.
    """

    neutral = None
    requires = frozenset({"text", "uncond"})

    def __init__(
        self, scale: float = 7.5, prompts: Prompt | Sequence[Prompt] = (), weights: Sequence[float] | None = None
    ):
        self.scale = check_number("guidance.scale", scale)
        self.further = WeightedPrompts("prompt", prompts, weights)

    def vectorises(self) -> bool:
        return self.scale != 0

    def start(self, run: Batch) -> None:
        self.further.start(run)

    def branches(self, state: StepState) -> Sequence[Branch]:
        asked = [Branch(name, state.conditions[name]) for name in names_at(state.scale_of(self))]
        return asked if len(asked) == 1 else [*asked, *self.further.branches()]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        if len(predictions) == 1:
            return Guided(next(iter(predictions.values())))
        return guided_in(state, predictions, "prediction", lambda values: self._guided(state.scale_of(self), values))

    def _guided(self, scale: Scale, values: Mapping[str, Tensor]) -> Tensor:
        u = values["uncond"]
        total = values["cond"] - u
        for name, weight in self.further.by_name().items():
            total = total + weight * (values[name] - u)
        return u + scale * total
