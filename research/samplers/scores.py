"""What a search looks for: a number an image, higher is better, of latents, of decoded pixels or of pictures."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from research.arguments import Recorded
from research.directions import direction
from research.errors import ConfigError, SamplingError
from research.metrics.base import AdditiveMetric, JobMetric, Metric, as_metric, listed_in
from research.metrics.set_metric import SetMetric
from research.sampling import Batch, ModelFacts, Task

SEES = ("images", "pixels", "latents")
KEY = "sampler.score"


class Score(Recorded):
    """A number an image, higher is better. One of one's own has `values`, and says what it is given.

    Attributes:
        name: how messages and records call it.
        sees: "latents" [N, C, h, w]; "pixels" [N, 3, H, W] in about [-1, 1]; or "images", PIL images.
        differentiable: whether gradients go through it; never those of "images".
    """

    name = "score"
    sees = "images"
    differentiable = False

    def check(self, model: ModelFacts, task: Task) -> None:
        """Raise a ConfigError for a model or task whose images it cannot score, before anything is computed."""

    def start(self, run: Batch) -> None:
        """Once a batch, before it is asked of its images."""

    def values(self, seen: Any, prompts: Sequence[str], device: torch.device) -> Tensor:
        """[N] of what it sees; ``prompts`` has one an image, empty where there are none."""
        raise NotImplementedError


class MetricScore(Score):
    """A metric with a value an image, by its own direction: less is better of a distance.

    Args:
        metric: a `research.metrics.Metric` or an object like one.

    Raises:
        ConfigError: a metric of a set of images (FID), or one that asks for the job.
    """

    def __init__(self, metric: Any):
        self.metric: Metric = as_metric(metric, type(metric).__name__)
        self.name = self.metric.name
        if isinstance(self.metric, AdditiveMetric | SetMetric):
            raise ConfigError(
                f"{KEY}: {self.name} is a number of a set of images; accepted are metrics with a value an image, such as "
                "clip_score."
            )
        if isinstance(self.metric, JobMetric):
            raise ConfigError(
                f"{KEY}: {self.name} asks for the job besides its images; accepted are metrics of images and prompts."
            )

    def check(self, model: ModelFacts, task: Task) -> None:
        self.metric.check(n_images=1)
        prompts = [task.prompts] if isinstance(task.prompts, str) else task.prompts or []
        if self.metric.needs_prompts and not any(prompts):
            raise self._without_prompts()

    def _without_prompts(self) -> ConfigError:
        return ConfigError(
            f"{KEY}: {self.name} gives no value an image without prompts, and the task has none; accepted is a score of "
            "pictures alone, or a task with a prompt."
        )

    def values(self, seen: Any, prompts: Sequence[str], device: torch.device) -> Tensor:
        found = self.metric.compute(seen, prompts, device=device)
        listed = listed_in(self.name, found.info).get(self.name)
        if not isinstance(listed, list) or len(listed) != len(seen):
            if not any(prompts):
                raise self._without_prompts()
            raise ConfigError(
                f"{KEY}: {self.name} gives no value an image (per_image in its info); accepted are metrics that do."
            )
        sign = direction(self.name, found.info)
        if not sign:
            raise ConfigError(
                f"{KEY}: whether more or less of {self.name} is better is not known; accepted is a metric whose info says "
                "better: higher or lower."
            )
        return sign * torch.tensor([math.nan if value is None else float(value) for value in listed]).double()


class FunctionScore(Score):
    """A function of pixels or latents as a score: a loss of `research.guidance.losses`, of which less is better, or a function of
    one's own, of which more is.

    Args:
        function: called with what it sees, and the prompts if it takes a second argument; returns [N]. Its attribute ``sees``
            says "latents", "pixels" or "images" (pixels by default), and ``better`` says "lower" of a loss.

    Raises:
        ConfigError: another value of ``sees`` or ``better``.
    """

    differentiable = True

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.name = str(getattr(function, "name", None) or getattr(function, "__name__", type(function).__name__))
        self.sees = getattr(function, "sees", "pixels")
        of_losses = type(function).__module__.startswith("research.guidance.losses")
        better = getattr(function, "better", "lower" if of_losses else "higher")
        if self.sees not in SEES or better not in ("higher", "lower"):
            raise ConfigError(
                f"{KEY}: {self.name} says sees={self.sees!r}, better={better!r}; accepted are {', '.join(SEES)}, and higher "
                "or lower."
            )
        self.differentiable = self.sees != "images"
        self._sign = -1.0 if better == "lower" else 1.0
        self._told = _takes_prompts(function)

    def check(self, model: ModelFacts, task: Task) -> None:
        if hasattr(self.function, "check"):
            self.function.check(model, task)

    def start(self, run: Batch) -> None:
        if hasattr(self.function, "start"):
            self.function.start(run)

    def values(self, seen: Any, prompts: Sequence[str], device: torch.device) -> Tensor:
        found = self.function(seen, prompts) if self._told else self.function(seen)
        if not isinstance(found, Tensor):
            found = torch.tensor(found)
        return self._sign * found


def _takes_prompts(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return len([p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]) > 1


def as_score(given: Any) -> Score:
    """A score of what a search was given: a `Score`, a metric, a loss, or a function of pixels.

    Raises:
        ConfigError: it is none of them.
    """
    if isinstance(given, Score):
        return given
    if isinstance(given, type):
        raise ConfigError(f"{KEY}: found the class {given.__name__}; accepted is an object: {given.__name__}(...).")
    if callable(getattr(given, "compute", None)):
        return MetricScore(given)
    if callable(given):
        return FunctionScore(given)
    raise ConfigError(f"{KEY}: found {given!r:.80}; accepted is a metric with a value an image, a loss, or a function.")


def checked_values(score: Score, found: Any, count: int, where: str) -> Tensor:
    """Scores [N] as they are used: float64 on the CPU, or with their graph.

    Raises:
        SamplingError: another shape, or a value that is not finite.
    """
    if not isinstance(found, Tensor) or found.shape != (count,):
        told = f"the shape {list(found.shape)}" if isinstance(found, Tensor) else repr(found)[:60]
        raise SamplingError(f"{KEY}: {score.name} gave {told} {where}; accepted is a number an image, [{count}].")
    values = found.detach().double().cpu()
    if not bool(torch.isfinite(values).all()):
        shown = ", ".join(f"{value:.4g}" for value in values.tolist()[:8])
        raise SamplingError(f"{KEY}: {score.name} is {shown} {where}; accepted are finite numbers.")
    return found if found.requires_grad else values
