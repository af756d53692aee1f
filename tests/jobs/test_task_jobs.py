"""Every task as a job: its pictures, its files, and who it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.tiny_models import save_tiny_pixel, save_tiny_sd

from research import LoopSampler, load_model
from research.cli import run
from research.guidance import CFG
from research.jobs import checkpoint
from research.jobs.signals import Interrupted
from research.tasks import ImageToImage


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task-models")
    for role in ("text", "inpaint", "depth"):
        save_tiny_sd(folder / role, role=role)
    save_tiny_pixel(folder / "pixel")
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"{name}.png")
    half = np.zeros((16, 16), dtype=np.uint8)
    half[:, 8:] = 255
    Image.fromarray(half).save("mask.png")
    return tmp_path


def job(models: Path, role: str, *lines: str, code: int = 0) -> dict[str, Any]:
    """Run one job in a sweep of its own and return its result."""
    base = [f"model.path={models / role}", "tracker=none", "metrics=none", "steps=4", "runtime.threads=1"]
    name = f"sweep_name=s{len(list(Path().glob('outputs/*')))}"
    assert run([*base, "prompts=[fox,owl]", "scheduler=ddim", *lines, name]) == code
    (file,) = Path("outputs", name.partition("=")[2]).glob("*/result.json")
    return {**json.loads(file.read_text()), "folder": file.parent}


def pixels(result: dict[str, Any], k: int) -> np.ndarray:
    return np.asarray(Image.open(result["folder"] / result["images"][k]["file"]))


def test_image_to_image_gives_each_image_its_own_picture(models, here):
    lines = ["task=image_to_image", "task.image=[a.png,b.png]", "task.strength=0.5", "guidance.scale=3"]
    together, cut = (job(models, "text", *lines, f"batch_size={size}") for size in (2, 1))
    model = load_model(models / "text", dtype="float32", device="cpu")
    task = ImageToImage(["fox", "owl"], ["a.png", "b.png"], 0.5)
    wanted = LoopSampler(model, "ddim", guidance=CFG(3.0)).sample(task, seeds=[0, 1], steps=4)
    for k in range(2):
        assert np.array_equal(pixels(together, k), np.asarray(wanted.images[k]))
        assert np.abs(pixels(cut, k).astype(int) - pixels(together, k)).max() <= 1
    assert together["nfe"] == 4  # half of four steps, two branches
    with Image.open(together["folder"] / together["pictures"]["before_after"]) as sheet:
        assert sheet.size == (2 * 132 + 4, 2 * 132 + 4)


@pytest.mark.slow
def test_a_picture_counts_by_its_content(models, here):
    lines = ["task=image_to_image", "task.strength=0.5"]
    relative = job(models, "text", *lines, "task.image=a.png")
    shutil.copy("a.png", "copy.png")
    absolute = job(models, "text", *lines, f"task.image={here / 'copy.png'}")
    other = job(models, "text", *lines, "task.image=b.png")
    assert relative["job_id"] == absolute["job_id"] != other["job_id"]
    # the same name with something else in it is another job
    shutil.copy("b.png", "copy.png")
    assert job(models, "text", *lines, f"task.image={here / 'copy.png'}")["job_id"] == other["job_id"]


@pytest.mark.parametrize("role", ["text", "inpaint"])
@pytest.mark.spread(1)
def test_inpainting_keeps_what_the_mask_keeps(models, here, role):
    found = job(models, role, "task=inpaint", "task.image=a.png", "task.mask=mask.png")
    before = np.asarray(Image.open("a.png"))
    for k in range(2):
        assert np.array_equal(pixels(found, k)[:, :8], before[:, :8])
        assert not np.array_equal(pixels(found, k)[:, 8:], before[:, 8:])
    assert set(found["pictures"]) == {"before_mask_after"}


@pytest.mark.slow
def test_depth_to_image_estimates_its_map(models, here):
    found = job(models, "depth", "task=depth_to_image", "task.image=a.png", "task.strength=0.75")
    given = job(
        models, "depth", "task=depth_to_image", "task.image=a.png", "task.strength=0.75", "task.depth_map=mask.png"
    )
    assert found["status"] == given["status"] == "done"
    assert not np.array_equal(pixels(found, 0), pixels(given, 0))
    assert set(found["pictures"]) == {"before_depth_after"}


@pytest.mark.slow
def test_interpolation_makes_frames_a_strip_and_an_animation(models, here):
    lines = ["task=interpolation", "task.start_seed=3", "task.end_seed=5", "task.frames=4"]
    found = job(models, "text", *lines, "batch_size=3")
    assert [entry["prompt"] for entry in found["images"]] == ["fox", "fox", "owl", "owl"]
    assert found["seeds"] == [3] * 4
    with Image.open(found["folder"] / found["pictures"]["animation"]) as animation:
        assert (animation.format, animation.n_frames) == ("GIF", 6)  # there and back
    with Image.open(found["folder"] / found["pictures"]["strip"]) as strip:
        assert strip.width == 4 * 132 + 4
    single = job(models, "text", "prompts=[fox]", "seed=3")
    assert np.abs(pixels(single, 0).astype(int) - pixels(found, 0)).max() <= 1


def test_interpolation_of_a_model_without_text(models, here):
    found = job(models, "pixel", "task=interpolation", "task.frames=3", "guidance=none")
    assert found["n_images"] == 3
    assert all(entry["prompt"] is None for entry in found["images"])


@pytest.mark.slow
def test_inversion_reports_what_was_lost(models, here):
    lines = ["task=inversion", "task.image=[a.png,b.png]", "guidance=none"]
    few, many = (job(models, "text", *lines, f"steps={steps}") for steps in (4, 40))
    assert many["metrics"]["inversion_latent_mse"] < few["metrics"]["inversion_latent_mse"]
    assert {"inversion_psnr", "vae_psnr", "inverted_noise_std"} <= many["metrics"].keys()
    each = [entry["scores"]["inversion_latent_mse"] for entry in few["images"]]
    assert np.isclose(np.mean(each), few["metrics"]["inversion_latent_mse"])
    assert few["nfe"] == 8


def test_strength_zero_gives_the_picture_back(models, here):
    found = job(models, "text", "task=image_to_image", "task.image=a.png", "task.strength=0")
    assert np.array_equal(pixels(found, 0), np.asarray(Image.open("a.png")))
    assert found["nfe"] == 0


@pytest.mark.slow
def test_a_mask_as_a_hook(models, here):
    lines = ["hooks=mask_composite", "hooks.mask_composite.image=a.png", "hooks.mask_composite.mask=mask.png"]
    assert not np.array_equal(pixels(job(models, "text", *lines), 0), pixels(job(models, "text"), 0))


def test_what_is_said_about_pictures_is_kept(models, here):
    Image.new("L", (20, 20)).save("black.png")
    found = job(models, "text", "task=inpaint", "task.image=a.png", "task.mask=black.png")
    assert any("all black" in message for message in found["warnings"])
    assert any("resized from 20 x 20 to 16 x 16" in message for message in found["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("task", ["image_to_image", "inpaint", "depth_to_image", "inversion"])
@pytest.mark.spread(1)
def test_a_job_stopped_between_batches_shows_what_an_undisturbed_one_shows(models, here, monkeypatch, task, after):
    role = "depth" if task == "depth_to_image" else "text"
    lines = [f"task={task}", "task.image=[a.png,b.png]", "batch_size=1", *["task.mask=mask.png"] * (task == "inpaint")]
    undisturbed = job(models, role, *lines)

    def stop(folder: Path, seen: list[Path] = []) -> None:  # noqa: B006 - it counts
        seen.append(folder)
        if len(seen) == after:
            raise Interrupted("asked to stop")

    name = "sweep_name=stopped"
    base = [f"model.path={models / role}", "tracker=none", "metrics=none", "steps=4", "runtime.threads=1"]
    again = [*base, "prompts=[fox,owl]", "scheduler=ddim", *lines, name]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "check", stop)
        assert run(again) == 130
    assert run(again) == 0
    (file,) = Path("outputs", "stopped").glob("*/result.json")
    found = {**json.loads(file.read_text()), "folder": file.parent}
    assert [i["sha256"] for i in found["images"]] == [i["sha256"] for i in undisturbed["images"]]
    for shown, file in undisturbed["pictures"].items():
        one, other = (np.asarray(Image.open(r["folder"] / file)) for r in (found, undisturbed))
        assert np.array_equal(one, other), shown
