"""Processes of one sweep on one machine: no more at work than its CPUs serve, and one builds the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from research.cli import run
from research.jobs import machine_slots
from research.jobs.job import Job
from research.report.build import current_report


def job(folder: Path, name: str = "a", **runtime: Any) -> Job:
    config = {
        "output_dir": str(folder),
        "sweep_name": "s",
        "model": {"path": "emoji", "device": "auto"},
        "resume": True,
        "runtime": {"threads": None, **runtime},
    }
    return Job(config, id=name, digest=name)


@pytest.mark.parametrize(
    ("threads", "cpus", "expected"), [(None, 8, 1), (1, 8, 8), (3, 8, 2), (16, 8, 1), (None, 1, 1)]
)
def test_as_many_as_there_are_cpus_for(
    threads: int | None, cpus: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_slots, "cpus", lambda: cpus)
    monkeypatch.setenv(machine_slots.VISIBLE, "")
    one = job(tmp_path, threads=threads)
    assert machine_slots._limit([one]) == expected
    monkeypatch.setenv(machine_slots.VISIBLE, "0,1")
    assert machine_slots._limit([one]) is None
    one.config["model"]["device"] = "cpu"
    assert machine_slots._limit([one]) == expected
    one.config["resume"] = False
    assert machine_slots._limit([one]) is None


HOLDER = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_machine_slots import job
from research.jobs import machine_slots
with machine_slots.machine_slot([job(Path(sys.argv[1]), cpu=1)]):
    print("at work", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(machine_slots.VISIBLE, "")
    code = HOLDER.format(here=str(Path(__file__).parent))
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=-1, stdout=-1, text=True, env={**os.environ}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_who_comes_later_waits_and_goes_on_when_the_other_dies(holder: Any, tmp_path: Path) -> None:
    one = job(tmp_path)
    with machine_slots.machine_slot([job(tmp_path, "b")]):  # of another sweep
        pass
    start = time.monotonic()
    code = HOLDER.format(here=str(Path(__file__).parent))
    waiter = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=-1, stdout=-1, text=True)
    assert waiter.stdout is not None
    time.sleep(0.7)
    assert waiter.poll() is None
    holder.kill()
    assert waiter.stdout.readline() == "at work\n"
    assert time.monotonic() - start >= 0.7
    waiter.communicate("")
    with machine_slots.machine_slot([one]), machine_slots.machine_slot([job(tmp_path, "c")]):
        pass


def test_who_waits_goes_on_when_all_jobs_have_ended(holder: Any, tmp_path: Path) -> None:
    one = job(tmp_path)
    one.folder.path.mkdir(parents=True)
    result = {"status": "failed", "job_id": one.id, "identity": one.digest}
    (one.folder.path / "result.json").write_text(json.dumps(result))
    with machine_slots.machine_slot([one]):
        assert holder.poll() is None


@pytest.mark.slow
def test_the_report_is_built_once(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["-m", f"model.path={tiny_sd}", "metrics=none", "tracker=none", "steps=3", "prompts=[fox]"]
    assert run([*lines, "seed=0,1"]) == 0
    sweep = Path("outputs/default")
    built = (sweep / "report.html").stat().st_mtime_ns
    shown = capsys.readouterr().out
    assert run([*lines, "seed=0,1"]) == 0
    assert (sweep / "report.html").stat().st_mtime_ns == built
    assert capsys.readouterr().out == shown
    assert current_report(sweep) is not None
    # a job more, one less, a damaged page
    assert run([*lines, "seed=0,1,2"]) == 0
    assert (sweep / "report.html").stat().st_mtime_ns != built
    next(sweep.glob("*/result.json")).unlink()
    assert current_report(sweep) is None
    assert run([*lines, "seed=0,1,2"]) == 0
    (sweep / "report.html").unlink()
    assert current_report(sweep) is None
    assert run([*lines, "seed=0,1,2"]) == 0
    assert (sweep / "report.html").is_file()
