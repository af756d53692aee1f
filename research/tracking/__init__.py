"""Trackers: copies of finished jobs for Weights & Biases and TensorBoard. The local files are the truth; trackers only read them.

wandb is imported by neither this package nor the process that samples: it lives in a process of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.tracking.several import Several as Several
    from research.tracking.tensorboard_tracker import TensorBoardTracker as TensorBoardTracker
    from research.tracking.wandb_tracker import WandbTracker as WandbTracker

_LAZY = {
    "Several": "research.tracking.several",
    "TensorBoardTracker": "research.tracking.tensorboard_tracker",
    "WandbTracker": "research.tracking.wandb_tracker",
}


class Tracker(Protocol):
    """Mirrors jobs. Neither method raises, and neither waits without a limit.

    A tracker that cannot keep several jobs apart says so in ``check_jobs(count)``, which raises a `UserError` before the first of
    them runs; others need no such method.
    """

    def log_job(self, job_dir: Path) -> None:
        """Called when a job's ``result.json`` is written; reads the job's folder, and returns at once."""
        ...

    def close(self) -> None:
        """Called once at the end; gives what is still under way a limited time."""
        ...


__all__ = ["Several", "TensorBoardTracker", "Tracker", "WandbTracker"]


__getattr__ = lazy_names(__name__, _LAZY)
