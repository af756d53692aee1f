"""What a guidance asks for is computed as asked, or refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from research.errors import SamplingError
from research.guidance import Guidance
from research.models.denoiser import NetworkDenoiser
from research.sampling import Branch, LoopSampler
from research.sampling.interfaces import Condition
from research.sampling.timeline import Stage
from research.tasks import TextToImage


class Asks(Guidance):
    def __init__(self, **settings):
        self.settings = settings

    def branches(self, state):
        condition = state.conditions["cond"]
        return [Branch("cond", condition), Branch(**{"name": "other", "condition": condition, **self.settings})]


@pytest.mark.parametrize(("settings", "named"), [({"model": "weak"}, "weak"), ({"name": "cond"}, "cond")])
def test_a_branch_that_cannot_be_computed_is_refused(sd, settings, named) -> None:
    with pytest.raises(SamplingError, match=f"guidance: .*{named}"):
        LoopSampler(sd, guidance=Asks(**settings)).sample(TextToImage("cat"), seeds=[0], steps=2)


def stage(t) -> Stage:
    return Stage(0, 0, 1, torch.tensor(t), float(t), 1.0, 0.5, 0.0, 0.7, 0.7, True)


@pytest.mark.parametrize("kind", ["sd", "class_model"])
def test_a_branch_may_be_told_a_time_of_its_own(kind, request) -> None:
    model = request.getfixturevalue(kind)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *model.latent_shape(None, None), generator=generator)
    condition = (
        Condition(embeds=torch.randn(2, 16, 16, generator=generator))
        if kind == "sd"
        else Condition(class_labels=torch.tensor([1, 3]))
    )
    denoiser = NetworkDenoiser(model.network, model.evaluate, kind="epsilon")

    @torch.no_grad()
    def predict(t, *branches):
        return {k: p.value for k, p in denoiser.predict(x, stage(t), branches).items()}

    found = predict(
        500,
        Branch("cond", condition),
        Branch("later", condition, time=torch.tensor(300)),
        Branch("each", condition, time=torch.tensor([300.0, 650.0])),
    )
    assert torch.allclose(found["cond"], predict(500, Branch("cond", condition))["cond"], atol=1e-5)
    assert torch.allclose(found["later"], predict(300, Branch("cond", condition))["cond"], atol=1e-5)
    assert torch.allclose(found["each"][0], found["later"][0], atol=1e-5)
    assert torch.allclose(found["each"][1], predict(650, Branch("cond", condition))["cond"][1], atol=1e-5)
    assert (found["later"] - found["cond"]).abs().max() > 1e-3


def test_a_time_equal_to_the_stages_changes_nothing(sd) -> None:
    class Told(Guidance):
        def __init__(self, told):
            self.told = told

        def branches(self, state):
            return [Branch("cond", state.conditions["cond"], time=state.stage.t if self.told else None)]

    found = [
        LoopSampler(sd, guidance=Told(told)).sample(TextToImage("cat"), seeds=[0, 1], steps=3).latents
        for told in (False, True)
    ]
    assert torch.allclose(*found, atol=1e-6)


def test_joined_conditions_of_a_run_do_not_pile_up(sd) -> None:
    denoiser = NetworkDenoiser(sd.network, sd.evaluate, kind="epsilon")
    x = torch.zeros(1, *sd.latent_shape(None, None))
    kept = []
    with torch.no_grad():
        for place in range(12):
            condition = Condition(embeds=torch.full((1, 16, 16), float(place)))
            kept.append(denoiser.predict(x, stage(500), [Branch("cond", condition)])["cond"].value)
    assert len(denoiser._joined) <= 8
    assert all(not torch.equal(a, b) for a, b in pairwise(kept))
