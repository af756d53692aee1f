"""Flux: equal to its pipelines bit for bit; guided with negative prompts alone, as they are, with parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from models.families.parity import (
    FOX,
    PIZZA,
    assert_outlined,
    by_pipeline,
    by_pipeline_of_pictures,
    mask_of,
    opened,
    picture,
    pixels,
    unpacked,
)
from support.tiny_models import edit_json

from research import LoopSampler, load_model
from research.errors import ConfigError, ModelError
from research.guidance import APG, CFG, Guidance, NoGuidance
from research.models import BaseModel
from research.models.inspect.inspect_model import inspect_model
from research.models.summary import outline
from research.solvers.build import SolverFactory
from research.solvers.lint.linter import lint
from research.tasks import ImageToImage, Inpaint, TextToImage

BOTH, SEEDS = [FOX, PIZZA], [0, 1]


@pytest.fixture(scope="module")
def pipe(flux: Path) -> Any:
    return opened(flux)


@pytest.fixture(scope="module")
def model(flux: Path) -> BaseModel:
    return load_model(flux, dtype="float32", device="cpu", max_sequence_length=16)


SETTINGS = {
    "no guidance but its own": (BOTH, None, 1.0, (16, 16)),
    "true guidance, odd size": (BOTH, ["bad", "worse"], 3.0, (24, 16)),
    "the empty sentence": (BOTH, ["", ""], 3.0, (16, 16)),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_text_to_image(pipe: Any, model: BaseModel, setting: str) -> None:
    prompts, negative, scale, size = SETTINGS[setting]
    model.choose(distilled_guidance=2.0, max_sequence_length=16)
    told = {
        "prompt": prompts, "negative_prompt": negative, "true_cfg_scale": scale, "guidance_scale": 2.0, "height": size[0],
        "width": size[1], "num_inference_steps": 3, "max_sequence_length": 16,
    }  # fmt: skip
    guidance: Guidance = CFG(scale) if scale > 1 else NoGuidance()
    got = LoopSampler(model, guidance=guidance, parity=True).sample(
        TextToImage(prompts, negative, *size), seeds=SEEDS, steps=3
    )
    model.choose(max_sequence_length=16)
    assert torch.equal(got.latents, unpacked(by_pipeline(pipe, SEEDS, **told), *size))
    assert pixels(got.images) == pixels(by_pipeline(pipe, SEEDS, output_type="pil", **told))


def test_without_a_negative_prompt_its_pipeline_does_not_guide(pipe: Any, model: BaseModel) -> None:
    task = TextToImage(FOX, None, 16, 16)
    told = {"prompt": FOX, "true_cfg_scale": 4.0, "height": 16, "width": 16, "num_inference_steps": 2}
    model.choose()  # 512 tokens
    got = LoopSampler(model, guidance=CFG(4.0), parity=True).sample(task, seeds=5, steps=2)
    assert torch.equal(got.latents, unpacked(by_pipeline(pipe, [5], **told), 16, 16))
    assert got.nfe == 2
    assert any("the pipeline of flux does not guide without a negative prompt" in note for note in got.warnings)
    free = LoopSampler(model, guidance=CFG(4.0)).sample(task, seeds=5, steps=2)
    assert (free.nfe, free.warnings) == (4, [])
    empty = LoopSampler(model, guidance=CFG(4.0), parity=True).sample(TextToImage(FOX, "", 16, 16), seeds=5, steps=2)
    assert (free.latents - empty.latents).abs().max() < 1e-5 * empty.latents.std()
    with pytest.raises(ConfigError, match="asks for a condition 'uncond'"):
        LoopSampler(model, guidance=APG(4.0), parity=True).sample(task, seeds=5, steps=2)


def test_schnell_and_another_scheduler(flux: Path, flux_schnell: Path, model: BaseModel) -> None:
    model.choose()
    schnell = load_model(flux_schnell, dtype="float32", device="cpu")
    assert schnell.distilled_guidance is None
    told = {"prompt": FOX, "height": 16, "width": 16, "num_inference_steps": 2}
    got = LoopSampler(schnell, parity=True).sample(TextToImage(FOX, None, 16, 16), seeds=5, steps=2)
    assert torch.equal(got.latents, unpacked(by_pipeline(opened(flux_schnell), [5], **told), 16, 16))
    pipe = opened(flux)
    pipe.scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    want = by_pipeline(pipe, [5], **told)
    got = LoopSampler(model, pipe.scheduler.from_config(pipe.scheduler.config), parity=True).sample(
        TextToImage(FOX, None, 16, 16), seeds=5, steps=2
    )
    assert torch.equal(got.latents, unpacked(want, 16, 16))


PICTURES = [picture(20, 30, 1), picture(20, 30, 2)]


@pytest.mark.parametrize("strength", [0.55, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.6, 1.0))])
@pytest.mark.parametrize("given", [PICTURES, PICTURES[0]], ids=["a picture a seed", "one for both"])
def test_pictures(flux: Path, model: BaseModel, given: Any, strength: float) -> None:
    model.choose(max_sequence_length=16)
    size, sampler = (24, 16), LoopSampler(model, parity=True)
    call = {"guidance_scale": 3.5, "max_sequence_length": 16}
    want = by_pipeline_of_pictures(flux, "FluxImg2ImgPipeline", size, given, strength, 5, **call)
    got = sampler.sample(ImageToImage(BOTH, given, strength, None, *size), seeds=SEEDS, steps=5)
    assert torch.equal(got.latents, want)
    mask = mask_of(24, 16)
    want = by_pipeline_of_pictures(flux, "FluxInpaintPipeline", size, given, strength, 5, mask_image=mask, **call)
    got = sampler.sample(Inpaint(BOTH, given, mask, strength, None, *size), seeds=SEEDS, steps=5)
    assert torch.equal(got.latents, want)


def test_alone_as_in_a_batch_and_with_a_solver_of_its_own(model: BaseModel) -> None:
    model.choose(max_sequence_length=16)
    for scheduler in ("model", "dpmpp_2m"):
        sampler = LoopSampler(model, scheduler, guidance=CFG(3.0))
        both = sampler.sample(TextToImage(BOTH, "bad", 16, 24), seeds=SEEDS, steps=3).latents
        alone = sampler.sample(TextToImage(PIZZA, "bad", 16, 24), seeds=1, steps=3).latents
        assert (both[1] - alone[0]).abs().max() < 1e-5 * both.std()


@pytest.mark.parametrize("parity", [True, False])
def test_the_linter_and_probes_know_its_shift(flux: Path, parity: bool) -> None:
    """Of a scheduler whose levels depend on the picture's size; where no model says for which, it is that of large ones."""
    known = outline(str(flux))
    assert known is not None
    for schedule in (known.schedule, None):
        found = lint("model", None, known.scheduler_config, 3, parity=parity, schedule=schedule)
        assert not [finding for finding in found if finding.severity == "error"]
    solver = SolverFactory("model", None, known.scheduler_config, parity=parity, schedule=known.schedule)()
    assert {"first-order", "deterministic"} <= solver.supports


def test_a_class_with_a_shift_of_its_own_is_told_none(model: BaseModel) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    task = TextToImage(FOX, None, 16, 16)
    assert LoopSampler(model, scheduler).sample(task, seeds=5, steps=2).nfe == 2
    with pytest.raises(ConfigError, match="cannot make 2 steps"):  # nor can its pipeline
        LoopSampler(model, scheduler, parity=True).sample(task, seeds=5, steps=2)


def test_what_cannot_work_is_told_before_weights_load(flux: Path, model: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task.height: found 18; accepted is a positive multiple of 4"):
        LoopSampler(model).sample(TextToImage(FOX, None, 18, 16), seeds=1, steps=2)
    with pytest.raises(ConfigError, match=r"^task.negative_prompt: found 'bad'; .* without CFG"):
        LoopSampler(model).sample(TextToImage(FOX, "bad", 16, 16), seeds=1, steps=2)
    for file in flux.rglob("*"):
        if file.is_file():
            (tmp_path / file.relative_to(flux)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.relative_to(flux)).symlink_to(file)
    index = tmp_path / "model_index.json"
    index.unlink()
    index.write_bytes((flux / "model_index.json").read_bytes())
    edit_json(index, text_encoder_2=[None, None])
    with pytest.raises(ModelError, match="text_encoder_2"):
        load_model(tmp_path)


def test_outline_and_inspection(flux: Path, flux_schnell: Path, model: BaseModel) -> None:
    model.choose()
    assert model.distilled_guidance == 3.5
    assert_outlined(flux, model)
    assert_outlined(flux_schnell, load_model(flux_schnell, dtype="float32", device="cpu"))
    found = inspect_model(flux)
    assert (found.verdict, found.family) == ("safe", "flux")
    model.choose(max_sequence_length=16)
    assert model.condition([FOX]).embeds.shape[1] == 16
