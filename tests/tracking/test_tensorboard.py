"""TensorBoard beside W&B, and W&B's own variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.small_jobs import settings_of
from support.sweep_samples import PROMPTS, write_job

from research.cli import run
from research.errors import ConfigError
from research.tracking import WandbTracker
from research.tracking.wandb_environment import heeded


def test_a_job_reads_back_as_events(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from research.tracking import TensorBoardTracker

    job = write_job(tmp_path / "sweep", scheduler="ddim", scale=3.0, steps=4, prompts=PROMPTS[:3])
    tracker = TensorBoardTracker(max_images=2)
    for _ in range(2):  # again replaces
        tracker.log_job(job)
    tracker.close()
    (folder,) = (tmp_path / "sweep" / "tensorboard").iterdir()
    assert len([*folder.iterdir()]) == 1
    found = accumulator.EventAccumulator(str(folder))
    found.Reload()
    tags = found.Tags()
    assert {"clip_score", "nfe", "curve/sigma"} <= set(tags["scalars"])
    assert len(found.Scalars("curve/sigma")) >= 4
    assert len(tags["images"]) == 2


@pytest.mark.slow
def test_both_at_once(tmp_path: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    base = [line for line in settings_of(tiny_sd, steps=1) if not line.startswith("tracker")]
    assert run([*base, "tracker=[tensorboard,wandbb]"]) == 2
    assert "unknown tracker 'wandbb'. Did you mean 'wandb'?" in capsys.readouterr().err
    assert run(["--plan", *base, "tracker=[wandb,tensorboard]", "tracker.wandb.mode=none"]) == 2
    assert "tracker.mode: found 'none'" in capsys.readouterr().out
    assert (
        run([*base, "tracker=[wandb,tensorboard]", "tracker.wandb.mode=offline", "tracker.tensorboard.max_images=1"])
        == 0
    )
    assert [*(tmp_path / "outputs" / "default" / "tensorboard").glob("*/events*")]
    assert [*(tmp_path / "outputs" / "default" / "wandb").glob("offline-run-*")]


def test_variables_of_wandb() -> None:
    assert heeded(None, None, None, None, {}).mode == "offline"
    found = heeded(
        None, None, None, None, {"WANDB_MODE": "online", "WANDB_PROJECT": "p", "WANDB_ENTITY": "e", "WANDB_DIR": "d"}
    )
    assert (found.mode, found.project, found.entity, found.directory, found.notes) == ("online", "p", "e", "d", [])
    assert heeded(None, None, None, None, {"WANDB_DISABLED": "true"}).mode == "disabled"
    assert heeded(None, None, None, None, {"WANDB_MODE": "disabled"}).notes == [
        "nothing is mirrored, as WANDB_MODE=disabled says"
    ]
    kept = heeded("online", "mine", None, None, {"WANDB_MODE": "offline", "WANDB_PROJECT": "p", "WANDB_NAME": "n"})
    assert (kept.mode, kept.project, len(kept.notes)) == ("online", "mine", 3)
    with pytest.raises(ConfigError, match="WANDB_MODE: found 'never'"):
        heeded(None, None, None, None, {"WANDB_MODE": "never"})


@pytest.mark.brought("Configs and environment", "`WANDB_RUN_ID` with several jobs", "refused", "they would be one run")
def test_one_run_for_several_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    monkeypatch.chdir(tmp_path)
    WandbTracker().check_jobs(1)
    with pytest.raises(ConfigError, match="WANDB_RUN_ID=abc names one run, and there are 2 jobs"):
        WandbTracker().check_jobs(2)
    assert run(["-m", "--plan", "steps=1,2", "tracker=wandb", "metrics=none"]) == 2
    assert "WANDB_RUN_ID=abc names one run" in capsys.readouterr().err
