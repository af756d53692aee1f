"""Several trackers at once: ``tracker=[wandb,tensorboard]``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from research.errors import ConfigError, one_line

_log = logging.getLogger(__name__)


class Several:
    """Hands jobs to trackers in their order; one that fails is no reason to do without the others.

    Args:
        trackers: by name, objects with ``log_job`` and ``close``.

    Raises:
        ConfigError: one of them is none, or there are none.
    """

    def __init__(self, **trackers: Any) -> None:
        for name, tracker in trackers.items():
            if not callable(getattr(tracker, "log_job", None)) or not callable(getattr(tracker, "close", None)):
                raise ConfigError(
                    f"tracker.{name}: found {tracker!r}; accepted are trackers: tracker=[wandb,tensorboard]."
                )
        if not trackers:
            raise ConfigError("tracker: found several of none; accepted is tracker=[wandb,tensorboard].")
        self.trackers = trackers
        self.close_limit = sum(float(getattr(tracker, "close_limit", 60.0)) for tracker in trackers.values())

    def check_jobs(self, count: int) -> None:
        """See `WandbTracker.check_jobs`."""
        for tracker in self.trackers.values():
            if (check := getattr(tracker, "check_jobs", None)) is not None:
                check(count)

    def log_job(self, job_dir: Path) -> None:
        self._each("log_job", job_dir)

    def close(self) -> None:
        self._each("close")

    def _each(self, call: str, *arguments: Any) -> None:
        for name, tracker in self.trackers.items():
            try:
                getattr(tracker, call)(*arguments)
            except Exception as error:  # of one mirror
                _log.warning("tracker.%s: %s; the local files are whole", name, one_line(error))
