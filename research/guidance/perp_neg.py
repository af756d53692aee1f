"""Perp-Neg: negative prompts that leave the positive one alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from research.checks import check_number
from research.errors import ConfigError
from research.guidance.pairs import guided_in, names_at, parallel
from research.guidance.weighted import Prompt, WeightedPrompts
from research.sampling.interfaces import Batch, Branch, Guidance, Guided, Scale, StepState
from research.sampling.prediction import Prediction


class PerpNeg(Guidance):
    """Perp-Neg (Armandpour et al., arXiv:2304.04968, section 4): ``u + scale * (p - sum_i weights[i] * n_i)``.

    ``p = c - u`` is the direction of the task's own prompt, ``n_i`` that of a negative prompt less its part along ``p``,
    image by image: what both prompts mean is kept. Angles of differences are the same whatever the model predicts. ``u``
    is the prediction for the empty prompt (for the task's negative prompt, if it has one).

    Args:
        scale: from 0, which is ``u`` alone and costs one evaluation a stage; others cost two and one a negative prompt.
            Unlike with CFG, 1 is not the conditional prediction: the negative prompts count there too.
        prompts: the negative prompts: sentences, or lists of them with one an image.
        weights: one a negative prompt, from 0; 1 each by default. The paper has the weights positive and the terms
            subtracted.

    Raises:
        ConfigError: a number is not finite or negative; or there is no prompt, or an empty one, or not one weight a
            prompt, or the weights sum to nothing.
    """

    neutral = None
    scale_range = (0.0, math.inf)
    requires = frozenset({"text", "uncond"})

    def __init__(
        self, scale: float = 7.5, prompts: Prompt | Sequence[Prompt] = (), weights: Sequence[float] | None = None
    ):
        self.scale = check_number("guidance.scale", scale)
        if self.scale < 0:
            raise ConfigError(f"guidance.scale: found {scale!r}; Perp-Neg accepts a number from 0.")
        self.negatives = WeightedPrompts("negative", prompts, weights)
        if min(self.negatives.weights) < 0:
            raise ConfigError(
                f"guidance.weights: found {list(self.negatives.weights)}; accepted are numbers from 0, which are subtracted."
            )

    def vectorises(self) -> bool:
        return self.scale != 0

    def start(self, run: Batch) -> None:
        self.negatives.start(run)

    def branches(self, state: StepState) -> Sequence[Branch]:
        asked = [Branch(name, state.conditions[name]) for name in names_at(state.scale_of(self))]
        return asked if len(asked) == 1 else [*asked, *self.negatives.branches()]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        if len(predictions) == 1:
            return Guided(next(iter(predictions.values())))
        return guided_in(state, predictions, "prediction", lambda values: self._guided(state.scale_of(self), values))

    def _guided(self, scale: Scale, values: Mapping[str, Tensor]) -> Tensor:
        u = values["uncond"]
        positive = values["cond"] - u
        total = positive
        for name, weight in self.negatives.by_name().items():
            negative = values[name] - u
            total = total - weight * (negative - parallel(negative, positive))
        return u + scale * total
