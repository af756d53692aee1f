"""Trackers mirror finished jobs elsewhere. The local files are the truth; a tracker only reads them.

wandb is imported by neither this package nor the process that samples: it lives in a process of its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from research.tracking.base import Tracker as Tracker
    from research.tracking.wandb_tracker import WandbTracker as WandbTracker

_LAZY = {"Tracker": "research.tracking.base", "WandbTracker": "research.tracking.wandb_tracker"}

__all__ = ["Tracker", "WandbTracker"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'research.tracking' has no attribute '{name}'")
