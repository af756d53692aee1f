"""DiT: equal to its pipeline bit for bit; classes, the null class among them, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models.families.parity import assert_outlined, by_pipeline, opened

from research import LoopSampler, load_model
from research.errors import ConfigError
from research.guidance import CFG
from research.models import BaseModel
from research.models.inspect.inspect_model import inspect_model
from research.tasks import Unconditional
from research.testing.random_pipelines import save_dit


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dit(tmp_path_factory.mktemp("models") / "dit")


@pytest.fixture(scope="module")
def model(directory: Path) -> BaseModel:
    return load_model(directory, dtype="float32", device="cpu")


@pytest.mark.parametrize(("scale", "scheduler"), [(4.0, "model"), (1.0, "model"), (3.0, "dpmpp_2m")])
def test_pictures(directory: Path, model: BaseModel, scale: float, scheduler: str) -> None:
    """The pipeline hands out no latents."""
    sampler = LoopSampler(model, scheduler, guidance=CFG(scale), parity=True)
    got = sampler.sample(Unconditional([3, 7]), seeds=[0, 1], steps=3)
    told = {"class_labels": [3, 7], "guidance_scale": scale, "num_inference_steps": 3, "output_type": "pil"}
    want = by_pipeline(opened(directory), [0, 1], model, scheduler, **told)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(got.images, want, strict=True))


def test_alone_as_in_a_batch(model: BaseModel) -> None:
    sampler = LoopSampler(model, "euler", guidance=CFG(3.0))
    both = sampler.sample(Unconditional([3, 7]), seeds=[0, 1], steps=2).latents
    alone = sampler.sample(Unconditional(7), seeds=1, steps=2).latents
    assert (both[1] - alone[0]).abs().max() < 1e-5 * both.std()


def test_the_null_class_is_the_one_after_the_last(tmp_path: Path) -> None:
    few = load_model(save_dit(tmp_path, classes=5), dtype="float32", device="cpu")
    assert few.null_class == 5
    LoopSampler(few, guidance=CFG(3.0)).sample(Unconditional(4), seeds=0, steps=1)
    with pytest.raises(ConfigError, match="0 to 4"):
        LoopSampler(few).sample(Unconditional(5), seeds=0, steps=1)


@pytest.mark.parametrize(("scheduler", "why"), [("euler", "neither scales its noise"), ("ddpm", "adds noise")])
def test_what_parity_cannot_be(model: BaseModel, scheduler: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        LoopSampler(model, scheduler, parity=True)


def test_outline_and_inspection(directory: Path, model: BaseModel) -> None:
    assert_outlined(directory, model)
    found = inspect_model(directory)
    assert (found.verdict, found.family) == ("safe", "dit")
