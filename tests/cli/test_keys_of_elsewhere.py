"""Keys that would have no effect, names that things have elsewhere, and rules that fit nothing: said, each with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from research.cli import run

SAID = {
    "num_inference_steps=3": "num_inference_steps: unknown key. Here it is steps: steps=VALUE.",
    "guidance_scale=3": "Here it is guidance.scale",
    "num_images_per_prompt=3": "Here it is images_per_prompt",
    "generator=3": "Here it is seed",
    "negative_prompt=bad": "Here it is task.negative_prompt",
    "model.torch_dtype=float16": "Here it is model.dtype",
    "hydra.sweep.dir=x": "hydra.sweep.dir: has no effect; jobs are kept in output_dir/sweep_name",
    "hydra.run.dir=x": "hydra.run.dir: has no effect",
    "hydra.sweep.subdir=x": "hydra.sweep.subdir: has no effect",
    "hydra.job.chdir=true": "hydra.job.chdir: has no effect",
    "hydra.verbose=true": "hydra.verbose: has no effect",
    "scheduler=DDIMSheduler": "unknown scheduler 'DDIMSheduler'. Did you mean 'DDIMScheduler'?",
    "scheduler=NoSuchThingScheduler": "NoSuchThingScheduler",
    "prompts=[a ${thing}]": r"Interpolation key 'thing' not found; text that is meant as it stands is written \${...}",
    "prompts=[???]": "found ???, which stands for a value that must be given",
    "model=outputs/mine": "model=custom model.path=outputs/mine",
    # and not "Did you mean 'clip_score'?"
    "metrics.clip_score=3": "metrics.clip_score: unknown key. Accepted are entries with a _target_.",
}


@pytest.mark.brought("Configs and environment", "names of diffusers' arguments (`num_inference_steps`, `generator`)", "refused",
                     "with the key that it is here")  # fmt: skip
@pytest.mark.brought(
    "Configs and environment", "keys of Hydra's own folders and logs", "refused", "they would have no effect"
)
@pytest.mark.parametrize("line", SAID)
@pytest.mark.spread(5)
def test_said(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([line]) == 2
    assert SAID[line] in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_folders_of_hydra_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "conf" / "experiment").mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nhydra:\n  sweep:\n    dir: elsewhere\n")
    monkeypatch.chdir(tmp_path)
    assert run(["--config-dir", "conf", "experiment=mine"]) == 2
    assert "hydra.sweep.dir: found 'elsewhere', which has no effect; jobs are kept in" in capsys.readouterr().err


@pytest.mark.brought(
    "Configs and environment", "`scheduler=TCDScheduler`, a class of diffusers or of your own", "accepted", ""
)
def test_classes_as_schedulers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["-m", "--plan", "--json", "tracker=none", "metrics=none"]
    assert run([*base, "scheduler=TCDScheduler,ddim", "scheduler.options.eta=0.5"]) == 0
    one, other = json.loads(capsys.readouterr().out)["jobs"]
    assert "scheduler=TCDScheduler" in one["overrides"]
    long = ["scheduler=custom", "scheduler.class_name=TCDScheduler", "scheduler.options.eta=0.5"]
    assert run([*base[1:], *long]) == 0
    assert json.loads(capsys.readouterr().out)["jobs"][0]["job_id"] == one["job_id"] != other["job_id"]
    assert run(["scheduler=glob(TCD*)", *base]) == 2  # what was named once is no choice from then on
    assert "TCDScheduler" not in capsys.readouterr().out


def test_exclusions_see_what_values_come_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["-m", "--plan", "--json", "tracker=none", "metrics=none", "steps=3,4"]
    assert run([*base, "guidance.scale=${steps}", 'sweep.exclude=["guidance.scale=4"]']) == 0
    assert len(json.loads(capsys.readouterr().out)["jobs"]) == 1
    assert run([*base, "scheduler=ddim,heun", 'sweep.exclude=["scheduler=huen and steps<4", {steps: [3, 7]}]']) == 0
    said = capsys.readouterr().err
    assert "warning: sweep.exclude: no point has scheduler=huen. Did you mean 'heun'? They have ddim, heun." in said
    assert "no point has steps=7" in said
    assert "steps=3." not in said
