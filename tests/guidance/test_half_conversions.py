"""Conversions of half precision are made in fp32 and rounded once."""

from __future__ import annotations

import pytest
import torch
from guidance_samples import normal, relative, stage_of, state_of

from research.guidance import Rescale, Threshold
from research.sampling import KINDS, Guidance, Guided, Prediction, convert


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_conversion_is_rounded_once(kind, to, dtype):
    stage = stage_of(14.6)  # the noisiest level of Stable Diffusion
    x, value = normal(1).to(dtype), normal(2).to(dtype)
    found = convert(Prediction(value, kind), to, x, stage).value
    exact = convert(Prediction(value.double(), kind), to, x.double(), stage).value
    assert found.dtype == dtype
    assert float((found.double() - exact).abs().max()) <= torch.finfo(dtype).eps * float(exact.abs().max())


class Given(Guidance):
    """A guided prediction that is given."""

    def __init__(self, value, kind):
        self.prediction = Prediction(value, kind)

    def combine(self, state, predictions):
        return Guided(self.prediction)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "make", [lambda g: Rescale(g, space="x0"), lambda g: Rescale(g), lambda g: Threshold(g, limit=0.5)]
)
@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_modifiers_are_computed_in_fp32(make, kind, dtype):
    stage = stage_of(14.6)
    found = []
    for wide in (torch.float64, dtype):
        x, u, c, g = (normal(seed).to(dtype).to(wide) for seed in (1, 2, 3, 4))
        guidance = make(Given(g, kind))
        predictions = {"uncond": Prediction(u, kind), "cond": Prediction(c, kind)}
        result = guidance.combine(state_of(stage, x=x, kind=kind), predictions).prediction
        found.append(convert(result, kind, x, stage).value.double())
    exact, half = found
    assert relative(half, exact) < 2 * torch.finfo(dtype).eps
