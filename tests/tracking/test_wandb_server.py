"""A server on this machine that refuses, hangs, fails and dies: sampling is not held up, and a later sync makes up for it."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.sweep_samples import PROMPTS, write_job
from wandb_stub import KEY, Stub

from research.tracking import WandbTracker

QUICK = {"request_timeout": 2.0, "time_limit": 10.0, "retries": 1, "close_limit": 40.0}


def at(what: str, fate: str, number: int = 1) -> Callable[[str], str | None]:
    """Trouble at the n-th request of a kind, and at all later ones of it."""
    seen = []

    def trouble(asked: str) -> str | None:
        if asked == what:
            seen.append(asked)
        return fate if asked == what and len(seen) >= number else None

    return trouble


@pytest.fixture
def jobs(tmp_path) -> list[Path]:
    return [write_job(tmp_path / "sweep", steps=steps, prompts=PROMPTS[:2]) for steps in (2, 3)]


def use(monkeypatch, stub: Stub) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", stub.base_url)


def mirror(jobs, **settings) -> tuple[float, float]:
    """Seconds that the sweep was held up by the jobs, and at its end."""
    tracker = WandbTracker(**{"mode": "online", **QUICK, **settings})
    began = time.monotonic()
    for job in jobs:
        tracker.log_job(job)
    logged = time.monotonic()
    tracker.close()
    return logged - began, time.monotonic() - logged


def sync(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(["research.tracking.cli", "sync", str(folder), "--request-timeout", "10", "--workers", "2", *arguments])


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=600, check=False)


def online(jobs) -> dict:
    """What a server holds that nothing happened to."""
    with pytest.MonkeyPatch.context() as patch, Stub() as stub:
        use(patch, stub)
        mirror(jobs)
        return stub.content()


@pytest.mark.slow
def test_online_runs_are_whole_and_sent_again_they_are_not_doubled(jobs, monkeypatch, caplog):
    with Stub() as stub, caplog.at_level(logging.WARNING):
        use(monkeypatch, stub)
        mirror(jobs)
        assert caplog.records == []
        first = stub.content()
        assert len(first) == 2
        run = next(run for name, run in first.items() if name.startswith(jobs[0].name))
        assert [row.get("curve/log_snr") for row in run["history"]] == [-5, -0.5, None]
        assert run["history"][-1]["images"]["captions"] == [f"{PROMPTS[0]} (seed 0)", f"{PROMPTS[1]} (seed 1)"]
        assert run["summary"]["fid"] == pytest.approx(
            json.loads((jobs[0] / "result.json").read_text())["metrics"]["fid"]
        )
        assert run["config"]["guidance/scale"] == {"value": 3.0}
        assert run["group"] == "sweep"
        assert run["exitcode"] == 0
        assert [name.split("_")[0] for name in run["files"]] == ["media/images/images"] * 2 + ["media/table/samples"]
        # the same again, by force: the same server
        assert sync(jobs[0].parent, "--force", "--workers", "1").returncode == 0
        assert stub.content() == first
        assert sum(run["inserted"] for run in stub.runs.values()) == 2
        told = b"\n".join(stub.bodies)
    for private in (str(jobs[0].parent.parent), os.path.expanduser("~"), "/home/someone", KEY, "/tmp/"):
        assert private.encode() not in told, private
    assert not (jobs[0].parent / "wandb").exists()  # nothing was left on the way


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_costs_nothing_and_sync_makes_up_for_it(jobs, monkeypatch, caplog):
    whole = online(jobs)
    with Stub(at("finish", "die", 2)) as stub, caplog.at_level(logging.WARNING):
        use(monkeypatch, stub)
        logging_took, _ = mirror(jobs)
        assert logging_took < 0.5
        assert any("is written offline" in record.message for record in caplog.records)
        assert stub.content() != whole
        stub.heal()
        done = sync(jobs[0].parent)
        assert (done.returncode, stub.content()) == (0, whole), done.stderr
        again = sync(jobs[0].parent)
        assert again.stdout.startswith("0 sent, 2 up to date before")
        assert stub.content() == whole


TROUBLES = {
    "init hangs": lambda: lambda what: "hang",
    "init answers 500": lambda: at("upsert", "500"),
    "the key is not looked at": lambda: at("viewer", "cut"),
    "no connection holds": lambda: lambda what: "cut",
    "dies mid-run": lambda: at("stream", "die"),
    "500 mid-run": lambda: at("stream", "500"),
    "uploads answer 500": lambda: at("upload", "500"),
    "uploads hang": lambda: at("upload", "hang"),
    "finish hangs": lambda: at("finish", "hang"),
    "finish answers 500": lambda: at("finish", "500"),
    "dies while being asked": lambda: at("runs", "die"),
    "files are not told": lambda: at("runfiles", "500"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TROUBLES)
def test_whatever_happens_a_later_sync_equals_an_online_run(jobs, monkeypatch, name):
    whole = online(jobs)
    with Stub(TROUBLES[name]()) as stub:
        use(monkeypatch, stub)
        logging_took, end_took = mirror(jobs)
        assert logging_took < 0.5
        assert end_took < QUICK["close_limit"] + 5
        # trouble goes on while syncing, ...
        failed = sync(jobs[0].parent, "--time-limit", "8", "--request-timeout", "2", "--retries", "0")
        assert failed.returncode in (0, 1), failed.stderr
        # ... and then it ends
        stub.heal()
        done = sync(jobs[0].parent)
        assert done.returncode == 0, done.stderr
        assert stub.content() == whole


@pytest.mark.slow
def test_nobody_listening_is_said_at_once(jobs, monkeypatch, caplog):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        began = time.monotonic()
        with caplog.at_level(logging.WARNING):
            mirror(jobs)
        assert time.monotonic() - began < 12
        assert "cannot be reached (Connection refused), and is written offline" in caplog.records[0].message
        assert len(list((jobs[0].parent / "wandb").glob("offline-run-*/*.wandb"))) == 2
        done = sync(jobs[0].parent)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be reached (Connection refused)" in done.stderr
    assert "nothing was sent" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_mirror_whose_process_is_killed_goes_on_with_another(jobs, monkeypatch, caplog):
    with Stub(at("upsert", "hang")) as stub, caplog.at_level(logging.WARNING):
        use(monkeypatch, stub)
        tracker = WandbTracker(mode="online", **{**QUICK, "request_timeout": 20.0})
        for job in jobs:
            tracker.log_job(job)
        while "upsert" not in stub.requests:
            time.sleep(0.05)
        assert tracker._worker is not None
        children = psutil.Process(tracker._worker._process.pid).children(recursive=True)
        tracker._worker._process.kill()
        stub.heal()
        tracker.close()
        assert "the mirror's process ended" in caplog.records[0].message
        held = [name for name, run in stub.runs.items() if run["summary"].get("mirror/digest")]
        assert held == [name for name in held if name.startswith(jobs[1].name)]
        assert len(held) == 1
    _, alive = psutil.wait_procs(children, timeout=600)
    assert not alive


@pytest.mark.parametrize(
    ("fate", "more"),
    [
        ("die", []),
        pytest.param("hang", ["tracker.request_timeout=2"], marks=pytest.mark.slow),
        pytest.param("500", ["tracker.request_timeout=2"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_sweep_beside_a_server_in_trouble_is_complete(tmp_path, monkeypatch, fate, more):
    command = [
        "research", "-m", "tracker=wandb_online", "tracker.retries=0", f"output_dir={tmp_path}", "sweep_name=s", "steps=2,3",
        "prompts=[pizza,cat]", "metrics=none", *more,
    ]  # fmt: skip
    with Stub(at("stream", fate)) as stub:
        use(monkeypatch, stub)
        done = run(command)
        assert done.returncode == 0, done.stderr
        results = [json.loads(file.read_text()) for file in tmp_path.glob("s/*/result.json")]
        assert [result["status"] for result in results] == ["done"] * 2
        assert (tmp_path / "s" / "report.html").is_file()
        assert "the local files are whole" in done.stderr
        assert "Traceback" not in done.stderr
        stub.heal()
        assert sync(tmp_path / "s").returncode == 0
        assert len(stub.runs) == 2
        assert all(run["summary"]["status"] == "done" for run in stub.runs.values())


def test_a_full_disk_costs_a_warning(jobs, caplog, tmp_path):
    (tmp_path / "file").write_text("")  # a folder that cannot be made, as on a disk without room
    with caplog.at_level(logging.WARNING):
        mirror(jobs, mode="offline", directory=str(tmp_path / "file" / "runs"))
    assert len(caplog.records) == 1
    assert "the local files are whole" in caplog.records[0].message
