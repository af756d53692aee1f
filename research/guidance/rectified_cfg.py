"""Rectified-CFG++."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from research.checks import check_number
from research.guidance.pairs import guided_in
from research.sampling.interfaces import Branch, Guidance, Guided, StepState
from research.sampling.prediction import Prediction, to_epsilon, to_x0


class RectifiedCFGPlusPlus(Guidance):
    """Rectified-CFG++ (Saini et al., arXiv:2510.07631, algorithm 1): ``c + scale * (c' - u')``, for models that predict flow.

    ``c'`` and ``u'`` are the predictions at the latents to which the conditional velocity ``c`` leads, at the next stage's
    level: the step leaves along ``c``, and only the correction is extrapolated. Three evaluations a stage. The paper lets the
    scale fall, as `Schedule` can. On purpose different from the authors' code: the network is told the next level's time there,
    where that code adds a difference of sigmas to a time of 1000 units, and in effect tells this stage's; and after the last
    stage, where the latents are clean, the correction is that at the stage itself. On models that predict something else the
    way ahead is DDIM's.

    Args:
        scale: from 0, the conditional prediction alone for one evaluation.

    Raises:
        ConfigError: the scale is no number from 0.
    """

    neutral = 0.0
    scale_range = (0.0, math.inf)

    def __init__(self, scale: float = 3.0):
        self.scale = check_number("guidance.scale", scale, least=0)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"uncond", "noise-levels"}) if self.scale else frozenset()

    def vectorises(self) -> bool:
        return self.scale != 0

    def branches(self, state: StepState) -> Sequence[Branch]:
        self._ahead: StepState | None = None
        names = ["cond"]
        if state.scale_of(self) != 0 or isinstance(state.scale_of(self), Tensor):
            ahead = state.stage.index + 1
            stages = state.run.timeline.stages
            if ahead < len(stages) and stages[ahead].noise < state.stage.noise:
                self._ahead = StepState(state.run, stages[ahead], state.x)
            else:
                names = ["uncond", "cond"]
        return [Branch(name, state.conditions[name]) for name in names]

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        here = predictions["cond"]
        scale = state.scale_of(self)
        if self._ahead is not None:
            asked = [Branch(f"ahead_{name}", state.conditions[name]) for name in ("uncond", "cond")]
            found = self._ahead.predict(asked, x=self._led(state, here))
            told = {"c": here, "away": found["ahead_uncond"], "toward": found["ahead_cond"]}
        elif "uncond" in predictions:
            told = {"c": here, "away": predictions["uncond"], "toward": here}
        else:
            return Guided(here)
        return guided_in(state, told, "prediction", lambda v: v["c"] + scale * (v["toward"] - v["away"]))

    def _led(self, state: StepState, here: Prediction) -> Tensor:
        """The latents at the next stage's level that a prediction leads to, without noise of their own."""
        assert self._ahead is not None
        x, stage, after = state.x_before.float(), state.stage, self._ahead.stage
        wide = Prediction(here.value.float(), here.kind)
        x0, epsilon = to_x0(wide, x, stage), to_epsilon(wide, x, stage)
        return (after.signal * x0 + after.noise * epsilon).to(state.x_before.dtype)
