"""What a loss or its settings can get wrong is said in one line, with the place."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from research import LoopSampler
from research.errors import ConfigError, SamplingError
from research.guidance import CFG, LossGuidance
from research.models import BaseModel
from research.sampling.interfaces import Guidance, Guided
from research.sampling.prediction import Prediction
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask


def run(loss: Any, seeds: Any = (0, 1), **settings: Any) -> None:
    model = GaussianModel(0.0, 1.0, (3, 4, 4))
    guidance = LossGuidance(1.0, loss, **settings)
    LoopSampler(model, "ddim", guidance=guidance).sample(GaussianTask(), seeds=list(seeds), steps=4)


def each(x: Tensor) -> Tensor:
    return x.square().sum((1, 2, 3))


BAD: list[tuple[Any, str]] = [
    (lambda x: 3.0, r"returned 3\.0"),
    (lambda x: None, "returned None"),
    (lambda x: x.square(), r"the shape \[2, 3, 4, 4\]"),
    (lambda x: each(x)[:, None], r"the shape \[2, 1\]"),
    (lambda x: each(x).repeat(2), r"the shape \[4\]"),
    (lambda x: each(x.detach()), "without a gradient"),
    (lambda x: torch.ones(2), "without a gradient"),
    (lambda x: (x > 0).sum((1, 2, 3)), "without a gradient"),
    (lambda x: torch.ones(2, requires_grad=True), "does not depend"),
    (lambda x: each(x) * float("nan"), "found nan, nan"),
    (lambda x: each(x) / 0, "found inf, inf"),
    (lambda x: (x * 0).abs().sqrt().sum((1, 2, 3)), "gradient is not finite"),
]


@pytest.mark.parametrize("mode", ["model", "x0"])
@pytest.mark.parametrize(("loss", "said"), BAD, ids=[said[:20] for _, said in BAD])
def test_a_loss_that_is_none(loss: Any, said: str, mode: str) -> None:
    with pytest.raises(SamplingError, match=said) as caught:
        run(loss, mode=mode)
    line = str(caught.value)
    assert line.startswith("guidance.loss: ")
    assert "at step 1 of 4" in line
    assert "\n" not in line


def test_a_scalar_that_mixes_images_is_refused() -> None:
    with pytest.raises(SamplingError, match="neither the sum nor the mean"):
        run(lambda x: (x - x.mean(0)).square().sum() + x.square().sum().sqrt())


def test_a_scalar_that_is_a_sum_or_mean_is_accepted() -> None:
    for loss in (lambda x: x.square().sum(), lambda x: x.square().mean()):
        run(loss)
        run(loss, seeds=[0])


def test_a_negative_loss_has_no_residual() -> None:
    with pytest.raises(SamplingError, match=r"found -\d.*squared norms"):
        run(lambda x: -each(x), normalize="residual")


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"mode": "both"}, r"guidance\.mode: found 'both'; accepted: model, x0\."),
    ({"sees": "images"}, r"guidance\.sees: found 'images'; accepted: latents, pixels\."),
    ({"normalize": "yes"}, r"guidance\.normalize: found 'yes'; accepted: null, residual, gradient\."),
    ({"base": 3.0}, "LossGuidance wraps 3.0"),
    ({"scale": float("nan")}, r"guidance\.scale: found nan"),
    ({"scale": "much"}, r"guidance\.scale: found 'much'"),
    ({"loss": "colour"}, r"guidance\.loss: found 'colour'; accepted is a function"),
]


@pytest.mark.parametrize(("settings", "said"), SETTINGS, ids=[next(iter(s)) for s, _ in SETTINGS])
def test_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LossGuidance(**{"scale": 1.0, "loss": each, **settings})


def test_a_users_error_keeps_its_traceback_and_says_where() -> None:
    calls: list[int] = []

    def careless(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 2:
            return x @ torch.ones(7, 7).double()
        return each(x)

    enabled = torch.is_grad_enabled()
    with pytest.raises(RuntimeError) as caught:
        run(careless)
    assert torch.is_grad_enabled() is enabled
    text = "".join(traceback.format_exception(caught.value))
    assert "return x @ torch.ones(7, 7)" in text
    assert "raised in guidance.loss careless at step 3 of 4" in text


def test_a_module_with_weights_of_its_own_gets_no_gradients() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(48, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1))[:, 0]

    net = Net()
    run(net)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_base_that_hands_on_no_gradient_is_named() -> None:
    class Cut(Guidance):
        def combine(self, state: Any, predictions: Any) -> Guided:
            found = predictions["cond"]
            return Guided(Prediction(found.value.detach(), found.kind))

    with pytest.raises(SamplingError, match="Cut inside LossGuidance hands on a prediction without a gradient"):
        run(each, base=Cut())
    run(each, base=Cut(), mode="x0")


def test_pixels_need_a_decoder(sd: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(GaussianModel, "decode_pixels")
    with pytest.raises(ConfigError, match=r"model: gaussian has no decode_pixels"):
        run(each, sees="pixels")


def test_needs_of_the_base_are_needs(pixel: BaseModel) -> None:
    with pytest.raises(ConfigError, match="needs uncond"):
        LoopSampler(pixel, "ddim", guidance=LossGuidance(1.0, each, base=CFG(3.0)))
