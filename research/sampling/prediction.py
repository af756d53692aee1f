"""What a model predicts, and how the four kinds are turned into one another.

With latents ``x = a * x0 + b * epsilon`` (``a`` the stage's signal, ``b`` its noise, ``n = sqrt(a^2 + b^2)``):

* ``epsilon``: the noise (DDPM, arXiv:2006.11239, eq. 11)
* ``x0``: the clean latents, diffusers' ``sample``
* ``v``: ``(a * epsilon - b * x0) / n`` (Progressive distillation, arXiv:2202.00512, section 4)
* ``flow``: ``epsilon - x0``, the velocity of rectified flow (arXiv:2209.03003, eq. 1, from data to noise)

Half precision is converted in fp32 and rounded at the end: clean estimates at high noise are small differences of large numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from research.sampling.timeline import Stage

Kind = Literal["epsilon", "x0", "v", "flow"]
KINDS: tuple[Kind, ...] = ("epsilon", "x0", "v", "flow")


@dataclass(slots=True, eq=False)
class Prediction:
    """A model output, shape like the latents [N, C, h, w], and which of the four kinds it is."""

    value: Tensor
    kind: Kind


_HALF = (torch.float16, torch.bfloat16)
_Conversion = Callable[[Prediction, Tensor, Stage], Tensor]


def _in_full_precision(method: _Conversion) -> _Conversion:
    """A conversion whose sums are made in fp32 or wider; what it returns has the dtype of the prediction."""

    @functools.wraps(method)
    def call(p: Prediction, x: Tensor, stage: Stage) -> Tensor:
        if p.value.dtype not in _HALF and x.dtype not in _HALF:
            return method(p, x, stage)
        value, x = (t.float() if t.dtype in _HALF else t for t in (p.value, x))
        return method(Prediction(value, p.kind), x, stage).to(p.value.dtype)

    return call


@_in_full_precision
def to_x0(p: Prediction, x: Tensor, stage: Stage) -> Tensor:
    """The clean latents that ``p`` implies at latents ``x`` (in the scaling of ``stage``), shape of ``x``."""
    a, b = stage.signal, stage.noise
    if p.kind == "x0":
        return p.value
    if p.kind == "epsilon":
        return (x - b * p.value) / a
    if p.kind == "v":
        n = math.hypot(a, b)
        return (a / n**2) * x - (b / n) * p.value
    return (x - b * p.value) / (a + b)


@_in_full_precision
def to_epsilon(p: Prediction, x: Tensor, stage: Stage) -> Tensor:
    """The noise that ``p`` implies at latents ``x``, shape of ``x``. From x0 it needs a noise level above 0."""
    a, b = stage.signal, stage.noise
    if p.kind == "epsilon":
        return p.value
    if p.kind == "x0":
        return (x - a * p.value) / b
    if p.kind == "v":
        n = math.hypot(a, b)
        return (b / n**2) * x + (a / n) * p.value
    return (x + a * p.value) / (a + b)


@_in_full_precision
def to_v(p: Prediction, x: Tensor, stage: Stage) -> Tensor:
    """The v-prediction that ``p`` implies at latents ``x``, shape of ``x``."""
    if p.kind == "v":
        return p.value
    a, b = stage.signal, stage.noise
    return (a * to_epsilon(p, x, stage) - b * to_x0(p, x, stage)) / math.hypot(a, b)


@_in_full_precision
def to_flow(p: Prediction, x: Tensor, stage: Stage) -> Tensor:
    """The velocity ``epsilon - x0`` that ``p`` implies at latents ``x``, shape of ``x``."""
    return p.value if p.kind == "flow" else to_epsilon(p, x, stage) - to_x0(p, x, stage)


def of_pair(x0: Tensor, epsilon: Tensor, kind: Kind, stage: Stage) -> Prediction:
    """The prediction of a kind that implies ``x0`` and ``epsilon`` at the latents ``a * x0 + b * epsilon``; at every level."""
    a, b = stage.signal, stage.noise
    if kind == "v":
        return Prediction((a * epsilon - b * x0) / math.hypot(a, b), kind)
    return Prediction({"epsilon": epsilon, "x0": x0, "flow": epsilon - x0}[kind], kind)


_CONVERSIONS = {"x0": to_x0, "epsilon": to_epsilon, "v": to_v, "flow": to_flow}


def convert(p: Prediction, kind: Kind, x: Tensor, stage: Stage) -> Prediction:
    """``p`` as another kind, exact up to rounding; the same object if it is that kind already."""
    return p if p.kind == kind else Prediction(_CONVERSIONS[kind](p, x, stage), kind)
