"""The sweep that every engine runs, and how a test watches and disturbs it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PLUGS = """
import os, time
from research import Hook

class Pause(Hook):
    # as long as the environment says, so that there is time to disturb a sweep whose images stay the same
    def post_step(self, state):
        time.sleep(float(os.environ.get("PAUSE", 0)))
"""
Results = dict[str, dict[str, Any]]


def lines(models: list[Path]) -> list[str]:
    """Twelve jobs: two models, two numbers of steps, three guidance scales."""
    return [
        f"model.path={','.join(map(str, models))}",
        "steps=2,3",
        "guidance.scale=1,2,3",
        "prompts=[fox,owl]",
        "tracker=none",
        "metrics=none",
        "runtime.threads=1",
        "+hooks.pause._target_=engine_plugs.Pause",
    ]


class Sweep:
    """``research -m`` in a process of its own, in a folder of its own."""

    def __init__(
        self, folder: Path, models: list[Path], *more: str, pause: float, env: Mapping[str, str] | None = None
    ):
        folder.mkdir(exist_ok=True)
        (folder / "engine_plugs.py").write_text(PLUGS)
        self.folder, self.log = folder, folder / "log.txt"
        self.command = [sys.executable, "-m", "research", "-m", *lines(models), *more]
        self.env = {**os.environ, **(env or {}), "PAUSE": str(pause), "PYTHONPATH": pythonpath()}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sweep:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()

    def results(self) -> Results:
        return read(self.folder)

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = 240) -> Any:
        """Wait until something is so, as long as the sweep runs, and return it."""
        assert self.process is not None
        until = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, f"{what}: the sweep has ended\n{self.log.read_text()}"
            assert time.monotonic() < until, f"{what}: not so after {seconds} s\n{self.log.read_text()}"
            time.sleep(0.1)
        return found

    def end(self, seconds: float = 300) -> str:
        """Wait for its end, see that it went well, and return what it printed."""
        assert self.process is not None
        code = self.process.wait(seconds)
        shown = self.log.read_text()
        assert code == 0, shown
        return shown


def read(folder: Path) -> Results:
    found: Results = {}
    for file in folder.glob("outputs/*/*/result.json"):
        with contextlib.suppress(OSError, ValueError):
            result = json.loads(file.read_text(encoding="utf-8"))
            found[result["job_id"]] = result
    return found


def images(results: Results) -> dict[str, list[str]]:
    """The hashes of all images, by job."""
    return {job: [entry["sha256"] for entry in result["images"]] for job, result in results.items()}


def at_work(folder: Path) -> dict[str, int]:
    """The processes at work, by the job they are at."""
    found = {}
    for file in folder.glob("outputs/*/*/.claim.*"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            pid = int(json.loads(file.read_text())["pid"])
            if not (file.parent / "result.json").exists() and Path(f"/proc/{pid}").exists():
                found[file.parent.name] = pid
    return found


def workers(results: Results) -> dict[int, list[dict[str, Any]]]:
    """The results by the process that made them."""
    found: dict[int, list[dict[str, Any]]] = {}
    for result in results.values():
        found.setdefault(result["worker"]["pid"], []).append(result)
    return found


def check_loads(results: Results) -> None:
    """Each worker loaded each model that it had once, and no chunk mixes models."""
    for made in workers(results).values():
        by_chunk: dict[str, set[str]] = {}
        for result in made:
            by_chunk.setdefault(result["worker"]["chunk"], set()).add(result["config"]["model"]["path"])
        assert all(len(models) == 1 for models in by_chunk.values())
        models = {result["config"]["model"]["path"] for result in made}
        assert sum(result["timings"]["load"] > 0 for result in made) <= len(models)


def check_nothing_left(folder: Path) -> None:
    """No claims, chunks or half-written files."""
    left = [p for p in folder.glob("outputs/**/.*") if ".submitit" not in p.parts]
    assert not left


def pythonpath() -> str:
    import research

    return os.pathsep.join([str(Path(research.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
