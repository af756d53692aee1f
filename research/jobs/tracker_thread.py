"""A tracker on a thread of its own: however slow, dead or broken it is, no job waits for it and none fails."""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_CLOSE_LIMIT, _MORE = 60.0, 5.0  # seconds


class TrackerThread:
    """Hands finished jobs to a tracker.

    Args:
        tracker: with ``log_job(folder)`` and ``close()``; its ``close_limit``, in seconds, is how long the end of a sweep waits.
    """

    def __init__(self, tracker: Any):
        self.tracker = tracker
        self._jobs: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._said: set[str] = set()

    def check_jobs(self, count: int) -> None:
        """Ask the tracker whether it can keep so many jobs apart, if it has anything to say.

        Raises:
            UserError: it cannot.
        """
        if (check := getattr(self.tracker, "check_jobs", None)) is not None:
            check(count)

    def log_job(self, folder: Path) -> None:
        """Queue a job's folder and return at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
            self._thread.start()
        self._jobs.put(folder.absolute())

    def close(self) -> None:
        """Wait for what is queued, so long as the tracker's ``close_limit`` says."""
        if self._thread is None:
            return
        self._jobs.put(None)
        limit = float(getattr(self.tracker, "close_limit", _CLOSE_LIMIT))
        self._thread.join(limit + _MORE)
        if self._thread.is_alive():
            self._warn(f"did not end within {limit + _MORE:g} s and was left behind")
        self._thread = None

    def _run(self) -> None:
        while (folder := self._jobs.get()) is not None:
            self._safely(self.tracker.log_job, folder)
        self._safely(self.tracker.close)

    def _safely(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            lines = str(error).strip().splitlines()
            self._warn(f"{type(error).__name__}: {lines[0] if lines else 'no message'}")

    def _warn(self, problem: str) -> None:
        if problem not in self._said:
            self._said.add(problem)
            _log.warning("tracker: %s; the local files are whole", problem)
