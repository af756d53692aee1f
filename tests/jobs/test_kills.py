"""Sweeps that are killed at any moment, and sweeps that several processes share."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Forks

from research.jobs.machine_slots import cpus

PLUGS = """
import os
import numpy
from research.metrics.base import MetricResult

class Brightness:
    name = "brightness"
    def compute(self, images, prompts, *, device=None):
        with open("counted", "a") as file:
            file.write(f"{os.getpid()}\\n")
        values = [float(numpy.asarray(image).mean()) for image in images]
        return MetricResult({"brightness": sum(values) / len(values)}, {})
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    (folder / "kill_plugs.py").write_text(PLUGS)
    return folder


@pytest.fixture(scope="module")
def forks(here: Path, sweep: list[str]) -> Iterator[Forks]:
    few = {"seed=0,100": "seed=0", "guidance.scale=1,3,5": "guidance.scale=1"}
    forks = Forks(here, [few.get(line, line) for line in sweep])
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def sweep(tiny_sd: Path) -> list[str]:
    """Twelve jobs of two batches each."""
    return [
        "-m",
        f"model.path={tiny_sd}",
        "tracker=none",
        "metrics=none",
        "+metrics.brightness._target_=kill_plugs.Brightness",
        "prompts=[fox,owl,cat,hen]",
        "batch_size=2",
        "steps=6",
        "scheduler=ddim,euler_a",
        "guidance.scale=1,3,5",
        "seed=0,100",
        "runtime.threads=1",
        "runtime.vectorise=off",  # equal bit by bit, whoever runs which job
    ]


def results(sweep_dir: Path) -> dict[str, dict[str, Any]]:
    return {f.parent.name: json.loads(f.read_text()) for f in sorted(sweep_dir.glob("*/result.json"))}


def essence(sweep_dir: Path) -> dict[str, Any]:
    """What must be the same however a sweep came to its end: status, scores and counts of each job, and its images bit by bit."""
    found = {}
    for job, result in results(sweep_dir).items():
        pictures = {f.name: f.read_bytes() for f in (sweep_dir / job / "images").iterdir()}
        kept = [result[key] for key in ("status", "metrics", "nfe", "nfe_by_branch", "seeds", "out_of_memory")]
        entries = [(e["file"], e["seed"], e["prompt"], e["sha256"]) for e in result["images"]]
        found[job] = [kept, entries, pictures]
    return found


@pytest.fixture(scope="module")
def undisturbed(here: Path, forks: Forks, sweep: list[str]) -> tuple[dict[str, Any], float]:
    """What the sweep gives when it is left alone, and the seconds it takes."""
    start = time.monotonic()
    assert forks.run([*sweep, "sweep_name=undisturbed"], "undisturbed.log") == 0
    took = time.monotonic() - start
    found = essence(here / "outputs" / "undisturbed")
    assert len(found) == 12
    assert all(kept[0] == "done" for kept, _, _ in found.values())
    return found, took


def killed_and_resumed(here: Path, forks: Forks, argv: list[str], name: str, kills: int, took: float) -> dict[str, Any]:
    """Kill the sweep's process group so many times, at random moments of its work, then let it end."""
    moments = random.Random(kills)
    hit = 0
    for _ in range(kills):
        pid = forks.start([*argv, f"sweep_name={name}"], f"{name}.log")
        time.sleep(moments.uniform(0.0, max(3 / kills, 0.4) * took))
        if forks.alive(pid):
            forks.kill(pid)
            hit += 1
        forks.wait(pid)
    done = len(results(here / "outputs" / name))
    print(f"{hit} of {kills} kills hit, {done} jobs done before the last run")
    assert forks.run([*argv, f"sweep_name={name}"], f"{name}.log") == 0, (here / f"{name}.log").read_text()
    assert hit >= kills // 2
    assert not list((here / "outputs" / name).rglob(".*"))
    assert not list((here / "outputs" / name).rglob("partial.json"))
    return essence(here / "outputs" / name)


def test_a_sweep_that_was_killed_ends_as_if_it_had_not_been(
    here: Path, forks: Forks, sweep: list[str], undisturbed: tuple[dict[str, Any], float]
) -> None:
    expected, took = undisturbed
    assert killed_and_resumed(here, forks, sweep, "killed", 4, took) == expected


@pytest.mark.slow
def test_twenty_kills(here: Path, forks: Forks, sweep: list[str], undisturbed: tuple[dict[str, Any], float]) -> None:
    expected, took = undisturbed
    assert killed_and_resumed(here, forks, sweep, "twenty", 20, took) == expected


def test_four_processes_share_a_sweep(
    here: Path, forks: Forks, sweep: list[str], undisturbed: tuple[dict[str, Any], float]
) -> None:
    expected, alone = undisturbed
    (here / "counted").unlink(missing_ok=True)
    start = time.monotonic()
    pids = [forks.start([*sweep, "sweep_name=shared"], f"shared{k}.log") for k in range(4)]
    assert [forks.wait(pid) for pid in pids] == [0] * 4
    together = time.monotonic() - start
    print(f"one process {alone:.1f} s, four {together:.1f} s")
    assert essence(here / "outputs" / "shared") == expected
    counted = (here / "counted").read_text().split()
    assert len(counted) == 12  # no job was done twice
    assert len(set(counted)) > 1 or cpus() == 1
    assert not list((here / "outputs" / "shared").rglob(".*"))
    for k in range(4):  # each of them ends with all results, and shows them
        assert "contact sheet" in (here / f"shared{k}.log").read_text()
