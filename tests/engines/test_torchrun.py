"""One big job over two ranks, as torchrun starts them (gloo, CPU)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sweeps import pythonpath

JOB = [
    "model=emoji",
    "steps=8",
    "prompts=[fox face,melon,hibiscus]",
    "images_per_prompt=8",
    "batch_size=4",
    "metrics=[clip_score,fid]",
    "tracker=none",
    "runtime.threads=1",
]
STARTED: list[subprocess.Popen[bytes]] = []


def start(folder: Path, *more: str, ranks: int, log: Path) -> subprocess.Popen[bytes]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    env = {**os.environ, "PYTHONPATH": pythonpath()}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *torchrun, "-m", "research", *JOB, f"output_dir={folder}", *more],
            env=env,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True, scope="module")
def _none_is_left() -> Iterator[None]:
    yield
    for process in STARTED:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its ranks
            process.wait(600)


def result_of(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*/*/result.json")
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("single")
    assert start(folder, ranks=1, log=folder / "log").wait(600) == 0, (folder / "log").read_text()
    return result_of(folder)


def test_a_rank_is_killed_and_the_next_run_goes_on(tmp_path: Path, single: dict[str, Any]) -> None:
    log = tmp_path / "log"
    first = start(tmp_path, ranks=2, log=log)
    until = time.monotonic() + 200
    while len(notes := list(tmp_path.glob("*/*/.batch-*.json"))) < 2:
        assert first.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.01)
    victim = next(pid for pid in children(first.pid) if environ(pid).get("RANK") == "1")
    os.kill(victim, signal.SIGKILL)
    assert first.wait(600) != 0
    assert not list(tmp_path.glob("*/*/result.json"))
    made = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/*/images/*.png")}
    kept = [entry["file"] for note in notes for entry in json.loads(note.read_text())["images"]]

    assert start(tmp_path, ranks=2, log=log).wait(300) == 0, log.read_text()
    both = result_of(tmp_path)
    assert both["images"] == single["images"]  # names, seeds, prompts and hashes
    assert both["metrics"].keys() == single["metrics"].keys() >= {"fid", "clip_score"}
    for name, value in single["metrics"].items():
        assert both["metrics"][name] == pytest.approx(value, rel=1e-3 if name.startswith("fid") else 1e-5)
    for key in ("nfe", "nfe_by_branch", "seeds", "n_images", "truncated", "identity", "batch_size"):
        assert both[key] == single[key], key
    assert both["worker"]["ranks"] == 2
    # what the first run had made was not made again
    assert kept
    folder = next(tmp_path.glob("*/*/result.json")).parent
    assert all((folder / name).stat().st_mtime_ns == made[folder / name] for name in kept)
    assert not list(tmp_path.glob("**/.*"))

    again = start(tmp_path, ranks=2, log=log)
    assert again.wait(600) == 0, log.read_text()
    assert result_of(tmp_path) == both


def children(pid: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(place.name))
    return found


def environ(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


PARTING = """
from research.jobs.engines.collective import broadcast, connected
with connected():
    broadcast({"end": 0})
"""


def test_ranks_part_without_harm(tmp_path: Path) -> None:
    """The group's threads end before the process does: one that they aborted would make a sweep that is done a failed one."""
    (tmp_path / "parting.py").write_text(PARTING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "parting.py"]
    for _ in range(8):
        ended = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": pythonpath()}
        )
        assert ended.returncode == 0, ended.stderr
