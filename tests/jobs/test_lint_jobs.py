"""The linter before a job: warnings in the log and in the record, errors before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from research.cli import run
from research.jobs.lint import foreign_scores


@pytest.fixture
def base(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    settings = ["tracker=none", "metrics=none", "prompts=[fox]", "runtime.threads=1", "sweep_name=s"]
    return [f"model.path={tiny_sd}", *settings]


def results() -> list[dict]:
    return [json.loads(file.read_text()) for file in Path("outputs/s").glob("*/result.json")]


def test_a_warning_is_in_the_log_and_in_the_record(base, capfd):
    words = ["scheduler=ddim", "+scheduler.options.timestep_spacing=linspace", "steps=4", "runtime.parity=true"]
    assert run([*base, *words]) == 0
    (result,) = results()
    # the linter's, and the scheduler's own note of the fault that it reproduces
    warning, note = result["warnings"]
    assert "next timestep 0 stands for" in warning
    assert "#12633" in note
    assert capfd.readouterr().err.count(f"warning: {warning}") == 1


def test_what_is_fine_is_silent(base):
    assert run([*base, "-m", "scheduler=ddim,dpmpp_2m,euler_a", "steps=4"]) == 0
    assert [result["warnings"] for result in results()] == [[], [], []]


def test_an_error_stops_all_jobs_before_anything_is_written(base, capfd):
    bad = "+scheduler.options.rescale_betas_zero_snr=false,true"
    words = ["scheduler=ddim_trailing", bad, "steps=4"]
    assert run([*base, "-m", *words]) == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: rescale_betas_zero_snr: found true with prediction_type=epsilon")
    assert "rescale_betas_zero_snr=True" in line or "rescale_betas_zero_snr=true" in line  # which job
    assert not Path("outputs").exists()


def test_a_setting_is_looked_at_once(base, monkeypatch):
    from research.solvers.lint import linter as module

    seen = []
    real = module.lint

    def counted(*arguments, **more):
        seen.append(arguments)
        return real(*arguments, **more)

    monkeypatch.setattr(module, "lint", counted)
    assert run([*base, "-m", "guidance.scale=1,2,3", "steps=2,3", "scheduler=ddim"]) == 0
    assert len(seen) == 2
    seen.clear()
    assert run([*base, "-m", "guidance.scale=1,2,3", "steps=2,3", "scheduler=ddim"]) == 0
    assert seen == []  # all done before


@pytest.mark.slow
def test_the_strength_of_a_task_counts(base, tmp_path):
    from PIL import Image

    from research.jobs.lint import strength_of

    Image.new("RGB", (16, 16), (200, 30, 30)).save(tmp_path / "red.png")
    assert strength_of({"_target_": "research.tasks.ImageToImage", "image": "x"}) == 0.8
    assert strength_of({"_target_": "research.tasks.ImageToImage", "strength": 0.3}) == 0.3
    assert strength_of({"_target_": "research.tasks.TextToImage"}) == 1.0
    words = ["task=image_to_image", f"task.image={tmp_path / 'red.png'}", "task.strength=0.5", "scheduler=lms"]
    assert run([*base, *words, "steps=6", "runtime.parity=true"]) == 0
    (result,) = results()
    assert any("strength=0.5 cuts off steps" in warning for warning in result["warnings"])


def test_scores_by_what_knows_emoji_alone_are_said_of_another_model(base, capsys):
    assert run([*base, "steps=2", "scheduler=ddim", "metrics=clip_score", "sweep_name=scored"]) == 0
    said = capsys.readouterr().err
    assert said.count("metrics.clip_score.model=emoji-eval: what is embedded knows emoji alone") == 1
    (file,) = Path("outputs/scored").glob("*/result.json")
    assert any("knows emoji alone" in line for line in json.loads(file.read_text())["warnings"])


@pytest.mark.parametrize(
    ("path", "metrics", "named"),
    [
        ("emoji", {"fid": {"_target_": "research.metrics.FID"}}, []),
        ("mine", {"fid": {"_target_": "research.metrics.FID"}}, ["features=emoji-eval", "reference=emoji"]),
        ("mine", {"fid": {"_target_": "research.metrics.FID", "features": "inception", "reference": "refs"}}, []),
        ("mine", {"is": {"_target_": "research.metrics.InceptionScore"}}, []),
        ("mine", {"ssim": {"_target_": "research.metrics.SSIM"}}, []),
    ],
)
def test_which_scores_are_said(path, metrics, named):
    found = foreign_scores({"model": {"path": path}, "metrics": metrics})
    assert len(found) == bool(named)
    assert all(name in found[0] for name in named)
