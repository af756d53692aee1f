"""Prompts with weights, for methods that take more of them than the task has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from research.checks import check_number
from research.errors import ConfigError
from research.sampling.interfaces import Batch, Branch

Prompt = str | Sequence[str]  # one for all images, or one an image of the job


class WeightedPrompts:
    """Sentences with a weight each, and their conditions in a run.

    Args:
        name: of the branches: with "negative" they are negative_1, negative_2, ...
        prompts: sentences, or lists with one an image of the job; one sentence may come alone.
        weights: one a prompt; 1 each by default. A prompt with weight 0 is not evaluated.

    Raises:
        ConfigError: there is no prompt, or an empty one, or not one weight a prompt, or the weights sum to nothing.
    """

    def __init__(self, name: str, prompts: Prompt | Sequence[Prompt], weights: Sequence[float] | float | None):
        self.prompts = _checked_prompts(prompts)
        self.weights = (1.0,) * len(self.prompts) if weights is None else checked_weights(weights)
        if len(self.weights) != len(self.prompts):
            raise ConfigError(
                f"guidance.weights: found {len(self.weights)} for {len(self.prompts)} prompts; accepted is one a prompt."
            )
        self.names = [f"{name}_{i}" for i in range(1, len(self.prompts) + 1)]
        self._branches: list[Branch] = []

    def start(self, run: Batch) -> None:
        """Make the conditions for a batch.

        Raises:
            ConfigError: a list of sentences has another length than the job has images, or the task has no text.
        """
        self._branches = []
        for name, prompt, weight in zip(self.names, self.prompts, self.weights, strict=True):
            if not isinstance(prompt, str) and len(prompt) != run.n_images:
                raise ConfigError(
                    f"guidance.prompts: found {len(prompt)} sentences for {run.n_images} images; "
                    "accepted is one for all, or one an image."
                )
            if weight != 0:
                self._branches.append(Branch(name, run.task.condition(run, prompt)))

    def branches(self) -> list[Branch]:
        return list(self._branches)

    def by_name(self) -> dict[str, float]:
        """Weights by the names of the branches, those that are 0 left out."""
        return {name: weight for name, weight in zip(self.names, self.weights, strict=True) if weight != 0}


def checked_weights(weights: Sequence[float] | float, key: str = "guidance.weights") -> tuple[float, ...]:
    """``weights`` as floats, if they are one or more finite numbers that sum to something.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(weights, str) or not isinstance(weights, Iterable):
        weights = [weights]
    numbers = tuple(check_number(key, weight) for weight in weights)
    if not numbers:
        raise ConfigError(f"{key}: found none; accepted are one or more numbers.")
    if abs(math.fsum(numbers)) < 1e-9:
        raise ConfigError(f"{key}: found {list(numbers)}, which sum to nothing; accepted are numbers with another sum.")
    return numbers


def _checked_prompts(given: Prompt | Sequence[Prompt]) -> list[str | list[str]]:
    prompts: list[str | list[str]] = []
    for prompt in [given] if isinstance(given, str) or not isinstance(given, Iterable) else given:
        texts = [prompt] if isinstance(prompt, str) or not isinstance(prompt, Iterable) else list(prompt)
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ConfigError(f"guidance.prompts: found {prompt!r}; accepted are sentences that are not empty.")
        prompts.append(prompt if isinstance(prompt, str) else texts)
    if not prompts:
        raise ConfigError("guidance.prompts: found none; accepted are one or more sentences.")
    return prompts
