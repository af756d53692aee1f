"""What loss guidance and classifier guidance share: gradients of a number an image, and what they do to a prediction.

Guidance by an energy ``L`` samples from the model's density times ``exp(-scale * L)``, so that the score of the latents
``x = a * x0 + b * epsilon`` gains ``-scale * grad_x L`` and, as the score is ``-epsilon / b``, the noise prediction becomes

    epsilon + scale * b * grad_x L

(classifier guidance, arXiv:2105.05233, eq. 14, with ``L = -log p(y | x)``; universal guidance, arXiv:2302.07121, eq. 6; there
``a**2 + b**2 = 1``). The same with all terms of the clean latents: ``x0 - h`` with ``h = scale * b**2 / a * grad_x L``. In
this form it is the same number in any scaling of the latents, and is turned into whatever the model predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from research.checks import check_choice, check_number
from research.errors import SamplingError
from research.guidance.spaces import per_image
from research.guidance.wrapping import Wrapping
from research.sampling.interfaces import Batch, Guidance, Guided, StepState
from research.sampling.prediction import Prediction, to_x0
from research.sampling.timeline import Stage

MODES = ("model", "x0")
NORMALISATIONS = (None, "residual", "gradient")


@runtime_checkable
class Started(Protocol):
    """A loss or classifier that wants to know the batch before its first stage."""

    def start(self, run: Batch) -> None: ...


class GradientGuidance(Wrapping):
    """Adds the gradient of an energy to the result of another guidance. Subclasses say what the energy is.

    Args:
        scale: of the energy; 0 is no guidance.
        mode, normalize: see `LossGuidance`.
        base: the guidance whose result is led; none by default.

    Raises:
        ConfigError: the scale is no finite number, or another argument is not among the accepted.
    """

    neutral = 0.0
    own_requires = frozenset({"noise-levels"})
    key = "guidance.loss"  # how messages call what is differentiated

    def __init__(self, scale: float, mode: str, normalize: str | None, base: Guidance | None):
        super().__init__(base)
        self.scale = check_number("guidance.scale", scale)
        self.mode = check_choice("guidance.mode", mode, MODES)
        self.normalize = check_choice("guidance.normalize", normalize, NORMALISATIONS)

    def energy_gradient(self, state: StepState, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """The energy [N] and ``h / scale``, shape of the latents, both detached and in full precision."""
        raise NotImplementedError

    def start(self, run: Batch) -> None:
        super().start(run)
        if run.scale_of(self) != self.neutral:
            run.cleanup.callback(_without_weight_gradients(run))

    def active(self, state: StepState) -> bool:
        """Whether anything is added. Latents that are noise alone tell nothing of x0, and no gradient passes through them."""
        levels = state.stage.noise > 0 and (state.stage.signal > 0 or self.mode == "x0")
        scale = state.scale_of(self)
        if self.stands_still(state):
            return False
        return levels and (isinstance(scale, Tensor) or scale != self.neutral)

    def differentiates(self, state: StepState) -> bool:
        return (self.mode == "model" and self.active(state)) or super().differentiates(state)

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        guided = self.guidance.combine(state, predictions)
        if not self.active(state):
            return guided
        values, shift = self.energy_gradient(state, guided.prediction)
        shift = state.scale_of(self) * self._normalised(state, values, shift)
        prediction = moved(guided.prediction, shift, state.stage)
        # the energy belongs to the density and not to a prompt: the noise to step along is that of the same density
        renoise = guided.renoise and moved(guided.renoise, shift, state.stage)
        return replace(guided, prediction=prediction, renoise=renoise)

    def _normalised(self, state: StepState, values: Tensor, shift: Tensor) -> Tensor:
        if self.normalize == "residual":
            return shift / self._norms(state, values, shift, "normalize=residual")
        if self.normalize == "gradient":
            rms = shift.square().flatten(1).mean(1).sqrt()
            spread = state.stage.noise / math.hypot(state.stage.signal, state.stage.noise)
            return shift * per_image(spread / torch.where(rms > 0, rms, 1.0), shift)
        return shift

    def _norms(self, state: StepState, values: Tensor, like: Tensor, what: str) -> Tensor:
        """The norms of which the energies [N] are the squares, to divide ``like`` by; 1 for 0, where gradients are 0."""
        where = at(state)

        def check(values: Tensor) -> None:
            if (values < 0).any():
                found = float(values.min())
                raise SamplingError(
                    f"{self.key}: found {found:g} {where}; accepted with {what} are squared norms, from 0."
                )

        state.run.look(values, check)
        norm = values.sqrt()
        return per_image(torch.where(norm > 0, norm, 1.0), like)

    def _of_estimate(
        self,
        state: StepState,
        prediction: Prediction,
        energy: Callable[[Tensor], Tensor],
        *,
        pixels: bool,
        through: bool,
    ) -> tuple[Tensor, Tensor]:
        """The energy of the clean estimate, in latents or decoded, and ``h / scale``; see `energy_gradient`."""
        a, b = state.stage.signal, state.stage.noise
        values, gradient = self._plain_gradient(state, prediction, energy, pixels=pixels, through=through)
        # the Jacobian of unit Gaussian data's best denoiser is a / (a^2 + b^2)
        return values, gradient * (b**2 / a if through else b**2 / (a**2 + b**2))

    def _plain_gradient(
        self,
        state: StepState,
        prediction: Prediction,
        energy: Callable[[Tensor], Tensor],
        *,
        pixels: bool,
        through: bool,
    ) -> tuple[Tensor, Tensor]:
        """The energy [N] of the clean estimate and its gradient, with respect to the latents or, not ``through`` the model, to
        the clean estimate."""
        if through and not prediction.value.requires_grad:
            raise SamplingError(
                f"guidance: {type(self.guidance).__name__} inside {type(self).__name__} hands on a prediction without a "
                f"gradient {at(state)}; accepted is one that is not detached, or mode=x0."
            )
        with torch.enable_grad():
            if through:
                inputs = state.x_before
                seen = x0 = to_x0(prediction, inputs, state.stage)
            else:
                alone = Prediction(prediction.value.detach(), prediction.kind)
                seen = x0 = inputs = to_x0(alone, state.x_before.detach(), state.stage).requires_grad_()
            if pixels:
                seen = state.run.model.decode_pixels(x0)
                seen = seen.expand(-1, 3, -1, -1) if seen.shape[1] == 1 else seen
        return gradient_of(energy, seen, None if seen is inputs else inputs, state, self.key)


def gradient_of(
    energy: Callable[[Tensor], Tensor], seen: Tensor, inputs: Tensor | None, state: StepState, key: str
) -> tuple[Tensor, Tensor]:
    """An energy and its gradient, by the chain rule in two parts so that half precision neither over- nor underflows.

    Args:
        energy: gives a number an image of a tensor like ``seen``, which it gets in full precision.
        seen: [N, ...], with a graph back to ``inputs``.
        inputs: [N, C, h, w]; None if ``seen`` is what the gradient is taken with respect to.
        state, key: for messages.

    Returns:
        The energy [N] and the gradient in the shape of ``inputs``, detached, in fp32 or wider.

    Raises:
        SamplingError: something is not finite, or the energy has no gradient.
    """
    wide = seen.detach().float() if seen.dtype in (torch.float16, torch.bfloat16) else seen.detach()
    leaf = wide.requires_grad_()
    with torch.enable_grad():
        values = energy(leaf)
    if not values.requires_grad:
        raise SamplingError(
            f"{key}: returned a tensor without a gradient {at(state)}; accepted is one computed from what it is given, not "
            "detached and not under no_grad."
        )
    where = at(state)

    def check_values(values: Tensor) -> None:
        if not torch.isfinite(values).all():
            found = ", ".join(f"{value:.4g}" for value in values.tolist())
            raise SamplingError(f"{key}: found {found} {where}; accepted are finite numbers.")

    def check_gradient(finite: Tensor) -> None:
        if not bool(finite):
            raise SamplingError(f"{key}: its gradient is not finite (NaN or infinite) {where}.")

    state.run.look(values, check_values)
    (gradient,) = torch.autograd.grad(values, leaf, torch.ones_like(values), allow_unused=True)
    if gradient is None:
        raise SamplingError(f"{key}: its result does not depend on what it is given, {at(state)}.")
    if inputs is not None:
        # by linearity: a row of ones at most on the way through the networks, its size put back afterwards
        size = gradient.abs().flatten(1).amax(1)
        unit = gradient / per_image(torch.where(size > 0, size, 1.0), gradient)
        (back,) = torch.autograd.grad(seen, inputs, unit.to(seen.dtype), retain_graph=True)
        gradient = back.to(gradient.dtype) * per_image(size, gradient)
    state.run.look(torch.isfinite(gradient).all(), check_gradient)
    return values.detach(), gradient


def _without_weight_gradients(run: Batch) -> Callable[[], None]:
    """Spare what a graph keeps for gradients of weights; returns what puts them back as they were."""
    held = [weight for module in run.model.modules() for weight in module.parameters() if weight.requires_grad]

    def put(wanted: bool) -> None:
        for weight in held:
            weight.requires_grad_(wanted)

    put(False)
    return lambda: put(True)


def at(state: StepState) -> str:
    """Where in a run, for messages."""
    stage = state.stage
    return f"at step {stage.step + 1} of {stage.n_steps} (t = {stage.time:g})"


def moved(prediction: Prediction, shift: Tensor, stage: Stage) -> Prediction:
    """The prediction whose x0 is less by ``shift`` at the same latents."""
    a, b = stage.signal, stage.noise
    factor = {"x0": -1.0, "epsilon": a / b, "v": math.hypot(a, b) / b, "flow": a / b + 1.0}[prediction.kind]
    return Prediction(prediction.value + (factor * shift).to(prediction.value.dtype), prediction.kind)
