"""PAG, SEG, SLG and SAG: against diffusers where it is right, on every kind of network, alone and in a batch, and cleaned up."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionPAGPipeline, UNet2DModel
from diffusers.hooks import LayerSkipConfig, apply_layer_skip
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from diffusers.pipelines.deprecated.stable_diffusion_sag.pipeline_stable_diffusion_sag import (
    StableDiffusionSAGPipeline,
    gaussian_blur_2d,
)
from support.tiny_models import quiet

from research import load_model
from research.errors import ConfigError, SamplingError
from research.guidance import APG, CFG, PAG, SAG, SEG, SLG, Guidance, Interval
from research.guidance.blur import gaussian_blur, map_size
from research.guidance.pag import IdentityAttention
from research.guidance.sag import AttentionReceived
from research.guidance.seg import BlurredQueries
from research.guidance.slg import Skip
from research.models.denoiser import NetworkDenoiser
from research.models.summary import outline
from research.sampling import Branch, Condition, LoopSampler
from research.sampling.timeline import Stage
from research.tasks import TextToImage, Unconditional

pytestmark = pytest.mark.spread(2)

METHODS = {"PAG": PAG, "SEG": SEG, "SLG": SLG, "SAG": SAG}
NAMES = {"PAG": "perturbed", "SEG": "smoothed", "SLG": "skipped", "SAG": "degraded"}
methods = pytest.mark.parametrize("name", METHODS)


def sample(model, guidance, seeds=(0,), steps=3, scheduler="ddim", **settings):
    classes = {"class_label": 2} if "class_label" in model.supports else {}
    task = TextToImage("cat") if "text" in model.supports else Unconditional(**classes)
    return LoopSampler(model, scheduler, guidance=guidance, **settings).sample(task, seeds=seeds, steps=steps)


def far(a, b) -> float:
    return float((a - b).abs().max() / b.abs().max())


def is_whole(model) -> bool:
    return not any(m._forward_hooks or "forward" in m.__dict__ for m in model.network.modules())


# --- against diffusers


def of_pipeline(pipe, scale: float, **settings) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return pipe(
        "cat", guidance_scale=scale, num_inference_steps=4, generator=generator, output_type="latent", **settings
    ).images


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("layers", ["mid", "up"])
@pytest.mark.parametrize("kind", ["sd", "sd_v"])
@pytest.mark.spread(2)
@pytest.mark.fidelity(
    "guidance/pag",
    source="arXiv:2403.17377",
    against="StableDiffusionPAGPipeline of diffusers, final latents with parity",
    within="equal to the bit",
)
def test_pag_is_bit_equal_to_the_pipeline(kind, layers, scale, request) -> None:
    model = request.getfixturevalue(kind)
    pipe = quiet(StableDiffusionPAGPipeline.from_pretrained(model.path, pag_applied_layers=[layers]))
    ours = sample(model, PAG(2.0, layers=layers, base=CFG(scale)), seeds=[3], steps=4, parity=True)
    assert torch.equal(ours.latents, of_pipeline(pipe, scale, pag_scale=2.0))


@pytest.mark.parametrize(("adaptive", "perturbed"), [(0.001, 4), (0.004, 2)])
@pytest.mark.spread(1)
def test_a_scale_that_falls_is_that_of_the_pipeline(sd, adaptive, perturbed) -> None:
    pipe = quiet(StableDiffusionPAGPipeline.from_pretrained(sd.path, pag_applied_layers=["mid"]))
    ours = sample(sd, PAG(2.0, base=CFG(5.0), adaptive=adaptive), seeds=[3], steps=4, parity=True)
    assert torch.equal(ours.latents, of_pipeline(pipe, 5.0, pag_scale=2.0, pag_adaptive_scale=adaptive))
    assert ours.nfe_by_branch["perturbed"] == perturbed  # where the scale is 0 nothing is


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("kind", ["sd", "sd_v"])
@pytest.mark.spread(2)
@pytest.mark.fidelity(
    "guidance/sag",
    source="arXiv:2210.00939, eq. 16",
    against="StableDiffusionSAGPipeline of diffusers, final latents with parity",
    within="1e-5",
    differs="without parity the difference is one of noise predictions, as in the paper, for v models too",
)
def test_sag_equals_the_pipeline(kind, scale, request) -> None:
    model = request.getfixturevalue(kind)
    pipe = quiet(StableDiffusionSAGPipeline.from_pretrained(model.path))
    theirs = of_pipeline(pipe, scale, sag_scale=0.75)
    ours = sample(model, SAG(0.75, base=CFG(scale)), seeds=[3], steps=4, parity=True)
    assert far(ours.latents, theirs) < 1e-5
    # the paper's difference is one of noise predictions; the pipeline takes it of whatever the model predicts
    as_published = sample(model, SAG(0.75, base=CFG(scale)), seeds=[3], steps=4).latents
    assert (far(as_published, theirs) < 1e-5) is (kind == "sd")


@pytest.mark.fidelity(
    "guidance/seg",
    source="arXiv:2408.00760",
    against="the blur of the authors' and of diffusers' code",
    within="1e-6",
    differs="diffusers takes its finite blurs for infinite ones",
)
def test_blur_is_that_of_the_reference_implementations() -> None:
    maps = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(gaussian_blur(maps, 1.0, 9), gaussian_blur_2d(maps, 9, 1.0), atol=1e-6)
    for sigma, size in ((0.7, 5), (1.0, 7), (5.0, 31)):
        tokens = maps.flatten(2).transpose(1, 2).clone()
        # diffusers mixes up finite and infinite: what it blurs with a kernel is above its threshold
        theirs = _gaussian_blur_2d(tokens, size, sigma, 0.0).transpose(1, 2).unflatten(2, (9, 9))
        assert torch.allclose(gaussian_blur(maps, sigma, size), theirs, atol=1e-6)
    mean = maps.mean((-1, -2), keepdim=True)
    assert torch.allclose(gaussian_blur(maps, math.inf, 0), mean.expand_as(maps))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 5), (8, 8)])
@pytest.mark.parametrize("sigma", [0.3, 2.0, 50.0])
def test_blur_keeps_a_constant_map_and_any_size(size, sigma) -> None:
    maps = torch.full((1, 2, *size), 3.0)
    assert torch.allclose(gaussian_blur(maps, sigma, 2 * math.ceil(3 * sigma) + 1), maps)


def unet_output(unet, embeds, x) -> torch.Tensor:
    with torch.no_grad():
        return unet(x, torch.tensor(500), encoder_hidden_states=embeds, return_dict=False)[0]


def patched_output(model, patch, embeds, x) -> torch.Tensor:
    stage = Stage(0, 0, 1, torch.tensor(500), 500.0, 1.0, 0.5, 0.0, 0.7, 0.7, True)
    denoiser = NetworkDenoiser(model.network, model.evaluate, kind="epsilon")
    with torch.no_grad():
        branch = Branch("p", Condition(embeds=embeds), patches=(patch,))
        return denoiser.predict(x, stage, [branch])["p"].value


@pytest.fixture
def inputs(sd) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 16, 16, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)


@pytest.mark.fidelity(
    "guidance/slg",
    source="Stable Diffusion 3.5, skip-layer guidance",
    against="LayerSkipConfig of diffusers, the UNet's output",
    within="equal to the bit",
)
def test_slg_skips_as_the_layer_skip_of_diffusers(sd, inputs) -> None:
    fqn = "mid_block.attentions.0.transformer_blocks"
    network = copy.deepcopy(sd.network)  # diffusers leaves traces of its hooks on a network
    apply_layer_skip(network, LayerSkipConfig([0], fqn=fqn))
    theirs = unet_output(network, *inputs)
    assert torch.equal(patched_output(sd, Skip(["mid"]), *inputs), theirs)
    assert far(theirs, unet_output(sd.network, *inputs)) > 1e-3


def test_an_infinite_blur_gives_every_place_the_mean_attention(sd, inputs) -> None:
    seen = {}
    layer = sd.network.mid_block.attentions[0].transformer_blocks[0].attn1
    handle = layer.register_forward_hook(lambda _, args, output: seen.update(output=output))
    try:
        patched_output(sd, BlurredQueries(["mid"], math.inf, (8, 8)), *inputs)
    finally:
        handle.remove()
    # equal queries attend equally: all places get the same
    assert torch.allclose(seen["output"], seen["output"].mean(1, keepdim=True).expand_as(seen["output"]), atol=1e-5)


def test_a_wide_blur_comes_near_the_infinite_one_and_a_narrow_one_near_none(sd, inputs) -> None:
    plain = unet_output(sd.network, *inputs)
    whole = patched_output(sd, BlurredQueries(["all"], math.inf, (8, 8)), *inputs)
    narrow = patched_output(sd, BlurredQueries(["all"], 0.2, (8, 8)), *inputs)
    half = patched_output(sd, BlurredQueries(["all"], 1.0, (8, 8)), *inputs)
    assert (narrow - plain).norm() < 0.1 * (whole - plain).norm()
    assert (narrow - plain).norm() < (half - plain).norm() < (whole - plain).norm() * 1.1


@pytest.fixture(scope="module")
def sliced(sd_directory):
    return load_model(sd_directory, dtype="float32", device="cpu", attention_slicing=1)


@methods
def test_whatever_computes_attention_the_method_is_the_same(name, sliced, sd) -> None:
    guidance = METHODS[name](1.0, base=CFG(3.0))
    assert far(sample(sliced, guidance).latents, sample(sd, guidance).latents) < 1e-4


# --- what is evaluated


@methods
def test_neutral_is_the_base_and_costs_what_it_costs(name, sd) -> None:
    base = sample(sd, CFG(3.0), seeds=[0, 1])
    found = sample(sd, METHODS[name](0.0, base=CFG(3.0)), seeds=[0, 1])
    assert torch.equal(found.latents, base.latents)
    assert found.nfe_by_branch == base.nfe_by_branch


@pytest.mark.parametrize(("scale", "names"), [(1.0, ["cond"]), (0.0, ["uncond"]), (4.0, ["uncond", "cond"])])
@methods
@pytest.mark.spread(4)
def test_one_more_evaluation_a_stage_with_any_base(name, scale, names, sd) -> None:
    found = sample(sd, METHODS[name](1.0, base=CFG(scale)), steps=3)
    assert found.nfe_by_branch == dict.fromkeys([*names, NAMES[name]], 3)
    assert far(found.latents, sample(sd, CFG(scale), steps=3).latents) > 1e-4


@pytest.mark.parametrize(
    ("scheduler", "stages"), [("heun", 7), ("pndm", 5), ("euler", 4), ("dpmpp_2m", 4), ("unipc", 4)]
)
@methods
@pytest.mark.spread(3)
def test_every_scheduler_and_a_window_of_steps(name, scheduler, stages, sd_v) -> None:
    method = METHODS[name](1.0, base=CFG(2.0))
    found = sample(sd_v, method, steps=4, scheduler=scheduler)
    assert found.nfe_by_branch == dict.fromkeys(["uncond", "cond", NAMES[name]], stages)
    assert torch.isfinite(found.latents).all()
    inside = sample(sd_v, Interval(method, steps=(0.0, 0.5)), steps=4, scheduler=scheduler)
    assert 0 < inside.nfe_by_branch[NAMES[name]] < stages
    assert inside.nfe_by_branch["cond"] == stages


@pytest.mark.parametrize("kind", ["pixel", "class_model", "sd_odd", "sd_v"])
@methods
@pytest.mark.spread(2)
def test_every_layout_and_batches_equal_singles(name, kind, request) -> None:
    model = request.getfixturevalue(kind)
    base = CFG(3.0) if "uncond" in model.supports else None
    guidance = METHODS[name](1.5, base=base)
    together = sample(model, guidance, seeds=[4, 5, 6]).latents
    for place, seed in enumerate([4, 5, 6]):
        assert far(sample(model, guidance, seeds=[seed]).latents[0], together[place]) < 1e-4
    assert far(sample(model, base, seeds=[4]).latents[0], together[0]) > 1e-4


def test_methods_go_around_one_another(sd) -> None:
    guidance = SAG(0.5, base=PAG(1.0, base=SEG(1.0, base=PAG(0.5, layers="up", base=APG(3.0)))))
    found = sample(sd, guidance, steps=2)
    expected = ["uncond", "cond", "perturbed", "smoothed", "perturbed_2", "degraded"]
    assert found.nfe_by_branch == dict.fromkeys(expected, 2)
    assert is_whole(sd)


@pytest.fixture(scope="module")
def half(sd_directory):
    return load_model(sd_directory, dtype="bfloat16", device="cpu")


@methods
def test_half_precision_stays_near(name, half, sd) -> None:
    guidance = METHODS[name](1.0, base=CFG(2.0))
    assert far(sample(half, guidance).latents, sample(sd, guidance).latents) < 0.2


@methods
def test_nothing_stays_after_a_run_and_after_an_exception(name, sd, monkeypatch) -> None:
    before = sample(sd, CFG(2.0)).latents
    sample(sd, METHODS[name](1.0))
    assert is_whole(sd)
    monkeypatch.setattr(type(sd.network.mid_block.resnets[1]), "forward", fails)
    with pytest.raises(ZeroDivisionError):
        sample(sd, METHODS[name](1.0))
    monkeypatch.undo()
    assert is_whole(sd)
    assert torch.equal(sample(sd, CFG(2.0)).latents, before)


def fails(*args, **kwargs):
    raise ZeroDivisionError


# --- the space of SAG, and what it looks at


def test_sag_blurs_nothing_above_the_threshold_and_more_with_a_lower_one(sd) -> None:
    base = sample(sd, None).latents
    nothing = sample(sd, SAG(1.0, threshold=1e6)).latents
    assert far(nothing, base) < 1e-5
    some, all_of_it = (far(sample(sd, SAG(1.0, threshold=t)).latents, base) for t in (1.0, 0.0))
    assert some > 1e-3
    assert all_of_it > 1e-3


def test_sag_looks_at_the_unconditional_branch_as_published(sd) -> None:
    asked = []

    class Watching(SAG):
        def branches(self, state):
            found = super().branches(state)
            asked.extend((b.name, [type(p) for p in b.patches]) for b in found)
            return found

    sample(sd, Watching(1.0, base=CFG(2.0)), steps=1)
    assert asked == [("uncond", [AttentionReceived]), ("cond", [])]


@pytest.mark.parametrize(
    ("tokens", "latents", "size"),
    [
        (64, (8, 8), (8, 8)),
        (16, (8, 8), (4, 4)),
        (6, (6, 10), (2, 3)),
        (15, (6, 10), (3, 5)),
        (7, (5, 9), None),
        (1, (8, 8), (1, 1)),
        (15, (5, 9), (3, 5)),
    ],
)
def test_the_shape_of_a_map_is_told_from_the_latents(tokens, latents, size) -> None:
    assert map_size(tokens, latents) == size


def test_maps_of_different_sizes_are_refused() -> None:
    recorder = AttentionReceived(["all"])
    recorder.maps = [torch.ones(1, 15), torch.ones(1, 60)]
    with pytest.raises(SamplingError, match="15, 60 places"):
        recorder.received((6, 10))


# --- bad input


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0, "3", True])
@methods
def test_a_scale_that_cannot_be_is_refused(name, scale) -> None:
    with pytest.raises(ConfigError, match=r"guidance\.scale: found"):
        METHODS[name](scale)


@pytest.mark.parametrize("blur", [0.0, -1.0, math.nan, "wide", None])
def test_a_blur_that_cannot_be_is_refused(blur) -> None:
    for method in (SEG, SAG):
        with pytest.raises(ConfigError, match=r"guidance\.blur_sigma: found"):
            method(1.0, blur_sigma=blur)
    with pytest.raises(ConfigError, match=r"guidance\.blur_sigma"):
        SAG(1.0, blur_sigma=math.inf)
    with pytest.raises(ConfigError, match=r"guidance\.threshold"):
        SAG(1.0, threshold=-0.1)


def test_infinity_may_be_written_as_text() -> None:
    assert SEG(1.0, blur_sigma="inf").blur_sigma == math.inf


@methods
def test_layers_that_are_not_there_are_refused_before_weights_load(name, sd) -> None:
    told = outline(str(sd.path))
    solver = sd.solvers("ddim")()
    guidance = METHODS[name](1.0, layers="middle", base=CFG(2.0))
    with pytest.raises(ConfigError, match=r"guidance\.layers: 'middle' fits no .* it has down_blocks"):
        guidance.check(told, solver)
    with pytest.raises(ConfigError, match=r"guidance\.layers: 'middle'"):
        sample(sd, guidance)
    METHODS[name](1.0, layers=["mid", "up.0"]).check(told, solver)


@methods
def test_a_network_without_attention_is_refused(name, tmp_path) -> None:
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "plain")
    model = load_model(tmp_path / "plain", dtype="float32", device="cpu")
    with pytest.raises(ConfigError, match=f"{name} needs a network with attention"):
        sample(model, METHODS[name](1.0))


def test_a_base_that_is_no_guidance_is_refused() -> None:
    with pytest.raises(ConfigError, match="PAG wraps"):
        PAG(1.0, base=3.0)  # type: ignore[arg-type]
    assert isinstance(PAG(1.0).guidance, Guidance)


def test_an_identity_map_is_the_values_projected_out(pixel) -> None:
    layer = pixel.network.mid_block.attentions[0]
    hidden = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = IdentityAttention(["mid"])(layer, layer.forward, hidden)
        tokens = layer.group_norm(hidden.flatten(2)).transpose(1, 2)
        expected = layer.to_out[0](layer.to_v(tokens)).transpose(1, 2).unflatten(2, (4, 4)) + hidden
    assert torch.allclose(found, expected / layer.rescale_output_factor, atol=1e-6)
    # on a single place every map is the identity
    single = torch.randn(2, 16, 1, 1)
    with torch.no_grad():
        assert torch.allclose(IdentityAttention(["mid"])(layer, layer.forward, single), layer(single), atol=1e-5)
