"""What methods share that combine a conditional prediction with an unconditional one, and the geometry they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from research.checks import check_number
from research.guidance.spaces import Space, checked_space, in_space, needs_levels
from research.sampling.interfaces import Branch, Guidance, Guided, Scale, StepState
from research.sampling.prediction import Prediction, convert

_HALF = (torch.float16, torch.bfloat16)


class Pair(Guidance):
    """A method that makes one tensor of the conditional and the unconditional prediction of a stage.

    At scale 1 it is the conditional prediction as it is, for one evaluation; at other scales it costs two. Subclasses write
    `guided`; a method that is linear leaves ``space`` at "prediction", which converts nothing.

    Raises:
        ConfigError: the scale is not a finite number, or the space is unknown.
    """

    space: Space = "prediction"

    def __init__(self, scale: float, space: str = "prediction"):
        self.scale = check_number("guidance.scale", scale)
        self.space = checked_space(space)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset() if self.scale == 1 else frozenset({"uncond"}) | needs_levels(self.space)

    def branches(self, state: StepState) -> Sequence[Branch]:
        names = ("cond",) if state.scale_of(self) == 1 else ("uncond", "cond")
        return [Branch(name, state.conditions[name]) for name in names]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        # a scale an image is looked at by `branches`
        scale = state.scale_of(self)
        if "uncond" not in predictions or (not isinstance(scale, Tensor) and scale == 1):
            return Guided(predictions["cond"])
        return guided_in(state, predictions, self.space, lambda v: self.guided(state, v["uncond"], v["cond"]))

    def guided(self, state: StepState, u: Tensor, c: Tensor) -> Tensor:
        """The guided tensor of the unconditional and the conditional one, all [N, C, h, w] in the method's space."""
        raise NotImplementedError


def extrapolated(u: Tensor, c: Tensor, scale: Scale, *, parity: bool = False) -> Tensor:
    """``u + scale * (c - u)``, to rounding in one operation; with ``parity`` in the three of the pipelines, bit by bit."""
    return u + scale * (c - u) if parity else torch.lerp(u, c, scale)


def names_at(scale: Scale) -> tuple[str, ...]:
    """Which predictions a method needs at a scale that is the conditional one at none."""
    return ("uncond",) if scale == 0 else ("uncond", "cond")


def guided_in(
    state: StepState, predictions: Mapping[str, Prediction], space: Space, method: Callable[[dict[str, Tensor]], Tensor]
) -> Guided:
    """What ``method`` makes of the predictions in a space, a dict of tensors by branch name, as the loop takes it.

    Half precision is computed in fp32, and rounded once it is again of the kind that the model predicts: clean estimates
    at high noise are small differences of large numbers.
    """
    own = next(iter(predictions.values()))
    half = own.value.dtype in _HALF
    if half:
        predictions = {name: Prediction(p.value.float(), p.kind) for name, p in predictions.items()}
    values, kind = in_space(state, predictions, space)
    result = Prediction(method(values), kind)
    if half:
        result = convert(result, own.kind, state.x_before.float(), state.stage)
        result = Prediction(result.value.to(own.value.dtype), own.kind)
    return Guided(result)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products image by image, [N, 1, ...] in fp64 (fp32 where a device has none), of two tensors [N, ...]."""
    wide = torch.float32 if a.device.type == "mps" else torch.float64
    return (a.to(wide) * b.to(wide)).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def share(a: Tensor, of: Tensor) -> Tensor:
    """How often ``of`` is in ``a``, image by image: ``<a, of> / |of|^2``, [N, 1, ...]; 0 where ``of`` is 0."""
    square = inner(of, of)
    return torch.where(square == 0, square, inner(a, of) / square)


def parallel(a: Tensor, to: Tensor) -> Tensor:
    """The part of ``a`` [N, ...] that is parallel to ``to``, image by image; what is left is orthogonal to it."""
    return share(a, to).to(a.dtype) * to
