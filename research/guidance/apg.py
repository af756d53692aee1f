"""Adaptive projected guidance."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from research.checks import check_number
from research.guidance.pairs import Pair, extrapolated, guided_in, inner, parallel
from research.sampling.interfaces import Batch, Guided, StepState
from research.sampling.prediction import Prediction


class APG(Pair):
    """Adaptive projected guidance (Sadat et al., arXiv:2410.02416, algorithm 1): ``c + (scale - 1) * update``.

    The update is the difference ``c - u``, plus ``momentum`` times that of the step before (section 5.3), cut to the length
    ``norm_threshold`` (section 5.2), with its part parallel to ``c`` weighted by ``eta`` (section 5.1). With ``eta=1,
    momentum=0, norm_threshold=0`` it is CFG. Lengths and angles are those of one image's clean estimates.

    Args:
        scale: 1 is no guidance and costs one evaluation a stage; the paper has values from 1.
        eta: weight of the part parallel to the conditional prediction, the one that saturates: 1 leaves it as it is, 0
            drops it.
        momentum: weight of the updates before, in (-1, 1); negative leads away from them. It counts the user's steps:
            further evaluations of one step (Heun, PNDM) see the same past. At a jump back to noisier latents (`Restart`,
            `RePaint`) and at the turn of an inversion it begins anew.
        norm_threshold: greatest length of an image's update, in units of the space; 0 sets no limit. It grows with the
            square root of the latents' size.
        space: where it works: "x0" as in the paper, "epsilon", "v", "flow", or "prediction" for whatever the model
            predicts.

    Raises:
        ConfigError: a number is not finite or outside its range, or the space is unknown.
    """

    keeps = ("_past",)

    def __init__(
        self,
        scale: float = 7.5,
        eta: float = 0.0,
        momentum: float = -0.5,
        norm_threshold: float = 10.0,
        space: str = "x0",
    ):
        super().__init__(scale, space)
        self.eta = check_number("guidance.eta", eta)
        self.momentum = check_number("guidance.momentum", momentum, above=-1, below=1)
        self.norm_threshold = check_number("guidance.norm_threshold", norm_threshold, least=0)
        self._past: Tensor | None = None

    def vectorises(self) -> bool:
        return self.scale != 1

    def start(self, run: Batch) -> None:
        self._past = None

    def forget(self) -> None:
        self._past = None

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        plain = self.eta == 1 and self.momentum == 0 and self.norm_threshold == 0
        if plain and "uncond" in predictions:  # linear: no conversion, no rounding of its own
            return guided_in(
                state,
                predictions,
                "prediction",
                lambda v: extrapolated(v["uncond"], v["cond"], state.scale_of(self), parity=state.run.parity),
            )
        return super().combine(state, predictions)

    def guided(self, state: StepState, u: Tensor, c: Tensor) -> Tensor:
        update = c - u
        if self._past is not None:
            update = update + self.momentum * self._past
        if self.momentum != 0 and state.stage.last_of_step:
            self._past = update.detach()
        if self.norm_threshold > 0:
            length = inner(update, update).sqrt()
            # never longer, also where the length is 0
            update = update * (self.norm_threshold / length.clamp_min(self.norm_threshold)).to(update.dtype)
        if self.eta != 1:
            update = update - (1 - self.eta) * parallel(update, c)
        scale = state.scale_of(self)
        if isinstance(scale, Tensor):
            return torch.addcmul(c, scale - 1, update)
        return torch.add(c, update, alpha=scale - 1)
