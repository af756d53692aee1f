"""Classifier guidance."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from research.checks import check_choice
from research.errors import ConfigError, SamplingError
from research.guidance.gradients import GradientGuidance, Started, at, gradient_of
from research.sampling.interfaces import Batch, Guidance, StepState
from research.sampling.prediction import Prediction

SEES = ("x", "x0", "pixels")
TIMES = ("t", "log_snr", "sigma")


class ClassifierGuidance(GradientGuidance):
    """Leads sampling by the gradient of a classifier's ``log p(target | x)`` (arXiv:2105.05233, section 4.2, eq. 14).

    The noise prediction becomes ``epsilon - scale * b * grad_x log p(target | x)`` for latents ``x = a x0 + b epsilon``.

    Args:
        scale: the power of ``p(target | x)`` by which the density is multiplied; 0 is no guidance.
        classifier: any callable that gives logits or log-probabilities [N, K]. If it has a method ``start(run)``, that is called
            before each run. It gets fp32 or wider.
        target: the class from 0 to K - 1: one for all images, or a list with one an image; None for the class that the
            task is conditioned on.
        sees: what the classifier is given. "x": the noisy latents as the network sees them and the noise level,
            ``classifier(x, time)``, for a classifier trained on noisy pictures; the model itself is not differentiated.
            "x0": the clean estimate in latents [N, C, h, w]. "pixels": the same decoded, [N, 3, H, W] in about [-1, 1].
        time: what is told with "x", as a tensor [N]: "t", the timestep as the network is told; "log_snr" or "sigma".
        mode, normalize, base: see `LossGuidance`; the mode is of account for "x0" and "pixels", and normalize=residual of none.

    Raises:
        ConfigError: an argument is none of the accepted, or there is no target.
        SamplingError: the classifier returns something else, NaN or infinity, or has no gradient.
    """

    key = "guidance.classifier"

    def __init__(
        self,
        scale: float,
        classifier: Callable[..., Tensor],
        target: int | Sequence[int] | None = None,
        sees: str = "x0",
        time: str = "t",
        mode: str = "model",
        normalize: str | None = None,
        base: Guidance | None = None,
    ):
        super().__init__(scale, mode, normalize, base)
        check_choice("guidance.normalize", normalize, (None, "gradient"))
        self.sees, self.time = (check_choice("guidance.sees", sees, SEES), check_choice("guidance.time", time, TIMES))
        if not callable(classifier):
            raise ConfigError(
                f"guidance.classifier: found {classifier!r}; accepted is a function or a callable object."
            )
        self.classifier = classifier
        self.target = None if target is None else _classes(target)

    def differentiates(self, state: StepState) -> bool:
        return self.guidance.differentiates(state) if self.sees == "x" else super().differentiates(state)

    def active(self, state: StepState) -> bool:
        return super().active(state) and (self.sees != "x" or state.stage.signal > 0)

    def start(self, run: Batch) -> None:
        super().start(run)
        if isinstance(self.classifier, Started):
            self.classifier.start(run)
        targets = self._targets_of(run)
        self._known = targets.tolist()  # read here, once, and not in the loop
        self._targets = targets.to(run.model.device)

    def _targets_of(self, run: Batch) -> Tensor:
        given = self.target
        if given is None:
            labels = run.conditions["cond"].class_labels
            if labels is None:
                raise ConfigError(
                    "guidance.target: found null, and the task names no class; accepted is a class from 0, or one an image."
                )
            return labels
        if isinstance(given, int):
            return torch.full((len(run.rows),), given)
        if len(given) != run.n_images:
            raise ConfigError(
                f"guidance.target: found {len(given)} classes for {run.n_images} images; accepted is one for all, or one an "
                "image."
            )
        return torch.tensor([given[row] for row in run.rows])

    def energy_gradient(self, state: StepState, prediction: Prediction) -> tuple[Tensor, Tensor]:
        if self.sees != "x":
            return self._of_estimate(
                state,
                prediction,
                lambda seen: self._surprise(self._called(state, seen), state),
                pixels=self.sees == "pixels",
                through=self.mode == "model",
            )

        def surprise(x: Tensor) -> Tensor:
            seen = state.run.solver.scale_input(x, state.stage)
            return self._surprise(self._called(state, seen, self._told(state, len(x))), state)

        values, gradient = gradient_of(surprise, state.x_before, None, state, self.key)
        return values, gradient * (state.stage.noise**2 / state.stage.signal)

    def _told(self, state: StepState, count: int) -> Tensor:
        stage = state.stage
        told = stage.t if self.time == "t" else torch.tensor(float(getattr(stage, self.time)))
        return told.to(state.x.device).reshape(-1).expand(count)

    def _called(self, state: StepState, *arguments: Tensor) -> Any:
        try:
            return self.classifier(*arguments)
        except Exception as error:
            name = getattr(self.classifier, "__name__", type(self.classifier).__name__)
            error.add_note(f"raised in guidance.classifier {name} {at(state)}")
            raise

    def _surprise(self, logits: Any, state: StepState) -> Tensor:
        targets = self._targets
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(targets):
            found = f"the shape {list(logits.shape)}" if isinstance(logits, Tensor) else repr(logits)[:80]
            raise SamplingError(
                f"{self.key}: returned {found} {at(state)}; accepted are logits [{len(targets)}, classes]."
            )
        if not all(0 <= target < logits.shape[1] for target in self._known):
            raise SamplingError(
                f"guidance.target: found {self._known}; this classifier has the classes 0 to {logits.shape[1] - 1}."
            )
        return -logits.log_softmax(1).gather(1, targets[:, None])[:, 0]


def _classes(given: Any) -> int | list[int]:
    several = isinstance(given, list | tuple) or getattr(given, "ndim", 0) == 1
    parts = list(given) if several else [given]
    try:
        numbers = [operator.index(part) for part in parts if not isinstance(part, bool)]
    except TypeError:
        numbers = []
    if not parts or len(numbers) != len(parts) or min(numbers) < 0:
        raise ConfigError(f"guidance.target: found {given!r}; accepted is a class from 0, or a list with one an image.")
    return numbers if several else numbers[0]
