"""What a tracker is to the runner."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Mirrors jobs. Neither method raises, and neither waits without a limit."""

    def log_job(self, job_dir: Path) -> None:
        """Called when a job's ``result.json`` is written; reads the job's folder, and returns at once."""
        ...

    def close(self) -> None:
        """Called once at the end; gives what is still under way a limited time."""
        ...
