"""Independent condition guidance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from research.checks import check_choice, check_number
from research.errors import ConfigError
from research.guidance.pairs import guided_in
from research.sampling.interfaces import Batch, Branch, Condition, Guidance, Guided, ModelFacts, Solver, StepState
from research.sampling.prediction import Prediction

STREAM = "hook/icg"


class ICG(Guidance):
    """Independent condition guidance (Sadat et al., arXiv:2407.02687, section 4, algorithm 1): ``i + scale * (c - i)``.

    ``i`` is the prediction for a condition that has nothing to do with the image, in place of the unconditional one: the
    model need not have been trained without its condition. For text it is Gaussian noise with the mean and the standard
    deviation of the prompt's embedding, image by image; for classes another class than the image's, each as likely.
    Linear, so it is the same whatever the model predicts.

    Args:
        scale: 1 is no guidance and costs one evaluation a stage, 0 the independent condition alone; others cost two.
        renew: draw a new condition for each of the user's steps, as in the paper; otherwise one for the run.

    Raises:
        ConfigError: the scale is not a finite number, ``renew`` is not true or false; or the model has neither prompts nor
            two classes.
    """

    def __init__(self, scale: float = 7.5, renew: bool = True):
        self.scale = check_number("guidance.scale", scale)
        self.renew = check_choice("guidance.renew", renew, (True, False))

    def check(self, model: ModelFacts, solver: Solver) -> None:
        if self.scale != 1 and "text" not in model.supports and (model.n_classes or 0) < 2:
            raise ConfigError(
                f"guidance: ICG needs a model with prompts or with at least two classes; {model.name} has neither."
            )

    def vectorises(self) -> bool:
        return self.scale not in (0, 1)

    def start(self, run: Batch) -> None:
        self._step: int | None = None
        self._independent: Condition | None = None

    def memory(self) -> dict[str, Any]:
        kept = self._independent
        told = None if kept is None else {f.name: getattr(kept, f.name) for f in dataclasses.fields(kept)}
        return {"step": self._step, "independent": told and {**told, "extra": dict(told["extra"])}}

    def remember(self, memory: Mapping[str, Any]) -> None:
        self._step = memory["step"]
        self._independent = None if memory["independent"] is None else Condition(**memory["independent"])

    def forget(self) -> None:
        self._step = None  # a step that is taken again is another one

    def branches(self, state: StepState) -> Sequence[Branch]:
        conditional = Branch("cond", state.conditions["cond"])
        if state.scale_of(self) == 1:
            return [conditional]
        if self._independent is None or (self.renew and state.stage.step != self._step):
            self._independent = independent(conditional.condition, state.run)
        self._step = state.stage.step
        branch = Branch("independent", self._independent)
        return [branch] if state.scale_of(self) == 0 else [branch, conditional]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        if len(predictions) == 1:
            return Guided(next(iter(predictions.values())))
        return guided_in(
            state,
            predictions,
            "prediction",
            lambda v: v["independent"] + state.scale_of(self) * (v["cond"] - v["independent"]),
        )


def independent(condition: Condition, run: Batch) -> Condition:
    """A condition like the given one that says nothing of the image, drawn from a stream of its own."""
    if condition.embeds is not None:
        pooled = None if condition.pooled is None else like_noise(condition.pooled, run)
        return dataclasses.replace(condition, embeds=like_noise(condition.embeds, run), pooled=pooled)
    if condition.class_labels is not None:
        labels = condition.class_labels
        count = run.model.n_classes or 0
        uniform = 0.5 * (1 + torch.erf(run.noise.draw(STREAM, (), torch.float32) / math.sqrt(2)))
        further = 1 + (uniform * (count - 1)).long().clamp(max=count - 2)
        return dataclasses.replace(condition, class_labels=(labels + further.to(labels)) % count)
    raise ConfigError("guidance: ICG needs a task with a prompt or a class.")


def like_noise(embeds: Tensor, run: Batch) -> Tensor:
    """Gaussian noise with the mean and standard deviation of each image's embedding [N, tokens, dim] or pooled text [N, dim]."""
    wide = embeds.float()
    std, mean = torch.std_mean(wide, dim=tuple(range(1, wide.ndim)), keepdim=True)
    noise = run.noise.draw(STREAM, embeds.shape[1:], torch.float32)
    return (mean + std * noise).to(embeds.dtype)
