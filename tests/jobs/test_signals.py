"""Ctrl-C and SIGTERM, sent to real processes."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Forks

PLUGS = """
import os, time
from research.guidance import CFG

class Slow(CFG):
    def combine(self, state, predictions):
        if os.path.exists("slow"):
            open(f"started{state.run.rows[0]}", "w").close()
            time.sleep(float(open("slow").read()))
        return super().combine(state, predictions)
"""


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> Iterator[Forks]:
    folder = tmp_path_factory.mktemp("signals")
    (folder / "signal_plugs.py").write_text(PLUGS)
    forks = Forks(folder, settings(tiny_sd))
    yield forks
    forks.close()


@pytest.fixture
def here(forks: Forks, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = forks.cwd
    for file in folder.glob("started*"):
        file.unlink()
    yield folder
    (folder / "slow").unlink(missing_ok=True)


def settings(model: Path) -> list[str]:
    """One job of three batches."""
    return [
        f"model.path={model}",
        "tracker=none",
        "metrics=none",
        "guidance._target_=signal_plugs.Slow",
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
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until, f"{file} did not appear"
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
    forks: Forks, here: Path, job: list[str], number: signal.Signals
) -> None:
    folder = here / "outputs" / job[-1].partition("=")[2]
    (here / "slow").write_text("0.2")
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
    (here / "slow").unlink()
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


def test_asked_twice_it_ends_at_once(forks: Forks, here: Path, job: list[str]) -> None:
    (here / "slow").write_text("2")
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
def test_sigterm_ends_within_the_grace_time(forks: Forks, here: Path, job: list[str]) -> None:
    (here / "slow").write_text("5")
    pid = forks.start([*job[:-1], "runtime.grace=1", job[-1]])
    wait_for(here / "started0")
    start = time.monotonic()
    forks.kill(pid, signal.SIGTERM)
    assert forks.wait(pid) == 130
    assert 0.8 < time.monotonic() - start < 4.0
    (here / "slow").unlink()
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

    job = [line for line in job if "signal_plugs" not in line]
    assert run([*job, setting]) == 2
    assert said in capsys.readouterr().err
