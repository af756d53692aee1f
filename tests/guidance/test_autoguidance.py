"""Autoguidance: the formula, the weak model made of the strong one, weak models by path, and those that do not fit."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from guidance_samples import NoModel, normal, predictions_of, relative, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import edit_json, save_tiny_pixel, save_tiny_sd

from research import load_model
from research.errors import ConfigError
from research.guidance import CFG, PAG, Autoguidance, Interval
from research.models.summary import outline
from research.models.weak_model import add_noise
from research.sampling import Guided, LoopSampler, Prediction
from research.sampling.prediction import KINDS
from research.tasks import TextToImage, Unconditional

pytestmark = pytest.mark.spread(2)


def sample(model, guidance, seeds=(0,), steps=3, scheduler="ddim"):
    task = TextToImage("cat") if "text" in model.supports else Unconditional()
    return LoopSampler(model, scheduler, guidance=guidance).sample(task, seeds=seeds, steps=steps)


def far(a, b) -> float:
    return float((a - b).abs().max() / b.abs().max())


# --- the formula


@given(scale=st.floats(0.0, 10.0), seed=st.integers(0, 1000), kind=st.sampled_from(KINDS))
@settings(max_examples=25, deadline=None)
@pytest.mark.fidelity(
    "guidance/autoguidance",
    source="arXiv:2406.02507, eq. 2",
    against="its formula",
    within="1e-9",
    differs="the weak model may be the model itself with noise in its weights",
)
def test_the_formula_of_the_paper_in_every_kind_of_prediction(scale, seed, kind) -> None:
    state = state_of(seed=seed, kind=kind)
    good, weak = predictions_of(state, ("cond", "weak"), seed=seed, kind=kind).values()
    guidance = Autoguidance(scale)
    guidance.guidance.combine = lambda *_: Guided(good)  # type: ignore[method-assign]
    guidance._pair = ("cond", "weak")
    found = guidance.combine(state, {"cond": good, "weak": weak}).prediction
    assert found.kind == kind
    assert relative(found.value, weak.value + scale * (good.value - weak.value)) < 1e-9


def test_the_push_goes_to_the_space_of_the_base() -> None:
    state = state_of(kind="epsilon")
    good, weak = predictions_of(state, ("cond", "weak"), kind="epsilon").values()
    guidance = Autoguidance(3.0)
    base = Prediction(normal(5), "x0")
    guidance.guidance.combine = lambda *_: Guided(base)  # type: ignore[method-assign]
    guidance._pair = ("cond", "weak")
    found = guidance.combine(state, {"cond": good, "weak": weak}).prediction
    factor = -state.stage.noise / state.stage.signal  # of x0, by epsilon
    assert found.kind == "x0"
    assert relative(found.value, base.value + 2.0 * factor * (good.value - weak.value)) < 1e-9


# --- the loop


def test_one_is_the_base_and_costs_nothing(sd) -> None:
    found = sample(sd, Autoguidance(1.0, base=CFG(3.0)), seeds=[0, 1])
    assert torch.equal(found.latents, sample(sd, CFG(3.0), seeds=[0, 1]).latents)
    assert found.nfe_by_branch == {"uncond": 3, "cond": 3}


def test_zero_is_the_weak_model_alone(sd) -> None:
    weak = sample(sd.second(noise=0.3), None).latents
    assert far(sample(sd, Autoguidance(0.0, noise=0.3)).latents, weak) < 1e-5
    assert far(weak, sample(sd, None).latents) > 1e-3


@pytest.mark.parametrize(("scheduler", "stages"), [("ddim", 4), ("heun", 7), ("pndm", 5), ("euler_a", 4)])
@pytest.mark.parametrize("kind", ["sd", "sd_v", "pixel", "sd_odd"])
@pytest.mark.spread(2)
def test_every_layout_and_scheduler_and_batches_equal_singles(kind, scheduler, stages, request) -> None:
    model = request.getfixturevalue(kind)
    base, names = (None, ["cond"]) if kind == "pixel" else (CFG(2.0), ["uncond", "cond"])
    guidance = Autoguidance(2.0, base=base)
    together = sample(model, guidance, seeds=[1, 2], steps=4, scheduler=scheduler)
    assert together.nfe_by_branch == dict.fromkeys([*names, "weak"], stages)
    for place, seed in enumerate([1, 2]):
        alone = sample(model, guidance, seeds=[seed], steps=4, scheduler=scheduler).latents[0]
        assert far(alone, together.latents[place]) < 1e-4


def test_outside_a_window_the_weak_model_is_not_evaluated(sd) -> None:
    found = sample(sd, Interval(Autoguidance(2.0, base=CFG(2.0)), steps=(0.0, 0.5)), steps=4, scheduler="heun")
    assert found.nfe_by_branch == {"uncond": 4, "cond": 7, "weak": 4}


def test_two_weak_models_and_a_patch_in_one_guidance(sd) -> None:
    guidance = Autoguidance(1.5, noise=0.1, base=PAG(1.0, base=Autoguidance(1.5, noise=0.3)))
    found = sample(sd, guidance, steps=2)
    assert found.nfe_by_branch == dict.fromkeys(["cond", "weak", "perturbed", "weak_2"], 2)
    assert {name: told["noise"] for name, told in found.trace["models"].items()} == {"weak": 0.3, "weak_2": 0.1}


# --- the model made worse


def test_a_weak_version_is_made_once_and_leaves_the_model_as_it_is(sd) -> None:
    before = {name: value.clone() for name, value in sd.network.state_dict().items()}
    weak = sd.second(noise=0.2)
    assert weak is sd.second(noise=0.2) is not sd.second(noise=0.1)
    assert weak.text is sd.text
    assert weak.network is not sd.network
    assert (weak.dtype, weak.device) == (sd.dtype, sd.device)
    for name, value in sd.network.state_dict().items():
        assert torch.equal(value, before[name])
        if value.ndim >= 2:
            added = (weak.network.state_dict()[name] - value).std() / value.std()
            assert value.numel() < 500 or float(added) == pytest.approx(0.2, rel=0.25)
        else:
            assert torch.equal(weak.network.state_dict()[name], value)


@pytest.mark.slow
def test_the_noise_is_the_same_in_every_process() -> None:
    code = (
        "import torch; from research.models.weak_model import add_noise; torch.manual_seed(0); n = torch.nn.Linear(7, 5);"
        "torch.nn.init.eye_(n.weight); torch.manual_seed(1); add_noise(n, 0.5); print(float(n.weight.double().square().sum()))"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    layer = torch.nn.Linear(7, 5)
    torch.nn.init.eye_(layer.weight)
    state = torch.get_rng_state()
    add_noise(layer, 0.5)
    assert told == f"{float(layer.weight.double().square().sum())}\n"
    assert torch.equal(torch.get_rng_state(), state)


def test_more_noise_is_a_weaker_model(sd) -> None:
    plain = sample(sd, None).latents
    errors = [far(sample(sd.second(noise=noise), None).latents, plain) for noise in (0.01, 0.1, 0.5)]
    assert errors == sorted(errors)


# --- weak models by path


@pytest.mark.slow
def test_a_weak_model_by_path(sd, tmp_path) -> None:
    path = save_tiny_sd(tmp_path / "weak", seed=7)
    found = sample(sd, Autoguidance(0.0, model=str(path)))
    # its network alone: text is encoded by the model that is guided
    alone = load_model(path, dtype="float32", device="cpu")
    alone.text = sd.text
    assert far(found.latents, sample(alone, None).latents) < 1e-5
    assert found.trace["models"]["weak"]["weights_sha256"] == alone.weights_sha256
    assert found.trace["models"]["weak"]["noise"] == 0.0
    assert far(sample(sd, Autoguidance(0.0, model=path, noise=0.2)).latents, found.latents) > 1e-4


def misfits(folder) -> dict[str, tuple[str, object]]:
    """By what they differ in from the tiny Stable Diffusion: the words of the message and a directory."""
    changed = {
        "prediction_type": save_tiny_sd(folder / "v", prediction_type="v_prediction"),
        "beta_end": save_tiny_sd(folder / "beta"),
        "family": save_tiny_pixel(folder / "pixel"),
        "latent shape": save_tiny_sd(folder / "odd", odd_shape=True),
        "input channels": save_tiny_sd(folder / "inpaint", role="inpaint"),
    }
    edit_json(changed["beta_end"] / "scheduler" / "scheduler_config.json", beta_end=0.02)
    return changed


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> dict:
    return misfits(tmp_path_factory.mktemp("others"))


@pytest.mark.parametrize("what", ["prediction_type", "beta_end", "family", "latent shape", "input channels"])
def test_a_weak_model_that_does_not_fit_is_refused_before_weights_load(what, others, sd, monkeypatch) -> None:
    guidance, solver = Autoguidance(2.0, model=str(others[what])), sd.solvers("ddim")()
    monkeypatch.setattr("research.models.load.load_model", None)
    for model in (outline(str(sd.path)), sd):
        with pytest.raises(ConfigError, match=rf"guidance\.model: .* has the {what} .*; accepted is that of"):
            guidance.check(model, solver)
    with pytest.raises(ConfigError, match=r"guidance\.model"):
        sample(sd, guidance)


def test_another_conditioning_width_is_refused(sd, copied) -> None:
    path = copied(sd.path)
    edit_json(path / "unet" / "config.json", cross_attention_dim=24)
    with pytest.raises(ConfigError, match=r"guidance\.model: .* has the conditioning width 24; accepted .*, 16\."):
        Autoguidance(2.0, model=str(path)).check(outline(str(sd.path)), sd.solvers("ddim")())


def test_a_weak_model_that_is_not_there_is_refused(sd, tmp_path) -> None:
    for path in ("emojii", str(tmp_path / "nothing" / "here")):
        with pytest.raises(ConfigError, match=r"guidance\.model: '.*' does not exist"):
            Autoguidance(2.0, model=path).check(outline(str(sd.path)), sd.solvers("ddim")())


def test_a_schedule_said_and_the_same_by_default_agree(sd, copied) -> None:
    path = copied(sd.path)
    edit_json(path / "scheduler" / "scheduler_config.json", num_train_timesteps=None, rescale_betas_zero_snr=None)
    Autoguidance(2.0, model=str(path)).check(outline(str(sd.path)), sd.solvers("ddim")())


# --- bad input


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"scale": math.nan}, "scale"),
        ({"scale": -0.5}, "scale"),
        ({"noise": 0.0}, "noise"),
        ({"noise": -0.1}, "noise"),
        ({"noise": math.inf}, "noise"),
        ({"noise": "much"}, "noise"),
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"model": "emoji", "noise": -0.1}, "noise"),
    ],
)
def test_bad_settings_are_refused(settings, key) -> None:
    with pytest.raises(ConfigError, match=rf"guidance\.{key}: found"):
        Autoguidance(**{"scale": 2.0, **settings})


def test_a_model_without_a_network_is_refused(sd) -> None:
    class Formula(NoModel):
        name = "formula"

    with pytest.raises(ConfigError, match="formula has none"):
        Autoguidance(2.0).check(Formula(), sd.solvers("ddim")())
