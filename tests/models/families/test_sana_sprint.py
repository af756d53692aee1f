"""Sana-Sprint: trigonometric flow, equal to its pipelines bit for bit, and walked by solvers of the project's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from models.families.parity import FOX, PIZZA, assert_outlined, by_pipeline, opened, picture, pixels

from research import LoopSampler, load_model
from research.errors import ConfigError
from research.models import BaseModel
from research.models.inspect.inspect_model import inspect_model
from research.sigmas import Given
from research.solvers.trigflow import TRIGFLOW, angle_of
from research.tasks import ImageToImage, TextToImage
from research.testing.random_pipelines import save_sana

BOTH, SEEDS, SIZE = [FOX, PIZZA], [0, 1], (64, 32)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sana(tmp_path_factory.mktemp("models") / "sana-sprint", sprint=True)


@pytest.fixture(scope="module")
def model(directory: Path) -> BaseModel:
    return load_model(directory, dtype="float32", device="cpu")


def told(steps: int, scale: float = 4.5) -> dict[str, object]:
    middle = 1.3 if steps == 2 else None
    return {
        "guidance_scale": scale, "height": SIZE[0], "width": SIZE[1], "num_inference_steps": steps,
        "intermediate_timesteps": middle, "use_resolution_binning": False,
    }  # fmt: skip


@pytest.mark.spread(1)
@pytest.mark.parametrize(("steps", "scale", "spread"), [(1, 4.5, 0.5), (2, 4.5, 0.5), (4, 1.5, 0.3)])
def test_text_to_image(directory: Path, model: BaseModel, steps: int, scale: float, spread: float) -> None:
    model.choose(distilled_guidance=scale)
    pipe = opened(directory)
    pipe.scheduler.register_to_config(sigma_data=spread)
    sampler = LoopSampler(model, "model", {"sigma_data": spread}, parity=True)
    got = sampler.sample(TextToImage(BOTH, None, *SIZE), seeds=SEEDS, steps=steps)
    assert torch.equal(got.latents, by_pipeline(pipe, SEEDS, prompt=BOTH, **told(steps, scale)))
    assert pixels(got.images) == pixels(by_pipeline(pipe, SEEDS, prompt=BOTH, output_type="pil", **told(steps, scale)))
    assert got.nfe == steps


@pytest.mark.spread(1)
@pytest.mark.parametrize("strength", [0.55, 1.0])
def test_image_to_image(directory: Path, model: BaseModel, strength: float) -> None:
    model.choose()
    images = [picture(*SIZE, seed) for seed in SEEDS]
    sampler = LoopSampler(model, parity=True)
    got = sampler.sample(ImageToImage(BOTH, images, strength, None, *SIZE), seeds=SEEDS, steps=4)
    pipe = opened(directory, "SanaSprintImg2ImgPipeline")
    want = by_pipeline(pipe, SEEDS, prompt=BOTH, image=images, strength=strength, **told(4))
    assert torch.equal(got.latents, want)


@pytest.mark.slow
def test_its_own_solver_visits_the_same_angles(model: BaseModel) -> None:
    """Without parity latents have squares that add to 1; one step is the pipeline's but for rounding and the 4e-6 by which it
    begins beyond pi / 2."""
    model.choose()
    task = TextToImage(BOTH, None, *SIZE)
    ours, theirs = (LoopSampler(model, parity=parity).sample(task, seeds=SEEDS, steps=1) for parity in (False, True))
    assert (ours.latents - theirs.latents).abs().max() < 1e-4 * theirs.latents.std()
    for steps, angles in ((2, (math.pi / 2, 1.3)), (4, (math.pi / 2 * part for part in (1, 0.75, 0.5, 0.25)))):
        stages = LoopSampler(model)._new_solver().timeline(steps)
        assert [angle_of(stage.time) for stage in stages] == pytest.approx(list(angles), abs=1e-6)
        assert [math.hypot(stage.signal, stage.noise) for stage in stages] == pytest.approx([1.0] * steps)
    times = [TRIGFLOW.at_time(time) for time in (0, 499.5, 999)]
    assert [TRIGFLOW.at_sigma(level.sigma).time for level in times] == pytest.approx([0, 499.5, 999])


@pytest.mark.spread(1)
@pytest.mark.parametrize("scheduler", ["euler", "dpmpp_2m", "ddim", "lcm", "SCMScheduler"])
def test_other_solvers_walk_it(model: BaseModel, scheduler: str) -> None:
    model.choose()
    sampler = LoopSampler(model, scheduler)
    both = sampler.sample(TextToImage(BOTH, None, *SIZE), seeds=SEEDS, steps=3).latents
    alone = sampler.sample(TextToImage(PIZZA, None, *SIZE), seeds=1, steps=3).latents
    assert (both[1] - alone[0]).abs().max() < 1e-5 * both.std()


def test_what_cannot_walk_it_is_refused(model: BaseModel) -> None:
    model.choose()
    for scheduler, parity in (("ddim", True), ("EDMEulerScheduler", False), ("flow_euler", False)):
        with pytest.raises(ConfigError, match=r"scheduler: .* (trigonometric flow|predicts trigflow)"):
            LoopSampler(model, scheduler, parity=parity)
    with pytest.raises(ConfigError, match=r"scheduler: SCMScheduler is for models of trigonometric flow"):
        LoopSampler(load_model("emoji", dtype="float32", device="cpu"), "SCMScheduler")
    with pytest.raises(ConfigError, match=r"task.negative_prompt: found 'bad'; sana-sprint has its guidance distilled"):
        LoopSampler(model).sample(TextToImage(FOX, "bad", *SIZE), seeds=1, steps=2)


def test_angles_of_ones_own(model: BaseModel) -> None:
    model.choose()
    sigmas = Given(sigmas=[math.tan(1.5), math.tan(1.0)])
    task = TextToImage(FOX, None, *SIZE)
    ours, theirs = (
        LoopSampler(model, sigmas=sigmas, parity=parity).sample(task, seeds=3, steps=2).latents
        for parity in (False, True)
    )
    assert ours.isfinite().all()
    assert theirs.isfinite().all()
    stages = LoopSampler(model, sigmas=sigmas, parity=True)._new_solver().timeline(2)
    assert [stage.time for stage in stages] == pytest.approx([1.5, 1.0])


def test_outline_and_inspection(directory: Path, model: BaseModel) -> None:
    model.choose()
    assert_outlined(directory, model)
    found = inspect_model(directory)
    assert (found.verdict, found.family) == ("safe", "sana-sprint")
