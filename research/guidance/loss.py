"""Guidance by any differentiable function of the clean estimate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from research.checks import check_choice
from research.errors import ConfigError, SamplingError
from research.guidance.gradients import GradientGuidance, Started, at
from research.sampling.interfaces import Batch, Guidance, StepState
from research.sampling.prediction import Prediction

SEES = ("latents", "pixels")


class LossGuidance(GradientGuidance):
    """Leads sampling to where a loss of the clean estimate is small: the density gains the factor ``exp(-scale * loss)``.

    The noise prediction becomes ``epsilon + scale * b * grad_x loss(x0(x))`` for latents ``x = a x0 + b epsilon``: the forward
    part of universal guidance (arXiv:2302.07121, eq. 6). As a term of the score it is the same for every scheduler and number of
    steps. `DPS` takes a squared residual's gradient in another way, as a step of its own after each of the scheduler's.

    Args:
        scale: of the loss; 0 is no guidance, below 0 leads away.
        loss: a function of latents [N, C, h, w] or pixels [N, 3, H, W] in about [-1, 1] that returns a number an image [N], or a
            scalar. It gets fp32 or wider. A scalar function is called with an image at a time, so that a mean does not make
            images depend on each other; one that treats images differently must return [N]. If it has a method
            ``start(run)``, that is called before each run.
        mode: "model": the gradient passes through the model; costs a backward pass a stage. "x0": only the gradient with
            respect to x0 is taken and the model's Jacobian is replaced with that of unit Gaussian data,
            ``a / (a**2 + b**2)``, so that x0 moves by ``scale * b**2 / (a**2 + b**2) * grad_x0 loss`` (as MPGD,
            arXiv:2311.16424, steps along the gradient of x0). Cheap; the model does not pull the gradient towards pictures.
        sees: "latents", or "pixels" for the decoded estimate.
        normalize: None; "residual" divides the gradient by the root of the loss, an image at a time, for a loss that is
            a squared norm: twice the gradient of the norm, the direction and size of DPS's step, here as a term of the score;
            "gradient" gives the shift of x0 the root mean square
            ``scale * b / sqrt(a**2 + b**2)``, whatever the loss's units.
        base: the guidance whose result is led, such as ``CFG(3)``; none by default.

    Raises:
        ConfigError: an argument is none of the accepted.
        SamplingError: the loss returns no tensor, another shape, NaN or infinity, or has no gradient.
    """

    def __init__(
        self,
        scale: float,
        loss: Callable[[Tensor], Tensor],
        mode: str = "model",
        sees: str = "latents",
        normalize: str | None = None,
        base: Guidance | None = None,
    ):
        super().__init__(scale, mode, normalize, base)
        self.sees = check_choice("guidance.sees", sees, SEES)
        if not callable(loss):
            raise ConfigError(f"guidance.loss: found {loss!r}; accepted is a function or a callable object.")
        self.loss = loss

    def start(self, run: Batch) -> None:
        super().start(run)
        self._alone: bool | None = None  # whether images are given to the loss one at a time
        if isinstance(self.loss, Started):
            self.loss.start(run)

    def energy_gradient(self, state: StepState, prediction: Prediction) -> tuple[Tensor, Tensor]:
        return self._of_estimate(
            state,
            prediction,
            lambda seen: self._losses(seen, state),
            pixels=self.sees == "pixels",
            through=self.mode == "model",
        )

    def _losses(self, seen: Tensor, state: StepState) -> Tensor:
        """A number an image [N], with a graph."""
        count = len(seen)
        if self._alone and count > 1:
            return self._one_by_one(seen, state)
        found = self._called(seen, state)
        if not isinstance(found, Tensor) or found.shape not in ((), (count,)) or found.is_complex():
            what = f"the shape {list(found.shape)}" if isinstance(found, Tensor) else repr(found)[:80]
            raise SamplingError(
                f"{self.key}: {_name(self.loss)} returned {what} {at(state)}; accepted is a number an image, [{count}], or a "
                "scalar."
            )
        if found.ndim == 1 or count == 1:
            return found.reshape(count)
        single = self._one_by_one(seen, state)
        self._alone = True
        total = single.detach().double().sum()
        where = at(state)

        def check(both: Tensor) -> None:
            whole, parts = both.tolist()
            if math.isfinite(parts) and not any(_close(whole, each) for each in (parts, parts / count)):
                raise SamplingError(
                    f"{self.key}: {_name(self.loss)} returned {whole:.6g} {where}, neither the sum nor the mean of its "
                    f"values for each image alone ({parts:.6g} in all); accepted from such a loss is a number an image, "
                    f"[{count}]."
                )

        state.run.look(torch.stack((found.detach().double(), total)), check)
        return single

    def _one_by_one(self, seen: Tensor, state: StepState) -> Tensor:
        return torch.stack([self._called(row[None], state).reshape(()) for row in seen])

    def _called(self, seen: Tensor, state: StepState) -> Tensor:
        try:
            return self.loss(seen)
        except Exception as error:
            error.add_note(f"raised in guidance.loss {_name(self.loss)} {at(state)}")
            raise


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-8 + 1e-3 * abs(b)


def _name(loss: Callable[..., Any]) -> str:
    return getattr(loss, "__name__", type(loss).__name__)
