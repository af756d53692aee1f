"""Sweeps from Python: asked for with objects, and read back as objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.sweeps.loaded import LoadedJob as LoadedJob
    from research.sweeps.loaded import LoadedSweep as LoadedSweep
    from research.sweeps.loaded import load_sweep as load_sweep
    from research.sweeps.running import sweep as sweep

_LAZY = {
    "LoadedJob": "research.sweeps.loaded",
    "LoadedSweep": "research.sweeps.loaded",
    "load_sweep": "research.sweeps.loaded",
    "sweep": "research.sweeps.running",
}

__all__ = ["LoadedJob", "LoadedSweep", "load_sweep", "sweep"]


__getattr__ = lazy_names(__name__, _LAZY)
