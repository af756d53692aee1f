"""``parity=True`` equals StableDiffusionPipeline bit for bit: same weights, prompts, seeds, scheduler, steps, scale."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from support.scheduler_kinds import of_each_kind, upstream_names
from support.tiny_models import edit_json

from research import LoopSampler, load_model
from research.guidance import CFG, Rescale
from research.solvers import resolve
from research.tasks import TextToImage

NAMES = [name for name in upstream_names() if not name.startswith("flow")]
PAIRS = {"epsilon": ("sd", "sd_pipe"), "v": ("sd_v", "sd_v_pipe")}

# prompts, negative prompts, seeds, steps, scale
SETTINGS = {
    "one image, no guidance": ("a cat", None, [3], 3, 1.0),
    "one image, negative prompt": ("a cat", "dog", [4], 2, 7.5),
    "a batch, lists of prompts": (["a cat", "no dog"], ["x", "bad"], [3, 2**40], 5, 3.0),
}


def options_of(name: str) -> dict[str, Any]:
    # the one class that takes no generator; without a seed upstream draws from the global stream
    return {"noise_sampler_seed": 5} if name == "dpmpp_sde" else {}


def by_pipeline(pipe, scheduler, prompt, negative, seeds, steps, scale, output_type="latent", **size: Any) -> Any:
    pipe.scheduler = scheduler
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return pipe(
        prompt,
        negative_prompt=negative,
        num_inference_steps=steps,
        guidance_scale=scale,
        num_images_per_prompt=len(seeds) if isinstance(prompt, str) else 1,
        generator=generators,
        output_type=output_type,
        **size,
    ).images


def from_pipeline_config(pipe, name: str, **more: Any):
    spec = resolve(name)
    return getattr(diffusers, spec.class_name).from_config(pipe.scheduler.config, **{**spec.options, **more})


@pytest.fixture
def pair(request: pytest.FixtureRequest):
    """A model and the pipeline of the same directory, with the scheduler it came with."""
    model, pipe = (request.getfixturevalue(name) for name in request.param)
    own = pipe.scheduler
    yield model, pipe
    pipe.scheduler = own


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys(), indirect=True)
@pytest.mark.parametrize("name", of_each_kind(NAMES))
@pytest.mark.spread(4)
@pytest.mark.fidelity(
    "guidance/cfg",
    source="StableDiffusionPipeline of diffusers",
    against="final latents with parity, 18 schedulers",
    within="equal to the bit",
)
def test_every_scheduler_equals_the_pipeline(pair, name: str):
    model, pipe = pair
    for title, (prompt, negative, seeds, steps, scale) in SETTINGS.items():
        scheduler = from_pipeline_config(pipe, name, **options_of(name))
        expected = by_pipeline(pipe, scheduler, prompt, negative, seeds, steps, scale)
        sampler = LoopSampler(
            model, scheduler=name, scheduler_options=options_of(name), guidance=CFG(scale), parity=True
        )
        found = sampler.sample(TextToImage(prompt, negative), seeds=seeds, steps=steps)
        assert torch.equal(expected, found.latents), f"{name}, {title}"
        assert torch.isfinite(expected).all()


def test_every_short_name_is_tested_or_is_for_flow_models():
    assert set(upstream_names()) - set(NAMES) == {"flow_euler", "flow_heun"}
    required = "ddpm ddim pndm lms euler euler_a heun dpm2 dpm2_a dpmpp_2m dpmpp_2m_karras dpmpp_2m_sde dpmpp_2s"
    assert {*required.split(), "dpmpp_sde", "unipc", "deis", "lcm"} <= set(NAMES)


@pytest.mark.parametrize("pair", [PAIRS["epsilon"]], indirect=True)
@pytest.mark.parametrize("name", ["ddim", "euler_a", "unipc"])
@pytest.mark.parametrize(
    ("prompt", "negative", "seeds", "scale"),
    [
        ("a cat", None, [1, 2, 3], 4.0),  # one sentence for several images: encoded once by the pipeline
        ("a cat", "dog", [1, 2], 4.0),
        (["a cat"], None, [9], 2.0),
        (["a", "b c"], None, [1, 2], 2.0),
        ("", "", [0], 2.0),
        ("a cat with far more letters than it takes", "another that is far too long", [5], 3.0),
        ("a cat", "dog", [5], 0.5),  # the pipeline takes a scale below 1 as none
        ("a cat", None, [5], 0.0),
    ],
)
@pytest.mark.spread(5)
def test_prompts_and_scales(pair, name, prompt, negative, seeds, scale):
    model, pipe = pair
    expected = by_pipeline(pipe, from_pipeline_config(pipe, name), prompt, negative, seeds, 4, scale)
    sampler = LoopSampler(model, scheduler=name, guidance=CFG(scale), parity=True)
    assert torch.equal(expected, sampler.sample(TextToImage(prompt, negative), seeds=seeds, steps=4).latents)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys(), indirect=True)
@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m"])
@pytest.mark.parametrize(("scale", "phi"), [(7.5, 0.7), (3.0, 1.0), (3.0, 0.0), (1.0, 0.7)])
@pytest.mark.spread(3)
@pytest.mark.fidelity(
    "guidance/modifiers/rescale",
    source="arXiv:2305.08891, eq. 15 and 16",
    against="guidance_rescale of StableDiffusionPipeline, final latents with parity",
    within="equal to the bit",
    differs="another space by option",
)
def test_guidance_rescale(pair, name, scale, phi):
    model, pipe = pair
    prompts, negative, seeds = ["a cat", "no dog"], ["x", "bad"], [3, 4]
    scheduler = from_pipeline_config(pipe, name)
    expected = by_pipeline(pipe, scheduler, prompts, negative, seeds, 4, scale, guidance_rescale=phi)
    sampler = LoopSampler(model, scheduler=name, guidance=Rescale(CFG(scale), phi), parity=True)
    assert torch.equal(expected, sampler.sample(TextToImage(prompts, negative), seeds=seeds, steps=4).latents)
    if phi and scale != 1:
        plain = LoopSampler(model, scheduler=name, guidance=CFG(scale), parity=True)
        assert not torch.equal(expected, plain.sample(TextToImage(prompts, negative), seeds=seeds, steps=4).latents)


@pytest.mark.parametrize("pair", [("sd_odd", "sd_odd_pipe")], indirect=True)
@pytest.mark.parametrize("size", [{}, {"height": 32, "width": 56}, {"height": 8, "width": 8}])
def test_another_shape_of_model_and_of_image(pair, size):
    model, pipe = pair
    prompts, negative, seeds = ["a cat", "b"], ["x", ""], [7, 8]
    scheduler = from_pipeline_config(pipe, "dpmpp_2m")
    expected = by_pipeline(pipe, scheduler, prompts, negative, seeds, 3, 3.0, **size)
    sampler = LoopSampler(model, scheduler="dpmpp_2m", guidance=CFG(3.0), parity=True)
    found = sampler.sample(TextToImage(prompts, negative, **size), seeds=seeds, steps=3)
    assert torch.equal(expected, found.latents)
    assert found.images[0].size == (size.get("width", 40), size.get("height", 24))


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys(), indirect=True)
def test_images_equal_the_pipeline(pair):
    model, pipe = pair
    expected = by_pipeline(pipe, from_pipeline_config(pipe, "ddim"), ["a", "b"], None, [1, 2], 3, 3.0, "pil")
    sampler = LoopSampler(model, scheduler="ddim", guidance=CFG(3.0), parity=True)
    found = sampler.sample(TextToImage(["a", "b"]), seeds=[1, 2], steps=3).images
    assert [image.tobytes() for image in expected] == [image.tobytes() for image in found]
    assert [image.mode for image in found] == ["RGB", "RGB"]


@pytest.mark.parametrize("pair", [PAIRS["epsilon"]], indirect=True)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_of_ddim(pair, eta):
    model, pipe = pair
    pipe.scheduler = from_pipeline_config(pipe, "ddim")
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (1, 2)]
    expected = pipe(
        ["a", "b"], num_inference_steps=4, guidance_scale=2.0, generator=generators, eta=eta, output_type="latent"
    ).images
    sampler = LoopSampler(model, scheduler="ddim", scheduler_options={"eta": eta}, guidance=CFG(2.0), parity=True)
    assert torch.equal(expected, sampler.sample(TextToImage(["a", "b"]), seeds=[1, 2], steps=4).latents)


CLASSES = [
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DDIMParallelScheduler",  # not one of the short names
    "TCDScheduler",
    "IPNDMScheduler",
    "SASolverScheduler",
    "EDMEulerScheduler",
    "DPMSolverMultistepInverseScheduler",
]


@pytest.mark.parametrize("pair", [PAIRS["epsilon"]], indirect=True)
@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.spread(4)
def test_scheduler_by_class_name(pair, class_name):
    model, pipe = pair
    scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config)
    expected = by_pipeline(pipe, scheduler, "a cat", None, [3], 4, 3.0)
    sampler = LoopSampler(model, scheduler=class_name, guidance=CFG(3.0), parity=True)
    assert torch.equal(expected, sampler.sample(TextToImage("a cat"), seeds=[3], steps=4).latents)


@pytest.mark.parametrize("pair", [PAIRS["epsilon"]], indirect=True)
def test_scheduler_by_object_is_read_and_never_changed(pair):
    model, pipe = pair
    given = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.001, beta_end=0.02, solver_order=3, timestep_spacing="trailing", use_karras_sigmas=True
    )
    given.set_timesteps(11)  # whatever was done with it before
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in vars(given).items()}
    twin = diffusers.DPMSolverMultistepScheduler.from_config(given.config)
    expected = by_pipeline(pipe, twin, "a cat", None, [3], 5, 3.0)
    sampler = LoopSampler(model, scheduler=given, guidance=CFG(3.0), parity=True)
    for _ in range(2):
        assert torch.equal(expected, sampler.sample(TextToImage("a cat"), seeds=[3], steps=5).latents)
    for name, value in vars(given).items():
        same = torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name]
        assert same, name


@pytest.mark.parametrize("pair", [PAIRS["epsilon"]], indirect=True)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler", {"timestep_spacing": "trailing", "use_karras_sigmas": True}),
        ("heun", {"use_karras_sigmas": True}),
        ("dpmpp_2m", {"solver_order": 3, "euler_at_final": True}),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
        ("ddim", {"thresholding": True}),
        ("ddpm", {"clip_sample": True, "variance_type": "fixed_large"}),
        ("unipc", {"solver_order": 3, "predict_x0": False, "final_sigmas_type": "sigma_min"}),
        ("pndm", {"skip_prk_steps": False}),
        ("dpm2_a", {"timestep_spacing": "leading"}),
    ],
)  # fmt: skip
@pytest.mark.spread(2)
def test_scheduler_options(pair, name, options):
    model, pipe = pair
    expected = by_pipeline(pipe, from_pipeline_config(pipe, name, **options), "a cat", None, [3], 6, 3.0)
    sampler = LoopSampler(model, scheduler=name, scheduler_options=options, guidance=CFG(3.0), parity=True)
    assert torch.equal(expected, sampler.sample(TextToImage("a cat"), seeds=[3], steps=6).latents)


@pytest.mark.slow
def test_an_outdated_scheduler_config_is_mended_as_the_pipeline_does(copied, sd_directory):
    directory = copied(sd_directory)
    edit_json(directory / "scheduler" / "scheduler_config.json", steps_offset=0, clip_sample=True)
    pipe = StableDiffusionPipeline.from_pretrained(directory)
    pipe.set_progress_bar_config(disable=True)
    model = load_model(directory, dtype="float32", device="cpu")
    for name in ("ddim", "ddpm", "euler"):
        expected = by_pipeline(pipe, from_pipeline_config(pipe, name), "a cat", None, [3], 4, 3.0)
        sampler = LoopSampler(model, scheduler=name, guidance=CFG(3.0), parity=True)
        assert torch.equal(expected, sampler.sample(TextToImage("a cat"), seeds=[3], steps=4).latents), name


@pytest.mark.parametrize("slicing", ["auto", "max", 1])
@pytest.mark.spread(1)
def test_attention_slicing(sd_directory, slicing):
    pipe = StableDiffusionPipeline.from_pretrained(sd_directory)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_attention_slicing(slicing)
    model = load_model(sd_directory, dtype="float32", device="cpu", attention_slicing=slicing)
    expected = by_pipeline(pipe, from_pipeline_config(pipe, "ddim"), "a cat", None, [3], 3, 3.0)
    sampler = LoopSampler(model, scheduler="ddim", guidance=CFG(3.0), parity=True)
    found = sampler.sample(TextToImage("a cat"), seeds=[3], steps=3).latents
    assert torch.equal(expected, found)
    processors = {type(p).__name__ for p in model.unet.attn_processors.values()}
    assert processors == {"SlicedAttnProcessor"}
