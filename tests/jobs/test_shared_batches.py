"""Jobs that differ in guidance.scale alone are sampled as one batch, and come out as each alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.small_jobs import settings_of, working_folder

from research import caches
from research.cli import run
from research.jobs.job import Job
from research.jobs.shared_batches import SharedBatches, by_cost
from research.jobs.store import JobFolder

PLUGS = """
from research import Hook
from research.guidance import CFG

class Mine(CFG):
    def combine(self, state, predictions):
        if self.scale > 2:  # a number, and not one an image
            return super().combine(state, predictions)
        return super().combine(state, predictions)

class Fails(CFG):
    def vectorises(self):
        return True
    def combine(self, state, predictions):
        if not isinstance(self.scale, float) or self.scale == 3:
            raise RuntimeError("no luck")
        return super().combine(state, predictions)

class Recorder(Hook):
    def post_step(self, state):
        state.run.trace.setdefault("mean", []).append(float(state.x.mean()))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch, "together_plugs", PLUGS)


@pytest.fixture
def base(tiny_sd: Path) -> list[str]:
    return settings_of(tiny_sd)


def results(sweep: str) -> dict[float, dict[str, Any]]:
    """By scale."""
    found = [json.loads(file.read_text()) for file in Path("outputs", sweep).glob("*/result.json")]
    return {result["config"]["guidance"]["scale"]: result for result in found}


def pixels(result: dict[str, Any]) -> np.ndarray:
    folder = Path("outputs", result["sweep_name"], result["job_id"])
    return np.stack([np.asarray(Image.open(folder / entry["file"]), dtype=int) for entry in result["images"]])


def compare(lines: list[str]) -> tuple[dict[float, dict[str, Any]], dict[float, dict[str, Any]]]:
    """The same sweep together and each job alone; their images agree to a level of 255."""
    assert run(["-m", *lines, "sweep_name=together"]) == 0
    assert run(["-m", *lines, "sweep_name=alone", "runtime.vectorise=off"]) == 0
    together, alone = results("together"), results("alone")
    assert together.keys() == alone.keys()
    for scale, result in together.items():
        other = alone[scale]
        assert result["job_id"] == other["job_id"]
        assert np.abs(pixels(result) - pixels(other)).max() <= 1
        for key in ("nfe", "nfe_by_branch", "seeds", "n_images", "weights_sha256", "warnings", "truncated"):
            assert result[key] == other[key], key
        assert [e["file"] for e in result["images"]] == [e["file"] for e in other["images"]]
        assert other["together"] == []
    return together, alone


def test_each_job_of_a_batch_equals_the_job_alone(here: Path, base: list[str]) -> None:
    lines = [*base, "guidance.scale=1,1.5,3,7.5", "images_per_prompt=2", "scheduler=euler_a"]
    together, _ = compare(lines)
    ids = [together[scale]["job_id"] for scale in (1.5, 3, 7.5)]
    assert [together[scale]["together"] for scale in (1.5, 3, 7.5)] == [ids] * 3
    assert together[1]["together"] == []  # needs no unconditional prediction
    assert together[1]["nfe"] == 3
    assert together[3]["nfe"] == 6
    assert not np.array_equal(pixels(together[1.5]), pixels(together[7.5]))


@pytest.mark.parametrize(
    "more",
    [
        ["guidance=apg", "guidance/modifiers=[rescale]"],
        ["guidance=cfg_zero", "guidance/modifiers=[interval]"],
        ["guidance=fdg", "guidance/modifiers=[schedule]"],
        ["task=image_to_image", "task.image=zoo:pizza", "scheduler=dpmpp_2m", "steps=5"],
    ],
    ids=lambda more: more[0],
)
@pytest.mark.spread(1)
def test_methods_and_tasks(here: Path, base: list[str], more: list[str]) -> None:
    together, _ = compare([*base, "guidance.scale=2,5", *more])
    assert [len(result["together"]) for result in together.values()] == [2, 2]


@pytest.mark.slow
def test_the_time_is_shared_out(here: Path, base: list[str]) -> None:
    caches.clear()
    together, alone = compare([*base, "guidance.scale=1.5,2,3,4,5,6"])
    timings = [together[scale]["timings"] for scale in (1.5, 2, 3, 4, 5, 6)]
    # of one batch of equal parts everyone has the same
    assert len({t["denoise"] for t in timings}) == 1
    assert all(t["total"] >= t["denoise"] + t["decode"] > 0 for t in timings)
    assert all(result["batch_size"] == 12 for result in together.values())
    assert all(result["batch_size"] == 2 for result in alone.values())
    first, second = (together[scale]["caches"] for scale in (1.5, 6))
    assert first["models"]["misses"] == 1
    assert "models" not in second or second["models"]["misses"] == 0


@pytest.mark.slow
def test_a_kill_between_the_results_of_a_batch(here: Path, base: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was sampled with the others stays, so that no image is made in another batch, bit by bit."""
    lines = ["-m", *base, "guidance.scale=2,3,5"]
    assert run([*lines, "sweep_name=whole"]) == 0
    real, written = JobFolder.write_result, []

    def killed_at_the_second(self: JobFolder, result: dict[str, Any]) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(self.path)
        real(self, result)

    with monkeypatch.context() as patched:
        patched.setattr(JobFolder, "write_result", killed_at_the_second)
        assert run([*lines, "sweep_name=cut"]) == 130
    assert len(results("cut")) == 1
    made = {file: file.stat().st_mtime_ns for file in here.glob("outputs/cut/*/images/*.png")}
    assert len(made) == 6
    assert run([*lines, "sweep_name=cut"]) == 0
    whole, cut = results("whole"), results("cut")
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert not list(here.glob("outputs/cut/*/partial.json"))
    for scale, result in whole.items():
        assert [e["sha256"] for e in result["images"]] == [e["sha256"] for e in cut[scale]["images"]]
        assert result["together"] == cut[scale]["together"]
        assert result["nfe"] == cut[scale]["nfe"]


@pytest.mark.slow
def test_batches_smaller_than_the_unit(here: Path, base: list[str]) -> None:
    together, _ = compare([*base, "guidance.scale=1.5,2,3", "batch_size=4"])
    ids = [together[scale]["job_id"] for scale in (1.5, 2, 3)]
    assert together[1.5]["together"] == ids[:2]
    assert together[3]["together"] == []  # as many as make a batch: two jobs of two images
    assert together[3]["batch_size"] == 2


@pytest.mark.slow
def test_plugs_that_do_not_say_so_run_alone(here: Path, base: list[str]) -> None:
    mine = ["guidance._target_=together_plugs.Mine", "guidance.scale=2,5", "sweep_name=mine"]
    assert run(["-m", *base, *mine]) == 0
    assert [result["together"] for result in results("mine").values()] == [[], []]
    hook = ["+hooks.mine._target_=together_plugs.Recorder", "guidance.scale=2,5", "sweep_name=hook"]
    assert run(["-m", *base, *hook]) == 0
    assert [result["together"] for result in results("hook").values()] == [[], []]
    assert run(["-m", *base, "guidance.scale=2,5", "runtime=parity", "sweep_name=parity"]) == 0
    assert [result["together"] for result in results("parity").values()] == [[], []]


def test_jobs_that_fail_together_run_alone(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-m", *base, "guidance._target_=together_plugs.Fails", "guidance.scale=2,3,5"]) != 0
    found = results("default")
    assert {scale: result["status"] for scale, result in found.items()} == {2: "done", 3: "failed", 5: "done"}
    assert "no luck" in found[3]["error"]
    assert "each is run by itself" in capsys.readouterr().err
    assert found[2]["together"] == []


@pytest.mark.slow
def test_the_tasks_pictures_are_of_each_job(here: Path, base: list[str]) -> None:
    lines = [*base, "guidance.scale=2,5", "task=image_to_image", "task.image=zoo:pizza"]
    together, alone = compare(lines)
    for scale, result in together.items():
        sheets = [
            Path("outputs", r["sweep_name"], r["job_id"], r["pictures"]["before_after"]) for r in (result, alone[scale])
        ]
        shown = [np.asarray(Image.open(sheet), dtype=int) for sheet in sheets]
        assert np.abs(shown[0] - shown[1]).max() <= 1


def job(number: int, **changes: Any) -> Job:
    config: dict[str, Any] = {
        "model": {"path": changes.pop("path", "emoji"), "dtype": changes.pop("dtype", "float32")},
        "guidance": {"_target_": "research.guidance.CFG", "scale": 3.0},
        "runtime": {"vectorise": "off"},
        "output_dir": "nowhere",
        "sweep_name": "none",
        **changes,
    }
    return Job(config, [], f"{number:012d}", [], f"{number:064d}")


def test_what_costs_most_changes_least() -> None:
    models = [("a", "fp32"), ("b", "fp32"), ("a", "fp16"), ("b", "fp16"), ("a", "fp32"), ("b", "fp32")]
    jobs = [job(k, path=path, dtype=dtype) for k, (path, dtype) in enumerate(models)]
    assert [int(j.id) for j in by_cost(jobs)] == [0, 4, 2, 1, 5, 3]
    assert [[int(j.id) for j in unit] for unit in SharedBatches().units(jobs)] == [[0], [4], [2], [1], [5], [3]]


@pytest.mark.slow
def test_a_job_that_was_cut_short_in_a_batch_goes_on(
    here: Path, base: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the first of several batches: complete jobs are done, that with a part goes on, the rest starts."""
    from research.jobs import checkpoint, run_job, signals

    lines = ["-m", *base, "guidance.scale=1.5,2,3", "images_per_prompt=2", "sweep_name=cut"]

    def stop(folder: Path) -> None:
        raise signals.Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(run_job, "best_batch_size", lambda *_: 6)
        patch.setattr(checkpoint, "check", stop)
        assert run(lines) == 130
    assert list(results("cut")) == [1.5]  # four images each: the batch had two of the next job
    (noted,) = Path("outputs", "cut").glob("*/partial.json")
    assert len(json.loads(noted.read_text())["images"]) == 2
    assert run(lines) == 0
    found = results("cut")
    assert sorted(found) == [1.5, 2, 3]
    assert all(result["status"] == "done" for result in found.values())
    assert all(len(result["images"]) == 4 for result in found.values())


@pytest.mark.slow
def test_on_the_embedded_model(here: Path) -> None:
    base = ["tracker=none", "steps=6", "prompt_set=emoji_8", "prompts=[pizza,cat]", "runtime.threads=1"]
    together, alone = compare([*base, "guidance.scale=1.5,3,7.5", "scheduler=dpmpp_2m"])
    for scale, result in together.items():
        assert len(result["together"]) == 3
        for name, value in result["metrics"].items():
            assert value == pytest.approx(alone[scale]["metrics"][name], rel=2e-3)
