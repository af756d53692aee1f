"""Sweeps that are killed at any moment, jobs asked to end by Ctrl-C and SIGTERM, and sweeps that several processes share."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Forks

from research.jobs.machine_slots import cpus

PLUGS = """
import os, time
import numpy
from research.guidance import CFG
from research.metrics.base import MetricResult

class Brightness:
    name = "brightness"
    def compute(self, images, prompts, *, device=None):
        with open("counted", "a") as file:
            file.write(f"{os.getpid()}\\n")
        values = [float(numpy.asarray(image).mean()) for image in images]
        return MetricResult({"brightness": sum(values) / len(values)}, {})

class Slow(CFG):
    def combine(self, state, predictions):
        if os.path.exists("slow"):
            open(f"started{state.run.rows[0]}", "w").close()
            time.sleep(float(open("slow").read()))
        return super().combine(state, predictions)
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    (folder / "kill_plugs.py").write_text(PLUGS)
    return folder


@pytest.fixture(scope="module")
def forks(here: Path, sweep: list[str]) -> Iterator[Forks]:
    few = {"guidance.scale=1,3": "guidance.scale=1"}
    forks = Forks(here, [few.get(line, line) for line in sweep])
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def sweep(tiny_sd: Path) -> list[str]:
    """Four jobs of two batches each."""
    return [
        "-m",
        f"model.path={tiny_sd}",
        "tracker=none",
        "metrics=none",
        "+metrics.brightness._target_=kill_plugs.Brightness",
        "prompts=[fox,owl,cat,hen]",
        "batch_size=2",
        "steps=4",
        "scheduler=ddim,euler_a",
        "guidance.scale=1,3",
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
    assert len(found) == 4
    assert all(kept[0] == "done" for kept, _, _ in found.values())
    return found, took


def killed_and_resumed(here: Path, forks: Forks, argv: list[str], name: str, kills: int, took: float) -> dict[str, Any]:
    """Kill the sweep's process group so many times, at random moments of its work, then let it end."""
    moments, window, hit = random.Random(kills), max(min(3 / kills, 0.8), 0.4) * took, 0
    while hit < kills:
        pid = forks.start([*argv, f"sweep_name={name}"], f"{name}.log")
        time.sleep(moments.uniform(0.0, window))
        if alive := forks.alive(pid):
            forks.kill(pid)
            hit += 1
        forks.wait(pid)
        if not alive:  # it was done before: once more from the start, and sooner
            shutil.rmtree(here / "outputs" / name)
            window /= 2
    assert forks.run([*argv, f"sweep_name={name}"], f"{name}.log") == 0, (here / f"{name}.log").read_text()
    assert not list((here / "outputs" / name).rglob(".*"))
    assert not list((here / "outputs" / name).rglob("partial.json"))
    return essence(here / "outputs" / name)


def test_a_sweep_that_was_killed_ends_as_if_it_had_not_been(
    here: Path, forks: Forks, sweep: list[str], undisturbed: tuple[dict[str, Any], float]
) -> None:
    expected, took = undisturbed
    assert killed_and_resumed(here, forks, sweep, "killed", 2, took) == expected


@pytest.mark.slow
def test_twenty_kills(here: Path, forks: Forks, sweep: list[str], undisturbed: tuple[dict[str, Any], float]) -> None:
    expected, took = undisturbed
    assert killed_and_resumed(here, forks, sweep, "twenty", 20, took) == expected


@pytest.mark.slow
def test_three_processes_share_a_sweep(
    here: Path, forks: Forks, sweep: list[str], undisturbed: tuple[dict[str, Any], float]
) -> None:
    expected, alone = undisturbed
    (here / "counted").unlink(missing_ok=True)
    start = time.monotonic()
    pids = [forks.start([*sweep, "sweep_name=shared"], f"shared{k}.log") for k in range(3)]
    assert [forks.wait(pid) for pid in pids] == [0] * 3
    together = time.monotonic() - start
    print(f"one process {alone:.1f} s, three {together:.1f} s")
    assert essence(here / "outputs" / "shared") == expected
    counted = (here / "counted").read_text().split()
    assert len(counted) == 4  # no job was done twice
    assert len(set(counted)) > 1 or cpus() == 1
    assert not list((here / "outputs" / "shared").rglob(".*"))
    for k in range(3):  # each of them ends with all results, and shows them
        assert "contact sheet" in (here / f"shared{k}.log").read_text()


# -- folders that are taken away


def removed(folder: Path) -> None:
    while folder.exists():  # what is written meanwhile makes a folder that is not empty
        shutil.rmtree(folder, ignore_errors=True)


TAKES = {
    "sweep": lambda sweep_dir, job: removed(sweep_dir),
    "parent": lambda sweep_dir, job: removed(sweep_dir.parent),
    "job": lambda sweep_dir, job: removed(job),
    "images": lambda sweep_dir, job: removed(job / "images"),
    "renamed": lambda sweep_dir, job: sweep_dir.rename(sweep_dir.with_name("renamed")),
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("what", TAKES)
def test_what_is_taken_away_under_a_sweep_is_made_again(
    here: Path, forks: Forks, sweep: list[str], undisturbed: tuple[dict[str, Any], float], what: str, processes: int
) -> None:
    root = here / f"taken-{processes}-{what}"
    argv = [*sweep, f"output_dir={root}/outputs", "sweep_name=s", "runtime.progress=lines"]
    logs = [f"{root.name}.{k}.log" for k in range(processes)]
    pids = [forks.start(argv, log) for log in logs]
    sweep_dir = root / "outputs" / "s"
    wait_until(lambda: results(sweep_dir) and list(sweep_dir.glob("*/images/*.png")))
    held = [file.parent for file in sweep_dir.glob("*/.claim.0")]
    TAKES[what](sweep_dir, held[0] if held else next(sweep_dir.glob("*/images")).parent)
    codes = [forks.wait(pid, 600) for pid in pids]
    said = "".join((here / log).read_text() for log in logs)
    assert codes == [0] * processes, said
    assert "Traceback" not in said
    assert essence(sweep_dir) == undisturbed[0]
    assert (sweep_dir / "sweep.json").is_file()
    assert not list(sweep_dir.rglob(".*"))
    if processes == 1:
        assert "another process" not in said


@pytest.mark.slow
def test_who_takes_a_folder_away_again_and_again_is_told(here: Path, forks: Forks, sweep: list[str]) -> None:
    sweep_dir = here / "again" / "s"
    pid = forks.start([*sweep, f"output_dir={sweep_dir.parent}", "sweep_name=s"], "again.log")
    while forks.alive(pid):
        shutil.rmtree(sweep_dir, ignore_errors=True)
        time.sleep(0.02)
    said = (here / "again.log").read_text().splitlines()
    assert forks.wait(pid) == 1
    assert said[-1].startswith("error: output_dir: ")
    assert "Traceback" not in said


# -- asked to end


@pytest.fixture
def slow(here: Path) -> Iterator[Path]:
    """A file that, while it is there, says how long each step of ``kill_plugs.Slow`` takes."""
    for file in here.glob("started*"):
        file.unlink()
    yield here / "slow"
    (here / "slow").unlink(missing_ok=True)


def settings(model: Path) -> list[str]:
    """One job of three batches."""
    return [
        f"model.path={model}",
        "tracker=none",
        "metrics=none",
        "guidance._target_=kill_plugs.Slow",
        "scheduler=euler_a",
        "prompts=[fox,owl,cat]",
        "batch_size=1",
        "steps=4",
        "runtime.threads=1",
    ]


@pytest.fixture
def job(tiny_sd: Path, request: pytest.FixtureRequest) -> list[str]:
    """The job, in a sweep folder named after the test."""
    name = request.node.name.replace("[", "-").replace("]", "")
    return [*settings(tiny_sd), f"sweep_name={name}"]


def wait_for(file: Path) -> None:
    wait_until(file.exists)


def wait_until(there: Callable[[], Any]) -> None:
    until = time.monotonic() + 300
    while not there():
        assert time.monotonic() < until, "what was waited for did not come"
        time.sleep(0.02)


def result_in(folder: Path) -> dict[str, Any] | None:
    found = list(folder.glob("*/result.json"))
    return json.loads(found[0].read_text()) if found else None


def hashes(result: dict[str, Any] | None) -> list[str]:
    assert result is not None
    return [entry["sha256"] for entry in result["images"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.spread(1)
def test_asked_once_the_batch_is_finished_and_the_job_goes_on_from_there(
    forks: Forks, here: Path, slow: Path, job: list[str], number: signal.Signals
) -> None:
    folder = here / "outputs" / job[-1].partition("=")[2]
    slow.write_text("0.2")
    pid = forks.start(job)
    wait_for(here / "started1")  # the second batch has begun
    forks.kill(pid, number)
    assert forks.wait(pid) == 130
    said = (here / "log").read_text()
    assert said.splitlines()[-1].startswith("interrupted:")
    assert "Traceback" not in said
    assert result_in(folder) is None
    assert not (here / "started2").exists()
    assert len(list(folder.rglob("*.png"))) == 2
    assert not list(folder.rglob(".*"))  # claims are given back
    slow.unlink()
    assert forks.run(job) == 0
    assert "2 of 3 images were made before" in (here / "log").read_text()
    resumed = result_in(folder)
    assert resumed is not None
    assert forks.run([*job, "output_dir=other"]) == 0
    undisturbed = result_in(here / "other" / folder.name)
    assert undisturbed is not None
    assert hashes(resumed) == hashes(undisturbed)
    for key in ("nfe", "nfe_by_branch", "seeds", "n_images", "warnings"):
        assert resumed[key] == undisturbed[key]
    assert not list(folder.rglob("partial.json"))
    traces = [
        json.loads((f / resumed["job_id"] / "trace.json").read_text()) for f in (folder, here / "other" / folder.name)
    ]
    assert len(traces[0]["stages"]) == len(traces[1]["stages"])


def test_asked_twice_it_ends_at_once(forks: Forks, here: Path, slow: Path, job: list[str]) -> None:
    slow.write_text("2")
    pid = forks.start(job)
    wait_for(here / "started0")
    forks.kill(pid, signal.SIGINT)
    time.sleep(0.3)
    start = time.monotonic()
    forks.kill(pid, signal.SIGINT)
    assert forks.wait(pid) == 130
    assert time.monotonic() - start < 4.0  # the batch would take 8 s
    assert "once more ends at once" in (here / "log").read_text()
    assert result_in(here / "outputs" / job[-1].partition("=")[2]) is None


@pytest.mark.slow
def test_sigterm_ends_within_the_grace_time(forks: Forks, here: Path, slow: Path, job: list[str]) -> None:
    slow.write_text("5")
    pid = forks.start([*job[:-1], "runtime.grace=1", job[-1]])
    wait_for(here / "started0")
    start = time.monotonic()
    forks.kill(pid, signal.SIGTERM)
    assert forks.wait(pid) == 130
    assert 0.8 < time.monotonic() - start < 4.0
    slow.unlink()
    assert forks.run(job) == 0  # the claim of the dead process is no hindrance
    folder = here / "outputs" / job[-1].partition("=")[2]
    assert (result_in(folder) or {})["status"] == "done"
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("retry=yes", "retry: found"),
        ("runtime.grace=-1", "runtime.grace: found -1; accepted is a number of seconds from 0"),
        ("runtime.claim_timeout=0", "runtime.claim_timeout: found 0; accepted is a number of seconds from 1"),
    ],
)
def test_keys_that_cannot_be(job: list[str], setting: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from research.cli import run

    job = [line for line in job if "kill_plugs" not in line]
    assert run([*job, setting]) == 2
    assert said in capsys.readouterr().err
