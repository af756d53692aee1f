"""Unconditional and class-conditional sampling."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from research.errors import ConfigError
from research.sampling.interfaces import Batch, Condition, ModelFacts
from research.tasks.base import BaseTask, Conditions


class Unconditional(BaseTask):
    """Images without a prompt: of a pixel model, or of classes.

    Args:
        class_label: for class-conditional models: one label for all seeds, or a list with one a seed, each from 0.
    """

    name = "unconditional"

    def __init__(self, class_label: int | Sequence[int] | None = None):
        self.class_label = class_label

    def vectorises(self) -> bool:
        return True

    def check(self, model: ModelFacts, n_images: int) -> None:
        super().check(model, n_images)
        if "text" in model.supports:
            raise ConfigError(
                f"task: {self.name} is for models without a prompt; {model.name} takes text: use task text_to_image."
            )
        n_classes = model.n_classes
        if self.class_label is None:
            if n_classes:
                raise ConfigError(f"task.class_label: found none; {model.name} needs one from 0 to {n_classes - 1}.")
            return
        if not n_classes:
            raise ConfigError(f"task.class_label: found {self.class_label!r}; {model.name} has no classes.")
        labels = self._labels(n_images)
        if len(labels) != n_images or not all(type(i) is int and 0 <= i < n_classes for i in labels):
            raise ConfigError(
                f"task.class_label: found {self.class_label!r} for {n_images} images; accepted is a whole number from 0 to "
                f"{n_classes - 1}, or a list with one an image."
            )

    def conditions(self, run: Batch) -> Mapping[str, Condition]:
        if self.class_label is None:
            return Conditions({"cond": Condition})
        labels, null = self._labels(run.n_images), run.model.null_class

        def of(mine: list[int]) -> Condition:
            return Condition(class_labels=torch.tensor(mine, device=run.model.device))

        makers = {"cond": lambda: of([labels[row] for row in run.rows])}
        if null is not None:
            makers["uncond"] = lambda: of([null] * len(run.rows))
        return Conditions(makers)

    def _labels(self, n_images: int) -> list[Any]:
        """One label an image; what is no whole number is left as it was found."""
        given = _as_int(self.class_label)
        if isinstance(given, int):
            return [given] * n_images
        return [_as_int(label) for label in given] if isinstance(given, Iterable) else [given]


def _as_int(value: Any) -> Any:
    """A whole number of Python, numpy or torch as an int; anything else, bools included, as it is."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value
