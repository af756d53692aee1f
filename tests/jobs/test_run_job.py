"""A job from its config to its files, on a real pipeline with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.small_jobs import settings_of, working_folder

from research.cli import run
from research.jobs import recipe

PLUGS = """
from research import Hook
from research.guidance import CFG

class Fails(CFG):
    def combine(self, state, predictions):
        raise RuntimeError("no luck")

class NotANumber(Hook):
    def __init__(self, at: int = 1):
        self.at = at
    def post_step(self, state):
        if state.stage.index == self.at:
            state.x = state.x * float("nan")

class Notes(Hook):
    def post_step(self, state):
        state.run.trace.setdefault("mean", []).append(state.x.mean())
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch, "plugs_of_mine", PLUGS)


@pytest.fixture
def base(tiny_sd: Path) -> list[str]:
    return settings_of(tiny_sd)


def only_result(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("outputs/*/*/result.json")
    return json.loads(file.read_text(encoding="utf-8"))


def pixels(folder: Path, result: dict[str, Any]) -> list[np.ndarray]:
    where = folder / "outputs" / result["sweep_name"] / result["job_id"]
    return [np.asarray(Image.open(where / entry["file"])) for entry in result["images"]]


def test_a_job_leaves_its_record(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*base, "images_per_prompt=2", "seed=5", "batch_size=3"]) == 0
    shown = capsys.readouterr()
    result = only_result(here)
    assert result["status"] == "done"
    assert result["error"] is None
    assert result["seeds"] == [5, 6, 7, 8]
    assert [entry["prompt"] for entry in result["images"]] == ["fox", "fox", "owl", "owl"]
    assert result["n_images"] == 4
    assert result["nfe"] == 6
    assert result["nfe_by_branch"] == {"uncond": 3, "cond": 3}
    assert result["config"]["steps"] == 3
    assert result["config"]["guidance"]["scale"] == 3.0
    assert set(result["timings"]) == {"load", "encode", "denoise", "decode", "metrics", "total"}
    assert result["timings"]["total"] >= result["timings"]["denoise"] > 0
    assert result["peak_memory_bytes"] > 0
    assert result["device"] == "cpu"
    assert result["versions"]["torch"]
    assert "steps=3" in result["overrides"]
    folder = here / "outputs" / "default" / result["job_id"]
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml", "images", "result.json", "trace.json"]
    assert [s["step"] for s in json.loads((folder / "trace.json").read_text())["stages"]] == [0, 1, 2]
    assert sorted(p.name for p in (here / "outputs").rglob("*.png"))[0] == "00000_seed5.png"
    assert "6 NFE" in shown.out
    assert str(folder.relative_to(here) / "images") in shown.out
    assert sorted(p.name for p in here.iterdir() if p.suffix != ".py" and p.name != "__pycache__") == ["outputs"]


def test_python_and_command_give_the_same_images(here: Path, base: list[str], tiny_sd: Path) -> None:
    from research import LoopSampler, load_model
    from research.guidance import CFG
    from research.tasks import TextToImage

    assert run([*base, "images_per_prompt=2", "seed=5", "scheduler=euler_a", "batch_size=3"]) == 0
    sampler = LoopSampler(load_model(str(tiny_sd)), scheduler="euler_a", guidance=CFG(3.0))
    expected = sampler.sample(TextToImage(["fox", "fox", "owl", "owl"]), seeds=[5, 6, 7, 8], steps=3, batch_size=3)
    for found, image in zip(pixels(here, only_result(here)), expected.images, strict=True):
        assert np.array_equal(found, np.asarray(image))


def test_an_image_is_made_again_from_what_it_carries(here: Path, base: list[str]) -> None:
    from hydra.utils import instantiate

    from research import LoopSampler, load_model
    from research.solvers import SchedulerSpec
    from research.tasks import TextToImage

    assert run([*base, "scheduler.options.eta=0.5", "task.negative_prompt=dull"]) == 0
    (file,) = here.glob("outputs/*/*/images/00001_seed1.png")
    said = recipe(file)
    model = load_model(said["model"]["path"], dtype=said["model"]["dtype"])
    assert model.weights_sha256 == said["model"]["weights_sha256"]
    sampler = LoopSampler(model, SchedulerSpec(**said["scheduler"]), guidance=instantiate(said["guidance"]))
    task = TextToImage(said["prompt"], negative_prompt=said["negative_prompt"])
    again = sampler.sample(task, seeds=[said["seed"]], steps=said["steps"]).images[0]
    # alone and not in a batch of two: equal but for the last bit of a rounded pixel
    assert np.abs(np.asarray(again, int) - np.asarray(Image.open(file), int)).max() <= 1


def test_done_jobs_are_reused(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(base) == 0
    before = only_result(here)
    assert run([*base, "batch_size=1", "runtime.progress=lines"]) == 0
    assert "1 of 1 job done before and reused" in capsys.readouterr().err
    assert only_result(here) == before
    assert run([*base, "resume=false", "batch_size=2"]) == 0
    again = only_result(here)
    assert again["config"]["batch_size"] == 2
    assert again["images"] == before["images"]


def test_a_failed_job_is_kept_with_its_stack(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*base, "guidance._target_=plugs_of_mine.Fails"]) == 1
    shown = capsys.readouterr().err
    result = only_result(here)
    assert result["status"] == "failed"
    assert result["error"].startswith("RuntimeError: no luck")
    assert result["images"] == []
    assert "failed: RuntimeError: no luck" in shown
    assert "Traceback" not in shown
    folder = here / "outputs" / "default" / result["job_id"]
    assert "no luck" in (folder / "traceback.txt").read_text()


def test_latents_that_are_no_numbers_fail_the_job(here: Path, base: list[str]) -> None:
    assert run([*base, "+hooks.bad._target_=plugs_of_mine.NotANumber", "hooks.bad.at=2"]) == 1
    result = only_result(here)
    assert "not finite" in result["error"]
    assert "stage 2" in result["error"]
    assert not list(here.rglob("*.png"))


def test_what_hooks_record_is_in_the_trace(here: Path, base: list[str]) -> None:
    assert run([*base, "+hooks.notes._target_=plugs_of_mine.Notes", "batch_size=1"]) == 0
    (file,) = here.glob("outputs/*/*/trace.json")
    trace = json.loads(file.read_text())
    assert len(trace["mean"]) == 3
    assert all(isinstance(value, float) for value in trace["mean"])
    assert len(trace["batches"]) == 1


def test_plugs_from_a_config_folder(here: Path, base: list[str]) -> None:
    (here / "mine" / "hooks").mkdir(parents=True)
    (here / "mine" / "hooks" / "notes.yaml").write_text("notes:\n  _target_: plugs_of_mine.Notes\n")
    assert run(["--config-dir", "mine", *base, "hooks=[notes]"]) == 0
    assert only_result(here)["config"]["hooks"] == {"notes": {"_target_": "plugs_of_mine.Notes"}}


def test_long_prompts_are_recorded(here: Path, base: list[str]) -> None:
    long = " ".join(["zebra"] * 100)
    assert run([*base, f"prompts=[{long}]"]) == 0
    result = only_result(here)
    assert result["truncated"][0]["prompt"] == long
    assert any("longer than" in warning for warning in result["warnings"])


def test_odd_prompts_reach_the_images(here: Path, base: list[str]) -> None:
    prompts = ["a fox, in snow", 'the "quoted" = ${one}', "été 雪: it's"]
    written = json.dumps([p.replace("${", "\\${") for p in prompts], ensure_ascii=False).replace("\\\\$", "\\$")
    assert run([*base, f"prompts={written}"]) == 0
    assert [entry["prompt"] for entry in only_result(here)["images"]] == prompts


@pytest.mark.slow
def test_one_setting_an_image_is_split_over_batches(here: Path, base: list[str]) -> None:
    assert run([*base, "task.negative_prompt=[dull,dark]", "batch_size=1"]) == 0
    together = pixels(here, only_result(here))
    assert run([*base, "task.negative_prompt=[dull,dark]", "batch_size=2", "resume=false"]) == 0
    for one, both in zip(together, pixels(here, only_result(here)), strict=True):
        assert np.abs(one.astype(int) - both.astype(int)).max() <= 1
