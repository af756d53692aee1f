"""The W&B mirror: one run a job, grouped by sweep.

Runs are logged by a worker process (`research.tracking.worker`), fed by a thread. So sampling never waits for W&B, and a
W&B that hangs, crashes or prints can be killed without touching the sweep.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import research
from research.errors import ConfigError, nearest

_log = logging.getLogger(__name__)
MODES = ("offline", "online")
FAILURES_AT_MOST = 2  # in a row, before the rest of the sweep is no longer mirrored
LINE_AT_MOST = 1 << 20


class WandbTracker:
    """Mirrors finished jobs to Weights & Biases, offline unless asked otherwise; nothing it does can fail a job.

    Args:
        mode: ``offline`` writes runs to disk (`wandb sync` uploads them later); ``online`` needs a key, and without one a
            warning is logged and runs are written offline.
        project: W&B project.
        entity: W&B user or team; None for the key's own.
        tags: added to each run's tags.
        max_images: sample images a run.
        time_limit: seconds a job's mirror may take; then it is given up, with a warning.
        close_limit: seconds that the end of a sweep waits for mirrors under way.
        directory: where run files go; None for ``<sweep folder>/wandb``.

    Raises:
        ConfigError: an unknown mode.
    """

    def __init__(
        self,
        mode: str = "offline",
        project: str = "research",
        entity: str | None = None,
        tags: Sequence[str] = (),
        max_images: int = 16,
        time_limit: float | None = None,
        close_limit: float = 60.0,
        directory: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(
                f"tracker.mode: found {mode!r}; accepted is {' or '.join(MODES)}.{nearest(str(mode), MODES)}"
            )
        self.time_limit = time_limit if time_limit is not None else (30.0 if mode == "offline" else 120.0)
        self.close_limit = close_limit
        self._settings: dict[str, Any] = {
            "mode": mode,
            "project": project,
            "entity": entity,
            "tags": list(tags),
            "max_images": max_images,
            "directory": directory,
        }
        self._jobs: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._worker: _Worker | None = None
        self._warned: set[str] = set()
        self._stopped = False

    def log_job(self, job_dir: Path) -> None:
        """Queues a job's folder for the mirror and returns at once."""
        if self._thread is None:
            self._stopped = False
            self._thread = threading.Thread(target=self._run, name="wandb-mirror", daemon=True)
            self._thread.start()
        self._jobs.put(Path(job_dir).resolve())

    def close(self) -> None:
        """Waits for queued jobs, `close_limit` seconds at most, and ends the worker."""
        if self._thread is None:
            return
        self._jobs.put(None)
        self._thread.join(self.close_limit)
        if self._thread.is_alive():
            self._warn(f"the mirror did not end within {self.close_limit:g} s and was stopped")
            self._stopped = True
        if self._worker is not None:
            self._worker.kill()
        self._thread = None

    def _run(self) -> None:
        failures = 0
        while (job := self._jobs.get()) is not None:
            if failures >= FAILURES_AT_MOST:
                continue
            try:
                if self._worker is None:
                    self._worker = _Worker(self._settings)
                answer = self._worker.ask(job, self.time_limit)
            except (OSError, ValueError, TimeoutError) as error:
                answer = {"ok": False, "warning": str(error)}
                if self._worker is not None:
                    self._worker.kill()
                    self._worker = None
            if self._stopped:
                return
            failures = 0 if answer.get("ok") else failures + 1
            if warning := answer.get("warning"):
                self._warn(str(warning))
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _warn(self, problem: str) -> None:
        if problem not in self._warned:
            self._warned.add(problem)
            _log.warning("W&B: %s; the local files are whole", problem)


class _Worker:
    """The other process: a job's folder goes in as a line, an answer comes out as a line."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # the worker must find this package also where it was put on the path by hand
        paths = [str(Path(research.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "research.tracking.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt at the keyboard must not tear a run that is being written
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
        )

    def ask(self, job: Path, limit: float) -> dict[str, Any]:
        """Raises TimeoutError after `limit` seconds, OSError if the process has died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"job": str(job), "limit": limit}).encode() + b"\n")
        stdin.flush()
        deadline = time.monotonic() + limit
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"no answer within {limit:g} s")
            piece = os.read(stdout.fileno(), LINE_AT_MOST)
            if not piece:
                raise OSError(f"the mirror's process ended (exit code {self._process.wait(5)})")
            line += piece
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Lets the process end by itself, for 10 s."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(10)
        self.kill()

    def kill(self) -> None:
        """Ends the process and what it started (W&B's own service)."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
