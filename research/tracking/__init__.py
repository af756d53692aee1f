"""Trackers mirror finished jobs elsewhere. The local files are the truth; a tracker only reads them.

wandb is imported by neither this package nor the process that samples: it lives in a process of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.tracking.base import Tracker as Tracker
    from research.tracking.wandb_tracker import WandbTracker as WandbTracker

_LAZY = {"Tracker": "research.tracking.base", "WandbTracker": "research.tracking.wandb_tracker"}

__all__ = ["Tracker", "WandbTracker"]


__getattr__ = lazy_names(__name__, _LAZY)
