"""Time-step guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from research.checks import check_number
from research.guidance.pairs import guided_in
from research.sampling.interfaces import Batch, Branch, Guidance, Guided, StepState
from research.sampling.prediction import Prediction

STREAM = "hook/tsg"


class TSG(Guidance):
    """Time-step guidance (Sadat et al., arXiv:2407.02687, section 5, algorithm 2): ``p + scale * (c - p)``.

    ``p`` is the prediction of the same model for the same condition, told a perturbed time ``t + strength * t**alpha *
    n``, with one standard normal number ``n`` an image and stage. The paper analyses a perturbed time (eq. 9) and in
    practice perturbs its embedding in the same form; here it is the time itself, so that it works with every network. It
    needs no prompt and no second network.

    Args:
        scale: from 0, the perturbed prediction alone; 1 is no guidance and costs one evaluation a stage; others cost two.
        strength: ``s`` in the paper, of the perturbation, above 0; with ``alpha=1`` relative to the time.
        alpha: how it depends on the time, which is in the scheduler's units, for the most part from 0 to 1000.

    Raises:
        ConfigError: a number is not finite, the scale is negative, or the strength is not above 0.
    """

    scale_range = (0.0, math.inf)

    def __init__(self, scale: float = 3.0, strength: float = 0.1, alpha: float = 1.0):
        self.scale = check_number("guidance.scale", scale, least=0)
        self.strength = check_number("guidance.strength", strength, above=0)
        self.alpha = check_number("guidance.alpha", alpha)

    def start(self, run: Batch) -> None:
        # the network knows times from 0 to this one
        self._latest = float(run.model.scheduler_config.get("num_train_timesteps", 1000)) - 1

    def vectorises(self) -> bool:
        return self.scale not in (0, 1)

    def branches(self, state: StepState) -> Sequence[Branch]:
        conditional = Branch("cond", state.conditions["cond"])
        if state.scale_of(self) == 1 or state.stage.time <= 0:  # at time 0 there is nothing to perturb
            return [conditional]
        branch = Branch("perturbed", conditional.condition, time=self.perturbed(state))
        return [branch] if state.scale_of(self) == 0 else [branch, conditional]

    def perturbed(self, state: StepState) -> Tensor:
        """Another time for each image, [N], between 0 and the last time the network knows."""
        t = state.stage.time
        noise = state.run.noise.draw(STREAM, (), torch.float32)
        return (t + self.strength * t**self.alpha * noise).clamp(0.0, max(self._latest, t))

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        if len(predictions) == 1:
            return Guided(next(iter(predictions.values())))
        return guided_in(
            state,
            predictions,
            "prediction",
            lambda v: v["perturbed"] + state.scale_of(self) * (v["cond"] - v["perturbed"]),
        )
