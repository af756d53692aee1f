"""Sweeps: all jobs planned before the first runs, each on its own feet, and going on where they were cut short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.small_jobs import settings_of, working_folder

import research
from research.cli import run
from research.jobs import process_cache
from research.jobs.compose import Composer
from research.jobs.points import points_of
from research.jobs.sweep import plan

PLUGS = """
import os, time
from research import Hook
from research.guidance import CFG

class Fragile(CFG):
    def __init__(self, scale=1.0):
        super().__init__(scale)
    def combine(self, state, predictions):
        if self.scale == 2 and not os.path.exists("mended"):
            raise RuntimeError("scale 2 breaks")
        return super().combine(state, predictions)

class Slow(Hook):
    def post_step(self, state):
        open("started", "w").close()
        time.sleep(0.2)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return working_folder(tmp_path, monkeypatch, "sweep_plugs", PLUGS)


@pytest.fixture
def base(tiny_sd: Path) -> list[str]:
    return settings_of(tiny_sd, steps=2)


def results(folder: Path) -> dict[str, dict[str, Any]]:
    files = folder.glob("outputs/*/*/result.json")
    return {r["job_id"]: r for r in (json.loads(f.read_text(encoding="utf-8")) for f in files)}


def planned(*lines: str) -> list[Any]:
    with Composer() as composer:
        normal = composer.normalise(lines)
        master = composer.master(normal)
        return plan(composer, master, points_of(composer, master, normal).found)


def test_a_sweep_ends_with_its_table(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-m", *base, "scheduler=ddim,euler", "guidance.scale=1,3"]) == 0
    shown = capsys.readouterr()
    found = list(results(here).values())
    assert len(found) == 4
    assert all(r["status"] == "done" for r in found)
    assert {(r["config"]["scheduler"]["name"], r["config"]["guidance"]["scale"]) for r in found} == {
        ("ddim", 1), ("ddim", 3), ("euler", 1), ("euler", 3)
    }  # fmt: skip
    assert {tuple(o for o in r["overrides"] if o.startswith(("scheduler", "guidance"))) for r in found} == {
        (f"scheduler={s}", f"guidance.scale={g}") for s in ("ddim", "euler") for g in (1, 3)
    }
    sweep = here / "outputs" / "default"
    assert (sweep / "results.csv").is_file()
    assert (sweep / "contact_sheet.png").is_file()
    assert "contact_sheet.png" in shown.out
    assert "[4/4]" in shown.err
    left_by_hydra = {"multirun.yaml", ".hydra", "multirun"} & {p.name for p in here.rglob("*")}
    assert not left_by_hydra


def test_the_model_is_loaded_once(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    process_cache.clear()
    assert run(["-m", *base, "seed=0,1,2"]) == 0
    assert capsys.readouterr().err.count("loading model") == 1
    assert sorted(r["timings"]["load"] > 0 for r in results(here).values()) == [False, False, True]


def test_the_model_axis_varies_slowest(base: list[str], tiny_sd: Path) -> None:
    jobs = planned("steps=1,2", f"model.path={tiny_sd},hub/model", *base[1:3], "prompts=[fox]", "seed=0,1")
    assert [job.config["model"]["path"] for job in jobs] == [str(tiny_sd)] * 4 + ["hub/model"] * 4


def test_equal_points_are_one_job(base: list[str]) -> None:
    assert len(planned(*base, "guidance.scale=1,1.0,2")) == 2


@pytest.mark.slow
def test_a_failing_job_stops_no_other(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["-m", *base, "guidance._target_=sweep_plugs.Fragile", "guidance.scale=1,2,3"]
    assert run(sweep) == 1
    first = results(here)
    assert sorted(r["status"] for r in first.values()) == ["done", "done", "failed"]
    shown = capsys.readouterr().err
    assert "scale 2 breaks" in shown
    assert "Traceback" not in shown
    (here / "mended").touch()
    assert run(sweep) == 1
    assert "1 failed before and left so (retry=failed runs them again)" in capsys.readouterr().err
    assert results(here) == first
    assert run([*sweep, "retry=failed"]) == 0
    assert "2 of 3 jobs done before and reused" in capsys.readouterr().err
    second = results(here)
    assert all(r["status"] == "done" for r in second.values())
    unchanged = [job for job in first if first[job] == second[job]]
    assert len(unchanged) == 2
    assert not list(here.rglob("traceback.txt"))


def test_on_failure_stop(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["-m", *base, "guidance._target_=sweep_plugs.Fragile", "guidance.scale=1,2,3", "on_failure=stop"]
    assert run(sweep) == 1
    assert len(results(here)) == 2
    assert "left 1 job" in capsys.readouterr().err


@pytest.mark.slow
def test_an_experiment_runs_its_sweep(here: Path, base: list[str]) -> None:
    (here / "mine" / "experiment").mkdir(parents=True)
    (here / "mine" / "experiment" / "small.yaml").write_text(
        "# @package _global_\nsweep_name: small\nsteps: 2\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      scheduler: ddim,euler\n      guidance.scale: 1,3\n"
    )
    for command in (["experiment=small"], ["-m", "experiment=small"], ["+experiment=small"]):
        assert run(["-cd", "mine", *command, *base, "guidance.scale=1"]) == 0
    found = results(here).values()
    assert {(r["sweep_name"], r["config"]["scheduler"]["name"], r["config"]["guidance"]["scale"]) for r in found} == {
        ("small", "ddim", 1), ("small", "euler", 1)
    }  # fmt: skip


def test_quickstart_is_planned() -> None:
    with Composer() as composer:
        lines = composer.normalise(["experiment=quickstart"])
        master = composer.master(lines)
        points = points_of(composer, master, lines).found
        jobs = [composer.job(master, point) for point in points]
    assert len(points) >= 12
    assert {job["sweep_name"] for job in jobs} == {"quickstart"}
    assert len({(j["scheduler"]["name"], j["guidance"]["scale"], j["steps"]) for j in jobs}) == len(jobs)


def start(argv: list[str], cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(research.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "research", *argv],
        cwd=cwd,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore SIGINT, and hand that on to what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(file: Path) -> None:
    for _ in range(600):
        if file.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{file} did not appear")


@pytest.mark.slow
def test_killed_and_interrupted_jobs_are_run_again(here: Path, base: list[str]) -> None:
    sweep = ["-m", *base, "seed=0,1", "+hooks.slow._target_=sweep_plugs.Slow", "steps=5"]
    for sent, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = start(sweep, here)
        wait_for(here / "started")
        process.send_signal(sent)
        _, shown = process.communicate(timeout=600)
        assert process.returncode == code, shown
        assert not results(here)
        (here / "started").unlink()
        if sent == signal.SIGINT:
            assert shown.splitlines()[-1].startswith("interrupted:")
            assert "Traceback" not in shown
    assert run(sweep) == 0
    assert [r["status"] for r in results(here).values()] == ["done", "done"]
    assert not list(here.rglob(".*"))
