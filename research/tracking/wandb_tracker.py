"""The W&B mirror: one run a job, grouped by sweep.

Runs are logged by a worker process (`research.tracking.wandb_worker`), fed by a thread. So sampling never waits for W&B, and a
W&B that hangs, crashes or prints can be killed without touching the sweep.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.errors import ConfigError, nearest
from research.tracking.wandb_environment import DISABLED, heeded
from research.tracking.wandb_process import WorkerProcess
from research.tracking.wandb_server import answers

_log = logging.getLogger(__name__)
MODES = ("offline", "online")
FAILURES_AT_MOST = (
    2  # in a row; then online runs are written offline, and the rest of the sweep is no longer mirrored offline
)
SILENT_AT_MOST = 3  # looks in a row at a server that gives no answer, at the end of a sweep


class WandbTracker:
    """Mirrors finished jobs to Weights & Biases, offline unless asked otherwise; nothing it does can fail a job.

    What a mirror misses, for whatever reason, ``research-wandb sync FOLDER`` brings to the server later.

    Args:
        mode: None is what ``WANDB_MODE`` or ``WANDB_DISABLED`` say, else offline. ``offline`` writes runs to disk;
            ``online`` needs a key, and without one, or with a server that fails, a warning is
            logged and runs are written offline.
        project: W&B project; None for that of ``WANDB_PROJECT``, else research.
        entity: W&B user or team; None for that of ``WANDB_ENTITY``, else the key's own.
        tags: added to each run's tags.
        max_images: sample images a run.
        artifacts: whether all images of a job are kept on the server as an artifact too (online only).
        time_limit: seconds a job's mirror may take; then it is given up, with a warning. None: 30 offline, 120 online.
        request_timeout: seconds a server may take for one request, and for beginning a run.
        retries: of a request that failed.
        close_limit: seconds that the end of a sweep waits for mirrors under way.
        directory: where run files go; None for that of ``WANDB_DIR``, else ``<sweep folder>/wandb``.

    Raises:
        ConfigError: an unknown mode, or a number out of range.
    """

    def __init__(
        self,
        mode: str | None = None,
        project: str | None = None,
        entity: str | None = None,
        tags: Sequence[str] = (),
        max_images: int = 16,
        artifacts: bool = False,
        time_limit: float | None = None,
        request_timeout: float = 10.0,
        retries: int = 2,
        close_limit: float = 30.0,
        directory: str | None = None,
    ) -> None:
        if mode is not None and mode not in MODES:
            raise ConfigError(
                f"tracker.mode: found {mode!r}; accepted is {' or '.join(MODES)}.{nearest(str(mode), MODES)}"
            )
        limits = {"time_limit": time_limit, "request_timeout": request_timeout, "close_limit": close_limit}
        for name, seconds in limits.items():
            if seconds is not None and not (is_number(seconds) and seconds > 0):
                raise ConfigError(f"tracker.{name}: found {seconds!r}; accepted is a number of seconds above 0.")
        for name, count in {"max_images": max_images, "retries": retries}.items():
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ConfigError(f"tracker.{name}: found {count!r}; accepted is a whole number from 0.")
        self.heeded = heeded(mode, project, entity, directory)
        mode, directory = self.heeded.mode, self.heeded.directory
        self.time_limit = float(time_limit or (30.0 if mode == "offline" else 120.0))
        self.close_limit = float(close_limit)
        self._settings: dict[str, Any] = {
            "mode": mode,
            "project": self.heeded.project,
            "entity": self.heeded.entity,
            "run_id": None if self.heeded.agent else self.heeded.run_id,
            "tags": [tags] if isinstance(tags, str) else [str(tag) for tag in tags],
            "max_images": max_images,
            "artifacts": artifacts,
            "time_limit": self.time_limit,
            "request_timeout": float(request_timeout),
            "retries": retries,
            "directory": directory,
        }
        self._jobs: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._worker: WorkerProcess | None = None
        self._warned: set[str] = set()
        self._stopped = False
        self._given_up = dict.fromkeys(MODES, 0)  # failures in a row

    def check_jobs(self, count: int) -> None:
        """See that so many jobs can each have a run of its own.

        Raises:
            ConfigError: the environment names one run, and there are several jobs.
        """
        if count > 1 and self.heeded.mode != DISABLED and (self.heeded.run_id or self.heeded.agent):
            name = "WANDB_SWEEP_ID" if self.heeded.agent else f"WANDB_RUN_ID={self.heeded.run_id}"
            raise ConfigError(
                f"tracker: {name} names one run, and there are {count} jobs; unset it, run one job, or tracker=none."
            )

    def log_job(self, job_dir: Path) -> None:
        """Queues a job's folder for the mirror and returns at once."""
        while self.heeded.notes:
            _log.info("W&B: %s", self.heeded.notes.pop(0))
        if self.heeded.mode == DISABLED:
            return
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
        self._wait(self._thread)
        if self._thread.is_alive():
            self._stopped = True
            left = self._jobs.qsize()  # the one under way, for the end of the queue
            self._warn(
                f"the mirror did not end within {self.close_limit:g} s and was stopped, with {left} job{'s' * (left != 1)} left"
            )
        if (worker := self._worker) is not None:
            worker.kill()
        self._thread = None

    def _wait(self, thread: threading.Thread) -> None:
        """Wait for the thread; a server that has gone silent is not waited for, and what is left is written offline."""
        deadline, silent = time.monotonic() + self.close_limit, 0
        while thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            thread.join(min(left, 1.0))
            if self._settings["mode"] != "online" or self._given_up["online"] >= FAILURES_AT_MOST:
                continue
            silent = 0 if not thread.is_alive() or answers(2.0) else silent + 1
            if silent >= SILENT_AT_MOST:
                self._given_up["online"] = FAILURES_AT_MOST
                if (worker := self._worker) is not None:
                    worker.stop()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._stopped:
                return
            mode = str(self._settings["mode"])
            if mode == "online" and self._given_up["online"] < FAILURES_AT_MOST:
                if self._mirror(job, "online", ", and is written offline"):
                    continue
                mode = "offline"
            if not self._stopped and self._given_up["offline"] < FAILURES_AT_MOST:
                self._mirror(job, "offline")
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _mirror(self, job: Path, mode: str, instead: str = "") -> bool:
        """Whether a job could be logged; what went wrong is logged, and the worker replaced."""
        began = time.monotonic()
        answer = self._ask({"job": str(job), "settings": {"mode": mode}})
        if self._stopped:
            return False
        if answer["ok"]:
            self._given_up[mode] = 0
        else:
            # a server that does not answer would cost as long each time
            hangs = mode == "online" and time.monotonic() - began >= self._settings["request_timeout"]
            self._given_up[mode] += FAILURES_AT_MOST if hangs else 1
        if warning := answer.get("warning"):
            self._warn(f"{warning}{'' if answer['ok'] else instead}")
        return bool(answer["ok"])

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if self._worker is None:
                self._worker = WorkerProcess(self._settings)
            answer = self._worker.ask(request, self.time_limit)
        except (OSError, ValueError, TimeoutError) as error:
            answer = {"ok": False, "warning": str(error)}
        if not answer["ok"] and self._worker is not None:
            self._worker.kill()
            self._worker = None
        return answer

    def _warn(self, problem: str) -> None:
        if problem not in self._warned:
            self._warned.add(problem)
            _log.warning("W&B: %s; the local files are whole", problem)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
