"""Classifier guidance against the known posterior of Gaussian data, and on the embedded model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from guidance_samples import guided_x0, normal, predictions_of, relative, stage_of, state_of
from torch import Tensor

from research import LoopSampler, load_model
from research.errors import ConfigError, SamplingError
from research.guidance import CFG, ClassifierGuidance, LossGuidance, NoGuidance
from research.guidance.losses import ClipClassifier
from research.models import BaseModel
from research.tasks import TextToImage, Unconditional
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask

SHAPE = (1, 2, 2)
MEAN, STD, SEEN, BLUR = 0.3, 0.8, normal(5, SHAPE), 0.7


def gaussian_run(model: GaussianModel, scheduler: str, guidance: Any = None, steps: int = 6) -> Tensor:
    task = GaussianTask(pure_noise=True)
    LoopSampler(model, scheduler, guidance=guidance).sample(task, seeds=[0, 1], steps=steps)
    return task.ends[0]


def noise_aware(x: Tensor, told: Tensor, of: str = "sigma") -> Tensor:
    """Log-probabilities of "x0 was seen as SEEN through Gaussian noise of size BLUR", and of the contrary, at latents ``x``."""
    sigma = told.double() if of == "sigma" else torch.exp(-told.double() / 2)
    sigma = sigma[:, None, None, None]
    a, b = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    total = a**2 * STD**2 + b**2
    mean = MEAN + a * STD**2 / total * (x - a * MEAN)
    variance = STD**2 * b**2 / total + BLUR**2
    log_p = -((SEEN - mean).square() / (2 * variance)).flatten(1).sum(1) - 3.0
    return torch.stack([torch.log1p(-log_p.exp()), log_p], dim=1)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("time", ["sigma", "log_snr"])
@pytest.mark.fidelity(
    "guidance/classifier",
    source="arXiv:2105.05233, section 4.2, eq. 14",
    against="the exact posterior of Gaussian data",
    within="1e-5",
)
def test_a_noise_aware_classifier_gives_the_posterior(scheduler: str, time: str) -> None:
    """The true p(y | x_t) of Gaussian data: what comes out is the posterior's own trajectory, stage by stage."""
    weight = STD**2 / (STD**2 + BLUR**2)
    posterior = GaussianModel(MEAN + weight * (SEEN - MEAN), STD * (1 - weight) ** 0.5, SHAPE)
    led = ClassifierGuidance(1.0, lambda x, told: noise_aware(x, told, time), 1, sees="x", time=time)
    found = gaussian_run(GaussianModel(MEAN, STD, SHAPE), scheduler, led)
    assert relative(found, gaussian_run(posterior, scheduler)) < 1e-5
    plain = gaussian_run(GaussianModel(MEAN, STD, SHAPE), scheduler)
    assert relative(plain, found) > 0.05


def test_a_noisy_classifier_is_told_what_the_network_is_told() -> None:
    heard: list[Tensor] = []

    def classifier(x: Tensor, t: Tensor) -> Tensor:
        heard.append(t)
        assert x.dtype == torch.float64
        # in the scheduler's own scaling its spread would be above 10 at the first step
        assert x.std() < 2
        return x.flatten(1)[:, :2]

    led = ClassifierGuidance(1.0, classifier, [0, 1], sees="x")
    gaussian_run(GaussianModel(0.0, 1.0, SHAPE), "euler", led, steps=3)
    assert [t.shape for t in heard] == [(2,)] * 3
    assert heard[0][0] > heard[1][0] > heard[2][0]


def test_of_the_clean_estimate_it_is_loss_guidance_by_the_log_probability() -> None:
    weights = normal(3, (16, 3))

    def classifier(x0: Tensor) -> Tensor:
        return x0.flatten(1) @ weights

    def surprise(x0: Tensor) -> Tensor:
        return -classifier(x0).log_softmax(1)[:, 2]

    model = GaussianModel(0.1, 0.7, (4, 2, 2))
    for mode in ("model", "x0"):
        by_class = gaussian_run(model, "ddim", ClassifierGuidance(2.0, classifier, 2, mode=mode))
        by_loss = gaussian_run(model, "ddim", LossGuidance(2.0, surprise, mode=mode))
        assert relative(by_class, by_loss) < 1e-12


def test_logits_and_log_probabilities_are_the_same() -> None:
    weights = normal(3, (256, 3))
    state = state_of(stage_of(1.0))
    predictions = predictions_of(state, ("cond",))
    found = [
        guided_x0(ClassifierGuidance(1.0, classifier, [0, 2], mode="x0"), state, predictions)
        for classifier in (lambda x: x.flatten(1) @ weights, lambda x: (x.flatten(1) @ weights).log_softmax(1))
    ]
    assert relative(*found) < 1e-12
    assert relative(found[0], guided_x0(NoGuidance(), state, predictions)) > 1e-4


@pytest.mark.parametrize("on", ["x", "x0", "pixels"])
def test_an_image_is_led_the_same_alone_and_in_a_batch(sd: BaseModel, on: str) -> None:
    def classifier(seen: Tensor, *told: Tensor) -> Tensor:
        return 30 * torch.stack([seen.mean((1, 2, 3)), seen.square().mean((1, 2, 3))], dim=1)

    led = ClassifierGuidance(5.0, classifier, [0, 1, 0], sees=on, base=CFG(2.0))
    sampler = LoopSampler(sd, "heun", guidance=led)
    together, alone = (
        sampler.sample(TextToImage("pizza"), seeds=[0, 1, 2], steps=2, batch_size=size) for size in (3, 1)
    )
    assert relative(alone.latents, together.latents) < 1e-4
    assert together.nfe_by_branch == {"uncond": 3, "cond": 3}
    assert not together.latents.requires_grad


def test_without_a_target_it_is_the_class_of_the_task(class_model: BaseModel) -> None:
    def classifier(x0: Tensor) -> Tensor:
        return 20 * x0.flatten(1)[:, :5]

    def run(target: Any) -> Tensor:
        led = ClassifierGuidance(1.0, classifier, target, mode="x0")
        sampler = LoopSampler(class_model, "ddim", guidance=led)
        return sampler.sample(Unconditional(class_label=[3, 1]), seeds=[0, 1], steps=2).latents

    assert torch.equal(run(None), run([3, 1]))
    assert torch.equal(run(None), run(np.array([3, 1])))
    assert not torch.equal(run(None), run(3))


@pytest.mark.slow
def test_a_zero_shot_classifier_leads_to_its_class() -> None:
    model = load_model("emoji", device="cpu")
    classifier = ClipClassifier(["cat face on a gray background", "octopus on a gray background"])
    log_p = []
    for scale in (0.0, 5.0):
        led = ClassifierGuidance(
            scale, classifier, 1, sees="pixels", normalize="gradient" if scale else None, mode="x0"
        )
        result = LoopSampler(model, "ddim", guidance=led).sample(
            TextToImage("smiling face on a gray background"), seeds=[0, 1], steps=6
        )
        with torch.no_grad():
            log_p.append(classifier(model.decode_pixels(result.latents)).log_softmax(1)[:, 1])
    assert (log_p[1] > log_p[0]).all()


# --- what can be wrong

ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"classifier": "cat"}, r"guidance\.classifier: found 'cat'"),
    ({"target": "cat"}, r"guidance\.target: found 'cat'"),
    ({"target": -1}, r"guidance\.target: found -1"),
    ({"target": [0, True]}, r"guidance\.target: found \[0, True\]"),
    ({"target": []}, r"guidance\.target: found \[\]"),
    ({"sees": "latents"}, r"guidance\.sees: found 'latents'; accepted: x, x0, pixels"),
    ({"time": "hours"}, r"guidance\.time: found 'hours'; accepted: t, log_snr, sigma"),
    ({"normalize": "residual"}, r"guidance\.normalize: found 'residual'; accepted: null, gradient"),
    ({"scale": None}, r"guidance\.scale: found None"),
]


@pytest.mark.parametrize(("arguments", "said"), ARGUMENTS, ids=[said[:30] for _, said in ARGUMENTS])
def test_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ClassifierGuidance(**{"scale": 1.0, "classifier": len, "target": 0, **arguments})


RUNS: list[tuple[Any, Any, type[Exception], str]] = [
    (lambda x: x.sum((1, 2, 3)), 0, SamplingError, r"returned the shape \[2\] at step 1 .* logits \[2, classes\]"),
    (lambda x: "cat", 0, SamplingError, r"guidance\.classifier: returned 'cat'"),
    (lambda x: x.detach().flatten(1), 0, SamplingError, "without a gradient"),
    (lambda x: x.flatten(1) * float("nan"), 0, SamplingError, "found nan, nan"),
    (lambda x: x.flatten(1), 4, SamplingError, "this classifier has the classes 0 to 3"),
    (lambda x: x.flatten(1), [0, 1, 2], ConfigError, "found 3 classes for 2 images"),
    (lambda x: x.flatten(1), None, ConfigError, "the task names no class"),
]


@pytest.mark.parametrize(("classifier", "target", "kind", "said"), RUNS, ids=[run[3][:20] for run in RUNS])
def test_runs(classifier: Any, target: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        gaussian_run(GaussianModel(0.0, 1.0, SHAPE), "ddim", ClassifierGuidance(1.0, classifier, target))


def test_a_users_error_says_where() -> None:
    def careless(x: Tensor) -> Tensor:
        raise KeyError("weights")

    with pytest.raises(KeyError) as caught:
        gaussian_run(GaussianModel(0.0, 1.0, SHAPE), "ddim", ClassifierGuidance(1.0, careless, 0))
    assert any("guidance.classifier careless at step 1 of 6" in note for note in caught.value.__notes__)
