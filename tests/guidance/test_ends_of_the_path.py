"""Guidance at the ends of the path: latents that are noise alone or clean, and the levels of flow models."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from guidance_samples import normal, stage_of, state_of

from research import Hook, LoopSampler
from research.guidance import APG, CFG, PAG, TCFG, CFGPlusPlus, CFGZero, Interval, MagnitudeAware, Rescale, Threshold
from research.sampling import KINDS, Prediction, convert
from research.tasks import TextToImage
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask

METHODS = {
    "apg": lambda space: APG(3.0, space=space),
    "cfg_zero": lambda space: CFGZero(3.0, zero_steps=0, space=space),
    "tcfg": lambda space: TCFG(3.0, space=space),
    "magnitude_aware": lambda space: MagnitudeAware(3.0, space=space),
    "rescale": lambda space: Rescale(CFG(3.0), space=space),
}
ENDS = {"noise": (0.0, 1.0), "clean": (1.0, 0.0)}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["v", "flow", "x0", "epsilon"])
@pytest.mark.parametrize("space", [*KINDS, "prediction"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.spread(20)
def test_no_space_makes_nan_at_an_end(method, space, kind, end):
    """What comes out can be turned into what the scheduler takes, the model's kind."""
    signal, noise = ENDS[end]
    state = state_of(dataclasses.replace(stage_of(), signal=signal, noise=noise))
    predictions = {name: Prediction(normal(seed), kind) for name, seed in (("uncond", 1), ("cond", 2))}
    guided = METHODS[method](space).combine(state, predictions).prediction
    found = convert(guided, kind, state.x_before, state.stage).value
    assert torch.isfinite(found).all()
    assert not torch.equal(found, predictions["cond"].value)
    lost = "epsilon" if end == "noise" else "x0"
    if lost in (space, kind):
        own = METHODS[method]("prediction").combine(state, predictions).prediction
        assert torch.equal(found, own.value)


@pytest.mark.parametrize(
    "guidance", [TCFG(2.0), APG(2.0), Rescale(CFG(2.0), space="epsilon"), PAG(2.0, base=TCFG(2.0))]
)
def test_zero_terminal_snr(sd_v, guidance):
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    sampler = LoopSampler(sd_v, "ddim", scheduler_options=options, guidance=guidance)
    assert torch.isfinite(sampler.sample(TextToImage("a cat"), seeds=[0], steps=3).latents).all()
    around = LoopSampler(sd_v, "ddim", scheduler_options=options, guidance=Threshold(CFGPlusPlus(0.6)))
    assert torch.isfinite(around.sample(TextToImage("a cat"), seeds=[0], steps=3).latents).all()


@pytest.mark.parametrize("scheduler", ["flow_euler", "flow_heun"])
def test_levels_of_flow_models_are_flow_times(scheduler):
    class Stages(Hook):
        def on_start(self, run):
            self.stages, self.solver, self.warnings = run.timeline.stages, run.solver, run.warnings

    watch, model = Stages(), GaussianModel(0.3, 0.7, (4, 6, 6), "flow")
    window = Interval(CFG(1.0), sigma=(0.25, 0.75))
    LoopSampler(model, scheduler, guidance=window, hooks=[watch]).sample(GaussianTask(), seeds=[0], steps=10)
    assert watch.warnings == []  # it holds steps
    sigmas = [stage.sigma for stage in watch.stages]
    assert sigmas == pytest.approx([stage.noise for stage in watch.stages])
    assert sigmas[0] == 1.0
    assert all(a >= b > 0 for a, b in itertools.pairwise(sigmas))
    assert [s.sigma_next for s in watch.stages] == pytest.approx([*sigmas[1:], 0.0])
    assert all(math.isfinite(stage.log_snr) for stage in watch.stages)
