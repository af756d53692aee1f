"""Predictions: each kind says the same thing as the others, and guidance may be done in any of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research.sampling import KINDS, Prediction, Stage, convert, to_epsilon, to_flow, to_v, to_x0

TO = {"epsilon": to_epsilon, "x0": to_x0, "v": to_v, "flow": to_flow}


def stage(signal: float, noise: float) -> Stage:
    return Stage(
        index=0,
        step=0,
        n_steps=1,
        t=torch.tensor(1.0),
        time=1.0,
        sigma=noise / signal,
        sigma_next=0.0,
        log_snr=2 * math.log(signal / noise),
        signal=signal,
        noise=noise,
        last_of_step=True,
    )


def angle(a: float) -> Stage:
    return stage(math.cos(a), math.sin(a))


LEVELS = {
    "variance-preserving": st.floats(0.03, 1.54).map(angle),
    "variance-exploding": st.floats(0.03, 80.0).map(lambda sigma: stage(1.0, sigma)),
    "flow": st.floats(0.02, 0.98).map(lambda t: stage(1 - t, t)),
}
ANY_LEVEL = st.one_of(*LEVELS.values())
SEEDS = st.integers(0, 2**31)


def tensors(seed: int, n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((2, 3, 4), generator=generator, dtype=torch.float64) for _ in range(n)]


def truth(x0: torch.Tensor, epsilon: torch.Tensor, at: Stage) -> dict[str, torch.Tensor]:
    """The definitions, written out."""
    norm = math.sqrt(at.signal**2 + at.noise**2)
    return {"x0": x0, "epsilon": epsilon, "v": (at.signal * epsilon - at.noise * x0) / norm, "flow": epsilon - x0}


@given(seed=SEEDS, at=ANY_LEVEL, source=st.sampled_from(KINDS), target=st.sampled_from(KINDS))
def test_every_kind_from_every_other(seed, at, source, target):
    x0, epsilon = tensors(seed, 2)
    x = at.signal * x0 + at.noise * epsilon
    values = truth(x0, epsilon, at)
    given_ = Prediction(values[source], source)
    found = convert(given_, target, x, at)
    assert found.kind == target
    assert torch.allclose(found.value, values[target], rtol=1e-7, atol=1e-7)
    assert torch.equal(TO[target](given_, x, at), found.value)


@given(seed=SEEDS, at=ANY_LEVEL, kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=6))
def test_there_and_back_for_any_output(seed, at, kinds):
    """Also where the output fits no x0 that ever was: a network may say anything."""
    x, value = tensors(seed, 2)
    prediction = Prediction(value, kinds[0])
    for kind in [*kinds[1:], kinds[0]]:
        prediction = convert(prediction, kind, x, at)
    assert torch.allclose(prediction.value, value, rtol=1e-5, atol=1e-5)


@given(seed=SEEDS, at=ANY_LEVEL, kind=st.sampled_from(KINDS), other=st.sampled_from(KINDS), scale=st.floats(-3, 15))
def test_guidance_commutes_with_conversion(seed, at, kind, other, scale):
    x, c, u = tensors(seed, 3)

    def combined(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return b + scale * (a - b)

    first = convert(Prediction(combined(c, u), kind), other, x, at).value
    as_other = [convert(Prediction(value, kind), other, x, at).value for value in (c, u)]
    assert torch.allclose(first, combined(*as_other), rtol=1e-6, atol=1e-6 * (1 + abs(scale)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_kind_is_the_same_object(kind):
    prediction = Prediction(torch.ones(1), kind)
    assert convert(prediction, kind, torch.ones(1), angle(0.5)) is prediction


def test_a_tiny_noise_level_keeps_the_clean_latents():
    at = angle(1e-6)
    (x,) = tensors(0, 1)
    for kind in ("epsilon", "v", "flow"):
        assert torch.allclose(to_x0(Prediction(torch.ones_like(x), kind), x, at), x, atol=1e-5)
