"""AuraFlow: equal to its pipeline bit for bit, alone as in a batch, and told from its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.families.parity import FOX, PIZZA, assert_outlined, by_pipeline, opened, pixels

from research import LoopSampler, load_model
from research.guidance import CFG
from research.models import BaseModel
from research.models.inspect.inspect_model import inspect_model
from research.tasks import TextToImage
from research.testing.random_pipelines import save_auraflow

BOTH, SEEDS, SIZE = [FOX, PIZZA], [0, 1], (24, 16)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_auraflow(tmp_path_factory.mktemp("models") / "auraflow")


@pytest.fixture(scope="module")
def model(directory: Path) -> BaseModel:
    return load_model(directory, dtype="float32", device="cpu")


SETTINGS = {
    "negative prompts": (BOTH, ["bad", "worse"], 3.0, "model"),
    "another scheduler": (BOTH, None, 3.0, "flow_heun"),
    "no guidance": (BOTH, None, 1.0, "model"),
}


@pytest.mark.spread(1)
@pytest.mark.parametrize("setting", SETTINGS)
def test_text_to_image(directory: Path, model: BaseModel, setting: str) -> None:
    prompts, negative, scale, scheduler = SETTINGS[setting]
    told = {"prompt": prompts, "guidance_scale": scale, "height": SIZE[0], "width": SIZE[1], "num_inference_steps": 3}
    if negative:
        told["negative_prompt"] = negative
    guidance = CFG(scale)
    sampler = LoopSampler(model, scheduler, guidance=guidance, parity=True)
    got = sampler.sample(TextToImage(prompts, negative, *SIZE), seeds=SEEDS, steps=3)
    pipe = opened(directory)
    assert torch.equal(got.latents, by_pipeline(pipe, SEEDS, model, scheduler, **told))
    assert pixels(got.images) == pixels(by_pipeline(pipe, SEEDS, model, scheduler, output_type="pil", **told))


def test_alone_as_in_a_batch(model: BaseModel) -> None:
    sampler = LoopSampler(model, guidance=CFG(3.0))
    both = sampler.sample(TextToImage(BOTH, "bad", *SIZE), seeds=SEEDS, steps=2).latents
    alone = sampler.sample(TextToImage(PIZZA, "bad", *SIZE), seeds=1, steps=2).latents
    assert (both[1] - alone[0]).abs().max() < 1e-5 * both.std()


def test_outline_and_inspection(directory: Path, model: BaseModel) -> None:
    assert_outlined(directory, model)
    found = inspect_model(directory)
    assert (found.verdict, found.family) == ("safe", "auraflow")
