"""The space in which a method works: x0, epsilon, v, flow, or whatever the model predicts.

Linear methods give the same result in all of them. The others take norms, angles or quantiles, which mean something in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from research.checks import check_choice
from research.sampling.interfaces import StepState
from research.sampling.prediction import KINDS, Kind, Prediction, convert
from research.sampling.timeline import Stage

Space = Kind | Literal["prediction"]
SPACES: tuple[Space, ...] = (*KINDS, "prediction")


def checked_space(space: str, key: str = "guidance.space") -> Space:
    """``space`` if it is one of x0, epsilon, v, flow and prediction.

    Raises:
        ConfigError: it is not.
    """
    return check_choice(key, space, SPACES)


def needs_levels(space: Space) -> frozenset[str]:
    """What a method requires of the scheduler to turn predictions into those of a space."""
    return frozenset() if space == "prediction" else frozenset({"noise-levels"})


def in_space(state: StepState, predictions: Mapping[str, Prediction], space: Space) -> tuple[dict[str, Tensor], Kind]:
    """The values of predictions in a space, shape of the latents [N, C, h, w], and the kind they are then of.

    That is the model's own kind at the two ends where the space does not hold what the model says: a noise prediction at latents
    of noise alone (zero terminal SNR, the first stage of flow models), where every epsilon is the latents themselves and tells
    nothing of x0, and x0 at clean latents.
    """
    own = next(iter(predictions.values())).kind
    kind: Kind = own if space == "prediction" or _loses(space, state.stage) or _loses(own, state.stage) else space
    return {name: convert(p, kind, state.x_before, state.stage).value for name, p in predictions.items()}, kind


def _loses(kind: Space, stage: Stage) -> bool:
    """Whether predictions of a kind do not tell x0 and epsilon both at the level of a stage."""
    return (kind == "epsilon" and stage.signal == 0) or (kind == "x0" and stage.noise == 0)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Numbers [N], one an image, in a shape that multiplies ``like`` [N, ...], and of its dtype."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
