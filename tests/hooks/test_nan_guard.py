"""The hook that stops a run at the first NaN."""

from __future__ import annotations

import math

import pytest
import torch

from research import Hook, LoopSampler
from research.errors import SamplingError
from research.guidance import CFG
from research.hooks import NanGuard
from research.sampling import Guided, Prediction
from research.tasks import TextToImage


class Spoils(Hook):
    """Makes a NaN at a stage: of a branch's prediction, of the guided one, or of the latents."""

    def __init__(self, what: str, at: int):
        self.what, self.at = what, at

    def post_model(self, state, predictions):
        if self.what == "uncond" and state.stage.index == self.at:
            spoilt = predictions["uncond"]
            return {**predictions, "uncond": Prediction(spoilt.value * math.nan, spoilt.kind)}
        return None

    def post_guidance(self, state):
        if self.what == "guided" and state.stage.index == self.at:
            state.guided = Guided(Prediction(state.guided.prediction.value * math.inf, state.guided.prediction.kind))

    def post_step(self, state):
        if self.what == "latents" and state.stage.index == self.at:
            state.x = torch.where(state.x == state.x.amax(), math.nan, state.x)


@pytest.mark.fidelity(
    "hooks/nan_guard", source="this project", against="the stage at which a number was spoilt", within="exact"
)
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("uncond", "the model's prediction for branch 'uncond'"),
        ("guided", "the guided prediction"),
        ("latents", "the latents after scheduler DDIMScheduler"),
    ],
)
def test_it_names_the_stage_and_who_it_was(sd, what, said):
    sampler = LoopSampler(sd, guidance=CFG(2.0), hooks=[Spoils(what, 3), NanGuard()])
    with pytest.raises(SamplingError, match=rf"NanGuard: {said} are not finite .* at stage 3, step 4 of 9"):
        sampler.sample(TextToImage("a"), seeds=[0, 1], steps=9)


def test_it_changes_nothing(sd):
    plain, guarded = (
        LoopSampler(sd, guidance=CFG(2.0), hooks=hooks).sample(TextToImage("a"), seeds=[0], steps=3).latents
        for hooks in ([], [NanGuard()])
    )
    assert torch.equal(plain, guarded)
