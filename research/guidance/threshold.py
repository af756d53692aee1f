"""Thresholding: the guided clean estimate is kept in range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from research.checks import check_choice, check_number
from research.guidance.modifier import Modifier
from research.guidance.spaces import per_image
from research.sampling.interfaces import Guidance, Guided, StepState
from research.sampling.prediction import Prediction, to_x0

_KEY = "guidance.modifiers.threshold"


class Threshold(Modifier):
    """Thresholding of the guided x0 (Imagen, arXiv:2205.11487, section 2.3).

    Dynamic: per image ``q = max(limit, quantile(|x0|, percentile))``, then x0 is cut to ``[-q, q]`` and scaled by
    ``limit / q``. Static: x0 is cut to ``[-limit, limit]``.

    Half precision is computed in fp32, and what it hands on is an fp32 x0.

    Args:
        guidance: whose x0 is kept in range.
        percentile: above 0, to 1; Imagen takes 0.995.
        limit: above 0: the range of the data. 1 for pixels; latents reach further, see `Record` for how far.
        mode: "dynamic" or "static".

    Raises:
        ConfigError: a setting is not one of the accepted.
    """

    own_requires = frozenset({"noise-levels"})

    def __init__(self, guidance: Guidance, percentile: float = 0.995, limit: float = 1.0, mode: str = "dynamic"):
        super().__init__(guidance)
        self.percentile = check_number(f"{_KEY}.percentile", percentile, above=0, most=1)
        self.limit = check_number(f"{_KEY}.limit", limit, above=0)
        self.mode = check_choice(f"{_KEY}.mode", mode, ("dynamic", "static"))

    def vectorises(self) -> bool:
        return self.guidance.vectorises()

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        guided = self.guidance.combine(state, predictions)
        if self.stands_still(state):
            return guided
        value = guided.prediction.value
        wide = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        x0 = to_x0(Prediction(wide, guided.prediction.kind), state.x_before, state.stage)
        if self.mode == "static":
            cut = x0.clamp(-self.limit, self.limit)
        else:
            size = x0.flatten(1).abs().float()
            q = per_image(torch.quantile(size, self.percentile, dim=1).clamp_min(self.limit), x0)
            cut = torch.minimum(torch.maximum(x0, -q), q) * (self.limit / q)
        return replace(guided, prediction=Prediction(cut, "x0"))
