"""The way to the noise begins at clean latents, where a prediction of x0 says nothing of the noise."""

from __future__ import annotations

import pytest
import torch

from research.sampling import Guided, NoiseSource, Prediction
from research.sampling.prediction import convert
from research.solvers.round_trip import RoundTripSolver
from research.testing.gaussian import GaussianModel

MEAN, STD = torch.tensor([0.5, -0.5]).reshape(2, 1, 1), torch.tensor([0.25, 0.5]).reshape(2, 1, 1)
CLEAN = {"set_alpha_to_one": True, "steps_offset": 0}


def noise_of(kind: str, *, plus_plus: bool = False, steps: int = 25) -> torch.Tensor:
    """Where clean latents are led: the network is told a timestep, and knows the level of no other."""
    model = GaussianModel(MEAN, STD, (2, 8, 8), kind, CLEAN)
    solver = RoundTripSolver(model.solvers("ddim")(), back_only=True)
    timeline = solver.timeline(steps)
    assert timeline[0].noise == 0.0
    noise = NoiseSource([0])
    solver.start(noise)
    x = MEAN + STD * torch.randn((1, 2, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trained = model.solvers("ddim").trained
    for stage in timeline:
        told = trained.at_time(stage.time)
        kept = told.signal * STD**2 / ((told.signal * STD) ** 2 + told.noise**2)
        clean = MEAN + kept * (x - told.signal * MEAN)
        at = type(stage)(
            **{**{f: getattr(stage, f) for f in stage.__slots__}, "signal": told.signal, "noise": told.noise}
        )
        said = convert(Prediction(clean, "x0"), solver.kind, x, at)
        other = convert(Prediction(clean + 0.1, "x0"), solver.kind, x, at) if plus_plus else None
        x = solver.step(Guided(said, renoise=other), x, stage, noise).x
    return x


@pytest.mark.parametrize("plus_plus", [False, True], ids=["one prediction", "a noise of its own"])
def test_a_model_of_x0_is_led_where_the_same_model_of_epsilon_is(plus_plus):
    one, other = (noise_of(kind, plus_plus=plus_plus) for kind in ("x0", "epsilon"))
    assert one.isfinite().all()
    assert (one - other).abs().max() < 1e-6
