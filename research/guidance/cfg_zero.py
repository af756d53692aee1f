"""CFG-Zero*: an unconditional prediction that is scaled to fit, and a start that stands still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from research.checks import check_whole_number
from research.guidance.pairs import Pair, share
from research.sampling.interfaces import Batch, Branch, Guided, StepState
from research.sampling.prediction import Prediction


class CFGZero(Pair):
    """CFG-Zero* (Fan et al., arXiv:2503.18886, section 4): ``a * u + scale * (c - a * u)`` with ``a = <c, u> / |u|^2``.

    ``a`` is the optimized scale, one an image: the part of the conditional prediction that the unconditional one explains.
    With zero-init, a part of the method, the first steps stand still: the velocity is zero. For models that predict flow that is
    ``flow = 0``, as in the published code and in diffusers' ``ClassifierFreeZeroStarGuidance``. On purpose different: for the
    others it is ``v = 0``, the same on their path, where diffusers sets epsilon to 0 (a statement about the picture, and no
    rest). What stands around it (`Rescale`, `Threshold`, ``PAG(base=...)``, ``Autoguidance(base=...)``, losses) leaves such a
    step as it is.

    Args:
        scale: 1 is no guidance, without zero-init, as in pipelines that then do without guidance; it costs one evaluation a
            stage, other values two.
        zero_steps: how many of the user's first steps stand still, each of their stages for one evaluation; counted in the full
            schedule, so that a start from a picture leaves them out. One is the published default (the paper's text: 4 % of
            the steps); 0 is the optimized scale alone.
        space: where ``a`` is taken: "prediction" is what the model predicts; "flow", "x0", "epsilon" and "v" give the same
            result whatever it predicts (the paper's models predict flow).

    Raises:
        ConfigError: the scale is not a finite number, the steps are not a whole number from 0, or the space is unknown.
    """

    def __init__(self, scale: float = 7.5, zero_steps: int = 1, space: str = "prediction"):
        super().__init__(scale, space)
        self.zero_steps = check_whole_number("guidance.zero_steps", zero_steps)
        # whether the run has a scale with guidance at all: a schedule may begin at one without
        self._guides: bool | None = None

    def vectorises(self) -> bool:
        return self.scale != 1

    def start(self, run: Batch) -> None:
        scale = run.scale_of(self)
        self._guides = isinstance(scale, Tensor) or scale != 1

    def stands_still(self, state: StepState) -> bool:
        guides = self.scale != 1 if self._guides is None else self._guides
        return guides and state.stage.step < self.zero_steps

    def branches(self, state: StepState) -> Sequence[Branch]:
        if self.stands_still(state):  # one prediction is asked for, since it says what kind it is
            return [Branch("cond", state.conditions["cond"])]
        return super().branches(state)

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        if self.stands_still(state):
            c = predictions["cond"]
            return Guided(Prediction(torch.zeros_like(c.value), "flow" if c.kind == "flow" else "v"))
        return super().combine(state, predictions)

    def guided(self, state: StepState, u: Tensor, c: Tensor) -> Tensor:
        fitted = share(c, u).to(u.dtype) * u
        return fitted + state.scale_of(self) * (c - fitted)
