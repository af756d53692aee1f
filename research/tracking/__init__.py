"""Trackers: copies of finished jobs on a server, Weights & Biases so far. The local files are the truth; trackers only read them.

wandb is imported by neither this package nor the process that samples: it lives in a process of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.tracking.wandb_tracker import WandbTracker as WandbTracker

_LAZY = {"WandbTracker": "research.tracking.wandb_tracker"}


class Tracker(Protocol):
    """Mirrors jobs. Neither method raises, and neither waits without a limit."""

    def log_job(self, job_dir: Path) -> None:
        """Called when a job's ``result.json`` is written; reads the job's folder, and returns at once."""
        ...

    def close(self) -> None:
        """Called once at the end; gives what is still under way a limited time."""
        ...


__all__ = ["Tracker", "WandbTracker"]


__getattr__ = lazy_names(__name__, _LAZY)
