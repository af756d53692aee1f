"""Sliding mode control of classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from research.checks import check_number
from research.guidance.pairs import Pair
from research.sampling.interfaces import Batch, StepState


class SMCCFG(Pair):
    """SMC-CFG (arXiv:2603.03281, section 4): ``u + scale * e'``, ``e' = e - gain * sign(s)`` with the difference ``e = c - u``.

    ``s = (e - e'_before) + slope * e'_before`` is the sliding variable, of the corrected difference of the step before (at
    first ``e`` itself): the correction drives differences towards ``s = 0``, on which they shrink by ``1 - slope`` a step. It
    counts the user's steps, and begins anew at a jump back. Where ``s`` is near 0, the sign makes ``2 * scale * gain`` of a
    rounding: images of batches of other sizes agree less closely than those of other methods.

    Args:
        scale: 1 is no guidance and costs one evaluation a stage, other values two.
        slope: lambda of the authors' code, above 0.
        gain: K of the authors' code, in units of the predictions, from 0, which is CFG. Their default of 0.3 is for velocities of
            large flow models.
        space: where: "prediction" for what the model predicts, as in the authors' code; or "x0", "epsilon", "v", "flow".

    Raises:
        ConfigError: a number is out of range, or the space is unknown.
    """

    keeps = ("_past",)

    def __init__(self, scale: float = 7.5, slope: float = 0.05, gain: float = 0.3, space: str = "prediction"):
        super().__init__(scale, space)
        self.slope = check_number("guidance.slope", slope, above=0)
        self.gain = check_number("guidance.gain", gain, least=0)
        self._past: Tensor | None = None

    def vectorises(self) -> bool:
        return self.scale != 1

    def start(self, run: Batch) -> None:
        self._past = None

    def forget(self) -> None:
        self._past = None

    def guided(self, state: StepState, u: Tensor, c: Tensor) -> Tensor:
        difference = c - u
        past = difference if self._past is None else self._past
        sliding = (difference - past) + self.slope * past
        corrected = difference - self.gain * torch.sign(sliding)
        if state.stage.last_of_step:
            self._past = corrected.detach()
        return u + state.scale_of(self) * corrected
