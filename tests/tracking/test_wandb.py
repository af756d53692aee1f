from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.sweep_samples import PROMPTS, write_job

from research.errors import ConfigError
from research.jobs.record import JobResult
from research.tracking import WandbTracker
from research.tracking.mirrored_run import run_name
from research.tracking.scrub import scrub, scrub_text


def mirror(*jobs: Path, **settings) -> None:
    tracker = WandbTracker(**settings)
    for job in jobs:
        tracker.log_job(job)
    tracker.close()


def runs(sweep: Path) -> list[Path]:
    return sorted((sweep / "wandb").glob("offline-run-*/*.wandb"))


def inspect(file: Path) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout


def test_a_job_reads_back_as_a_run(tmp_path):
    sweep = tmp_path / "guidance sweep"
    job = write_job(sweep, scheduler="ddim", scale=3.0, steps=4, prompts=PROMPTS[:3])
    noted = json.loads((job / "result.json").read_text()) | {"git_commit": "cd" * 20}
    (job / "result.json").write_text(json.dumps(noted))
    failed = write_job(sweep, scheduler="heun", steps=4, error="latents became NaN in /home/someone/x.py")
    mirror(job, failed, project="emoji", tags=["mine"])
    assert len(runs(sweep)) == 2
    result = json.loads((job / "result.json").read_text())
    file = next(f for f in runs(sweep) if result["job_id"] in f.name)
    text = inspect(file)
    for expected in (
        '"emoji"',
        "guidance sweep",
        "ddim scale=3.0 steps=4",
        "mine",
        "clip_score",
        "fid",
        "seconds/denoise",
        "nfe",
        "curve/log_snr",
        "curve/sigma",
        "recorded/x0_norm",
        "recorded/x0_std",
        PROMPTS[0] + " (seed 0)",
        "guidance/scale",
        "commit:cdcdcdcdcd",
        "text_to_image",
        "table-file",
        "mirror/digest",
    ):
        assert expected in text, expected
    assert "DdimScheduler" in text
    assert len(list(file.parent.glob("files/media/images/*.png"))) == 3
    # neither where it was run nor by whom
    assert str(tmp_path) not in text
    assert "/home/someone" not in text
    other = inspect(next(f for f in runs(sweep) if f != file))
    assert "latents became NaN in x.py" in other
    assert '"failed"' in other


@pytest.mark.slow
def test_logging_a_job_again_replaces_its_run(tmp_path):
    job = write_job(tmp_path / "sweep", steps=2, prompts=PROMPTS[:1])
    mirror(job)
    first = runs(tmp_path / "sweep")
    time.sleep(1.1)  # W&B names folders by the second
    mirror(job)
    second = runs(tmp_path / "sweep")
    assert len(first) == len(second) == 1
    assert first[0].name == second[0].name  # the id


@pytest.mark.slow
def test_online_without_a_key_warns_and_goes_offline(tmp_path, caplog):
    job = write_job(tmp_path / "sweep", steps=2, prompts=PROMPTS[:1])
    with caplog.at_level(logging.WARNING):
        mirror(job, mode="online")
    assert len(runs(tmp_path / "sweep")) == 1
    assert [r.message for r in caplog.records] == [
        "W&B: mode=online but no key was found (wandb login); runs are written offline; the local files are whole"
    ]


@pytest.mark.slow
def test_what_cannot_be_mirrored_is_one_warning_and_no_error(tmp_path, caplog):
    good = write_job(tmp_path / "sweep", steps=2, prompts=PROMPTS[:1])
    broken = tmp_path / "sweep" / "broken"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        mirror(broken, good)
    assert len(caplog.records) == 1
    assert len(runs(tmp_path / "sweep")) == 1


@pytest.mark.slow
def test_a_hanging_mirror_is_given_up(tmp_path, caplog):
    # a FIFO nobody writes to: reading the job hangs, as a stalled W&B does
    hanging = write_job(tmp_path / "sweep", prompts=PROMPTS[:1])
    (image,) = (hanging / "images").glob("*.png")
    image.unlink()
    os.mkfifo(image)  # whoever reads it waits for ever
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        tracker = WandbTracker(time_limit=1.0)
        tracker.log_job(hanging)
        assert time.monotonic() - started < 50  # sampling goes on
        tracker.close()
    assert time.monotonic() - started < 120
    assert [r.message for r in caplog.records] == ["W&B: no answer within 1 s; the local files are whole"]


@pytest.mark.slow
def test_a_mirror_that_outlasts_the_sweep_is_stopped(tmp_path, caplog):
    hanging = write_job(tmp_path / "sweep", prompts=PROMPTS[:1])
    (image,) = (hanging / "images").glob("*.png")
    image.unlink()
    os.mkfifo(image)  # whoever reads it waits for ever
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        tracker = WandbTracker(time_limit=60, close_limit=1.0)
        tracker.log_job(hanging)
        tracker.close()
    assert time.monotonic() - started < 50
    assert "did not end within 1 s" in caplog.records[0].message


@pytest.mark.slow
def test_the_sampling_process_never_imports_wandb(tmp_path):
    job = write_job(tmp_path / "sweep", steps=2, prompts=PROMPTS[:1])
    code = (
        "import sys; from pathlib import Path; from research.tracking import WandbTracker\n"
        f"t = WandbTracker(); t.log_job(Path({str(job)!r})); t.close()\n"
        "sys.exit('wandb' in sys.modules or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(runs(tmp_path / "sweep")) == 1


def test_unknown_mode_is_one_clear_line():
    with pytest.raises(ConfigError, match=r"tracker.mode: found 'of'; accepted is offline or online"):
        WandbTracker(mode="of")


def test_paths_and_secrets_are_taken_out():
    config = {
        "model": {"path": "/data/models/sd15", "token": "hf_x"},
        "output_dir": "/home/me/out",
        "hub": "owner/name",
        "nested": [{"file": "~/x/mask.png"}],
        "prompts": ["a road /with/ slashes"],
        "max_tokens": 4,
    }
    assert scrub(config) == {
        "model": {"path": "sd15"},
        "hub": "owner/name",
        "nested": [{"file": "mask.png"}],
        "prompts": ["a road /with/ slashes"],
        "max_tokens": 4,
    }
    assert scrub_text("see https://wandb.ai/x/y and /tmp/a/b.txt: bad") == "see https://wandb.ai/x/y and b.txt: bad"


def test_run_names_are_short():
    overrides = ["scheduler=ddim", "guidance.scale=3", "model.path=/data/models/sd15", "prompts=[" + "long " * 40 + "]"]
    name = run_name(JobResult(job_id="ab", status="done", overrides=overrides))
    assert name.startswith("ddim scale=3 path=sd15 prompts=[long")
    assert len(name) <= 100
    assert run_name(JobResult(job_id="ab", status="done")) == "ab"
