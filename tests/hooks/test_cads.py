"""CADS: the prompt's embedding at each step, by the paper's formula."""

from __future__ import annotations

import math

import pytest
import torch

from research import Hook, LoopSampler
from research.errors import ConfigError
from research.guidance import CFG
from research.hooks import CADS
from research.sampling.noise import NoiseSource
from research.tasks import TextToImage, Unconditional


class Seen(Hook):
    order = 10

    def on_start(self, run):
        self.kept = []

    def post_model(self, state, predictions):
        self.kept.append({branch.name: branch.condition.embeds for branch in state.branches})


def run(model, hooks, seeds=(3, 4), steps=5, scheduler="ddim"):
    sampler = LoopSampler(model, scheduler, guidance=CFG(3.0), hooks=hooks)
    return sampler.sample(TextToImage("a cat"), seeds=list(seeds), steps=steps).latents


@pytest.mark.parametrize("mixing", [1.0, 0.3])
@pytest.mark.fidelity(
    "hooks/cads",
    source="arXiv:2310.17347, algorithm 1",
    against="its formula, image by image",
    within="1e-5",
    differs="statistics of each image; the negative condition is left",
)
def test_the_prompt_comes_out_of_noise(sd, mixing):
    seen = Seen()
    run(sd, [CADS(0.25, 0.3, 0.9, mixing), seen])
    y = seen.kept[-1]["cond"]
    source = NoiseSource([3, 4])
    for step, kept in enumerate(seen.kept):
        time = 1 - step / 5
        g = min(max((0.9 - time) / (0.9 - 0.3), 0.0), 1.0)
        wanted = y
        if g < 1:
            n = source.draw("hook/cads_embeds", y.shape[1:])
            wanted = math.sqrt(g) * y + 0.25 * math.sqrt(1 - g) * n
            own = torch.stack([(w - w.mean()) / w.std() * o.std() + o.mean() for w, o in zip(wanted, y, strict=True)])
            wanted = mixing * own + (1 - mixing) * wanted
        assert torch.allclose(kept["cond"], wanted, atol=1e-5)
        assert torch.equal(kept["uncond"], seen.kept[0]["uncond"])


def test_off_alone_and_twice_evaluated(sd):
    assert torch.equal(run(sd, [CADS(tau1=1, tau2=1)]), run(sd, []))
    together = run(sd, [CADS()])
    assert float((run(sd, [CADS()], seeds=[4])[0] - together[1]).abs().max()) < 1e-4 * float(together.abs().max())
    assert not torch.equal(together, run(sd, []))
    seen = Seen()
    run(sd, [CADS(), seen], scheduler="heun", steps=2)
    assert torch.equal(seen.kept[0]["cond"], seen.kept[1]["cond"])  # a step has one noise


def test_what_it_cannot_be(pixel):
    for settings in ({"noise_scale": -1}, {"tau1": 0.9, "tau2": 0.5}, {"mixing": 2}):
        with pytest.raises(ConfigError, match=rf"hooks\.cads\.{list(settings)[-1]}: found"):
            CADS(**settings)
    with pytest.raises(ConfigError, match=r"CADS needs a model that takes text"):
        LoopSampler(pixel, hooks=[CADS()]).sample(Unconditional(), seeds=[0], steps=1)
