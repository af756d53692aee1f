"""Loss guidance against closed forms on Gaussian data, finite differences on a network, and itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from guidance_samples import converted, guided_x0, kinds, log_sigmas, normal, predictions_of, stage_of, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from research import Hook, LoopSampler
from research.guidance import (
    APG,
    CFG,
    FDG,
    PAG,
    SAG,
    TCFG,
    CFGPlusPlus,
    CFGZero,
    Interval,
    LossGuidance,
    NoGuidance,
    Rescale,
)
from research.guidance.gradients import GradientGuidance
from research.models import BaseModel
from research.sampling.prediction import convert
from research.tasks import TextToImage, Unconditional
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import GaussianTask

pytestmark = pytest.mark.spread(2)

SHAPE = (4, 6, 6)
TARGET = normal(7, SHAPE)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def squares(x: Tensor) -> Tensor:
    return (x - TARGET.to(x)).square().flatten(1).sum(1)


def gaussian_run(model: GaussianModel, scheduler: str, guidance: Any = None, steps: int = 8) -> Tensor:
    task = GaussianTask(pure_noise=True)
    LoopSampler(model, scheduler, guidance=guidance).sample(task, seeds=[0, 1], steps=steps)
    return task.ends[0]


# --- the right number


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpmpp_2m", "pndm", "euler_a"])
@pytest.mark.parametrize("kind", ["epsilon", "v", "x0"])
@pytest.mark.fidelity(
    "guidance/loss", source="arXiv:2302.07121, eq. 6", against="the exact tilted Gaussian", within="1e-5"
)
def test_a_linear_loss_tilts_a_gaussian_into_the_known_one(scheduler: str, kind: Any) -> None:
    """N(m, s^2) times exp(k c x) is N(m + k s^2 c, s^2), and its score is exactly that of loss guidance."""
    if kind == "x0" and scheduler in ("pndm", "euler_a"):
        pytest.skip("this scheduler takes no prediction of x0")
    mean, std = normal(1, SHAPE), normal(2, SHAPE).abs() + 0.3
    c = normal(3, SHAPE)
    led = LossGuidance(0.7, lambda x: -(c * x).flatten(1).sum(1))
    found = gaussian_run(GaussianModel(mean, std, SHAPE, kind), scheduler, led)
    right = gaussian_run(GaussianModel(mean + 0.7 * std**2 * c, std, SHAPE, kind), scheduler)
    assert relative(found, right) < 1e-5  # a float32 scheduler's levels


def test_a_quadratic_loss_leads_to_between_data_and_target() -> None:
    plain = gaussian_run(GaussianModel(0.0, 1.0, SHAPE), "ddim", steps=40)
    distances = [
        float((gaussian_run(GaussianModel(0.0, 1.0, SHAPE), "ddim", LossGuidance(k, squares), 40) - TARGET).norm())
        for k in (0.2, 1.0, 4.0)
    ]
    assert float((plain - TARGET).norm()) > distances[0] > distances[1] > distances[2] > 0


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpmpp_2m"])
def test_leaving_the_jacobian_out_is_exact_for_unit_gaussian_data(scheduler: str) -> None:
    model = GaussianModel(normal(1, SHAPE), 1.0, SHAPE)
    through, without = (
        gaussian_run(model, scheduler, LossGuidance(0.5, squares, mode=mode)) for mode in ("model", "x0")
    )
    assert relative(without, through) < 1e-5


def test_the_jacobian_matters_elsewhere() -> None:
    model = GaussianModel(normal(1, SHAPE), 0.3, SHAPE)
    through, without = (gaussian_run(model, "ddim", LossGuidance(0.5, squares, mode=mode)) for mode in ("model", "x0"))
    assert relative(without, through) > 0.05


@pytest.mark.parametrize("scheduler", ["flow_euler", "flow_heun"])
def test_flow_models_are_led_too(scheduler: str) -> None:
    c = normal(3, SHAPE)
    led = LossGuidance(0.7, lambda x: -(c * x).flatten(1).sum(1), mode="x0")
    found = gaussian_run(GaussianModel(0.2, 1.0, SHAPE, "flow"), scheduler, led)
    right = gaussian_run(GaussianModel(0.2 + 0.7 * c, 1.0, SHAPE, "flow"), scheduler)
    assert relative(found, right) < 1e-6


@pytest.mark.parametrize("scheduler", ["flow_euler", "flow_heun"])
def test_flow_models_are_led_through_the_model_from_where_there_is_a_signal(scheduler: str) -> None:
    model = GaussianModel(0.2, 0.5, SHAPE, "flow")
    plain = gaussian_run(model, scheduler, steps=30)
    led = gaussian_run(model, scheduler, LossGuidance(2.0, squares), 30)
    assert (led - TARGET).norm() < 0.8 * (plain - TARGET).norm()


@pytest.mark.slow
def test_ddim_and_euler_give_the_same_picture() -> None:
    """Variance-preserving and -exploding: the same trajectory but for the solvers' errors, which shrink with the steps."""
    model = GaussianModel(normal(1, SHAPE), 0.5, SHAPE)
    gaps = []
    for steps in (30, 120):
        ddim, euler = (gaussian_run(model, name, LossGuidance(2.0, squares), steps) for name in ("ddim", "euler"))
        gaps.append(relative(euler, ddim))
    assert gaps[1] < 0.03
    assert gaps[1] < gaps[0]


@given(log_sigmas, kinds, st.sampled_from([None, "residual", "gradient"]))
@settings(max_examples=25, deadline=None)
def test_scaling_and_kind_make_no_difference(log_sigma: float, kind: Any, normalize: str | None) -> None:
    """The same noisy latents, preserved or exploded, with the same clean estimate in any kind: the same guided one."""
    sigma = 2.718281828**log_sigma
    led = LossGuidance(0.3, lambda x: squares_of(x), mode="x0", normalize=normalize)
    found = []
    for kept in (True, False):
        stage = stage_of(sigma, kept=kept)
        state = state_of(stage, x=stage.signal * normal(0, (2, *SHAPE)))
        predictions = predictions_of(state, ("cond",))
        found.append(guided_x0(led, state, converted(predictions, kind, state)))
    # at low noise epsilon is a difference of equals
    assert relative(found[0], found[1]) < 1e-8


def squares_of(x: Tensor) -> Tensor:
    return (x - normal(7, x.shape[1:])).square().flatten(1).sum(1)


class Differences(Hook):
    """Compares the shift of x0 with finite differences of the loss through model and decoder."""

    def __init__(self, loss: Any, guidance: Any, on: str):
        self.loss, self.guidance, self.on = loss, guidance, on
        self.found: list[tuple[float, float]] = []

    def post_guidance(self, state: Any) -> None:
        assert not state.guided.prediction.value.requires_grad
        base = self.guidance.guidance
        stage, x = state.stage, state.x_before

        def x0(predictions: Any, at: Tensor) -> Tensor:
            return convert(base.combine(state, predictions).prediction, "x0", at, stage).value

        def loss(at: Tensor) -> Tensor:
            clean = x0(state.predict(state.branches, at), at)
            return self.loss(state.run.model.decode_pixels(clean) if self.on == "pixels" else clean)

        shift = x0(state.predictions, x) - convert(state.guided.prediction, "x0", x, stage).value
        gradient = shift / self.guidance.scale * stage.signal / stage.noise**2
        direction = normal(11, x.shape)
        small = 1e-5
        differences = (loss(x + small * direction) - loss(x - small * direction)) / (2 * small)
        products = (gradient * direction).flatten(1).sum(1)
        self.found += zip(products.tolist(), differences.tolist(), strict=True)


@pytest.mark.parametrize("on", ["latents", "pixels"])
@pytest.mark.parametrize("scheduler", ["ddim", "heun"])
@pytest.mark.spread(2)
def test_gradients_equal_finite_differences(sd_v_directory: Any, on: str, scheduler: str) -> None:
    from research import load_model

    model = load_model(sd_v_directory, dtype=torch.float64, device="cpu")

    def loss(seen: Tensor) -> Tensor:
        return (seen.sin() * seen).flatten(1).sum(1)

    guidance = LossGuidance(0.01, loss, sees=on, base=CFG(3.0))
    check = Differences(loss, guidance, on)
    LoopSampler(model, scheduler, guidance=guidance, hooks=[check]).sample(
        TextToImage("a pizza"), seeds=[0, 1], steps=2
    )
    assert len(check.found) == (4 if scheduler == "ddim" else 6)
    for product, difference in check.found:
        assert product == pytest.approx(difference, rel=1e-4, abs=1e-7)


# --- one image and the next


def mean_square(pixels: Tensor) -> Tensor:
    return (pixels - 0.5).square().mean()


def mean_square_each(pixels: Tensor) -> Tensor:
    return (pixels - 0.5).square().mean((1, 2, 3))


@pytest.mark.parametrize("mode", ["model", "x0"])
@pytest.mark.parametrize("normalize", [None, "residual", "gradient"])
@pytest.mark.spread(1)
def test_an_image_is_led_the_same_alone_and_in_a_batch(sd: BaseModel, mode: str, normalize: str | None) -> None:
    scale = 0.5 if normalize == "gradient" else 30.0
    results = []
    for loss in (mean_square, mean_square_each):
        led = LossGuidance(scale, loss, mode=mode, sees="pixels", normalize=normalize, base=CFG(2.0))
        sampler = LoopSampler(sd, "ddim", guidance=led)
        for size in (3, 1):
            results.append(sampler.sample(TextToImage("pizza"), seeds=[0, 1, 2], steps=3, batch_size=size).latents)
    for other in results[1:]:
        assert relative(other, results[0]) < 1e-4
    plain = LoopSampler(sd, "ddim", guidance=CFG(2.0)).sample(TextToImage("pizza"), seeds=[0, 1, 2], steps=2)
    assert relative(plain.latents, results[0]) > 1e-3


def test_scale_zero_is_the_base_to_the_bit(sd: BaseModel) -> None:
    def run(guidance: Any) -> Any:
        return LoopSampler(sd, "dpmpp_2m", guidance=guidance).sample(TextToImage("pizza"), seeds=[0], steps=4)

    led, plain = run(LossGuidance(0.0, mean_square, base=CFG(2.0))), run(CFG(2.0))
    assert torch.equal(led.latents, plain.latents)
    assert led.nfe_by_branch == plain.nfe_by_branch


def test_guidance_around_guidance_adds_both(sd: BaseModel) -> None:
    """Of linear losses the sum is led by the sum; the outer one passes through the inner one's model."""

    def up(x: Tensor) -> Tensor:
        return -x.flatten(1).sum(1)

    def run(guidance: Any) -> Tensor:
        result = LoopSampler(sd, "euler", guidance=guidance).sample(TextToImage("pizza"), seeds=[0, 1], steps=3)
        return result.latents

    nested = run(LossGuidance(0.2, up, base=LossGuidance(0.1, up, base=CFG(2.0))))
    assert relative(nested, run(LossGuidance(0.3, up, base=CFG(2.0)))) < 1e-5


BASES = [
    APG(3.0),
    CFGPlusPlus(0.6),
    CFGZero(3.0),
    TCFG(3.0),
    FDG(3.0),
    PAG(2.0, base=CFG(2.0)),
    SAG(0.5),
    Rescale(CFG(3.0)),
]


@pytest.mark.parametrize("base", BASES, ids=[type(base).__name__ for base in BASES])
def test_the_gradient_passes_through_any_base(sd: BaseModel, base: Any) -> None:
    def run(guidance: Any) -> Any:
        return LoopSampler(sd, "ddim", guidance=guidance).sample(TextToImage("pizza"), seeds=[0], steps=2)

    led, plain = run(LossGuidance(30.0, mean_square, sees="pixels", base=base)), run(base)
    assert relative(led.latents, plain.latents) > 1e-4
    assert led.nfe_by_branch == plain.nfe_by_branch
    around = run(Interval(LossGuidance(30.0, mean_square, sees="pixels", base=base), steps=(0.0, 1.0)))
    assert torch.equal(around.latents, led.latents)


def test_both_predictions_of_cfg_plus_plus_are_led() -> None:
    state = state_of(stage_of(2.0))
    predictions = predictions_of(state)
    base = CFGPlusPlus(0.6)
    led = LossGuidance(0.3, squares_of, mode="x0", base=base)
    led.start(state.run)
    guided, plain = led.combine(state, predictions), base.combine(state, predictions)
    assert guided.renoise is not None
    assert plain.renoise is not None

    def moved(a: Any, b: Any) -> Tensor:
        x, stage = state.x_before, state.stage
        return convert(a, "x0", x, stage).value - convert(b, "x0", x, stage).value

    shift = moved(guided.prediction, plain.prediction)
    assert shift.abs().max() > 0
    torch.testing.assert_close(moved(guided.renoise, plain.renoise), shift)


def test_normalised_by_the_gradient_the_shift_has_the_size_asked_for() -> None:
    state = state_of(stage_of(2.0))
    predictions = predictions_of(state, ("cond",))
    for unit in (1.0, 1e6):
        led = LossGuidance(0.3, lambda x, u=unit: u * squares_of(x), mode="x0", normalize="gradient")
        shift = guided_x0(led, state, predictions) - guided_x0(NoGuidance(), state, predictions)
        expected = 0.3 * 2.0 / 5**0.5
        torch.testing.assert_close(shift.square().mean((1, 2, 3)).sqrt(), torch.full((2,), expected).double())


def test_normalised_by_the_residual_the_gradient_is_divided_by_its_norm() -> None:
    state = state_of(stage_of(2.0))
    predictions = predictions_of(state, ("cond",))
    x0 = guided_x0(NoGuidance(), state, predictions)
    shifts = [
        guided_x0(LossGuidance(0.3, squares_of, mode="x0", normalize=how), state, predictions) - x0
        for how in (None, "residual")
    ]
    norms = squares_of(x0).sqrt()[:, None, None, None]
    torch.testing.assert_close(shifts[1], shifts[0] / norms)


# --- half precision, and what is left behind


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("on", ["latents", "pixels"])
@pytest.mark.spread(1)
def test_half_precision_loses_no_small_gradient(sd_directory: Any, dtype: str, on: str) -> None:
    """A loss in small units has gradients below what half precision can hold; the scale makes up for it."""
    from research import load_model

    model, wide = (load_model(sd_directory, dtype=d, device="cpu") for d in (dtype, "float32"))

    def run(of: BaseModel, scale: float) -> Tensor:
        led = LossGuidance(scale, lambda seen: 1e-9 * (seen - 0.5).square().sum((1, 2, 3)), sees=on)
        sampler = LoopSampler(of, "ddim", guidance=led if scale else None)
        return sampler.sample(TextToImage("pizza"), seeds=[0], steps=1).latents.double()

    size = {"latents": 1e11, "pixels": 1e13}[on]  # so that the effect is far above the rounding of latents
    effects = [run(of, size) - run(of, 0) for of in (model, wide)]
    assert torch.isfinite(effects[0]).all()
    assert relative(*effects) < 0.1


def test_nothing_of_the_gradients_is_left(sd: BaseModel) -> None:
    class Watch(Hook):
        def post_step(self, state: Any) -> None:
            assert not torch.is_grad_enabled()
            tensors = [state.x, state.x_before, state.guided.prediction.value]
            tensors += [prediction.value for prediction in state.predictions.values()]
            assert not any(tensor.requires_grad or tensor.grad_fn for tensor in tensors)

    led = LossGuidance(10.0, mean_square, sees="pixels", base=CFG(2.0))
    weights = [weight for module in sd.modules() for weight in module.parameters()]
    before = [weight.requires_grad for weight in weights]
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            sampler = LoopSampler(sd, "heun", guidance=led, hooks=[Watch()])
            result = sampler.sample(TextToImage("pizza"), seeds=[0], steps=2)
            assert torch.is_grad_enabled() is enabled
        assert not result.latents.requires_grad
    assert all(weight.grad is None for weight in weights)
    assert [weight.requires_grad for weight in weights] == before


def test_the_gradient_passes_through_the_model_only_where_it_is_used(sd: BaseModel) -> None:
    state = state_of(stage_of(1.0))
    assert LossGuidance(1.0, mean_square).differentiates(state)
    assert not LossGuidance(1.0, mean_square, mode="x0").differentiates(state)
    assert not LossGuidance(0.0, mean_square).differentiates(state)
    assert LossGuidance(0.0, mean_square, base=LossGuidance(1.0, mean_square)).differentiates(state)
    assert issubclass(LossGuidance, GradientGuidance)


@pytest.mark.slow
def test_pixel_models_are_led(pixel: BaseModel, sd_odd: BaseModel, grey_directory: Any) -> None:
    from research import load_model

    grey = load_model(grey_directory, dtype="float32", device="cpu")

    def bright(pixels: Tensor) -> Tensor:
        assert pixels.shape[1] == 3
        return (1 - pixels).square().mean((1, 2, 3))

    for model, task in ((pixel, Unconditional()), (grey, Unconditional()), (sd_odd, TextToImage("pizza"))):
        means = []
        for scale in (0.0, 1.0):
            led = LossGuidance(scale, bright, mode="x0", sees="pixels", normalize="gradient")
            result = LoopSampler(model, "ddim", guidance=led).sample(task, seeds=[0], steps=4)
            with torch.no_grad():
                means.append(float(bright(model.decode_pixels(result.latents).expand(-1, 3, -1, -1))))
        assert means[1] < means[0]
