"""A pluggable framework for research on how diffusion models are sampled.

The names below are the public API. They are imported on first use, so that ``import research`` (and with it the
command line's help) costs no torch import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names
from research.package import VERSION as __version__
from research.package import config_dir as config_dir

if TYPE_CHECKING:
    from research.models import load_model as load_model
    from research.sampling import Hook as Hook
    from research.sampling import LoopSampler as LoopSampler
    from research.sampling import Sampler as Sampler
    from research.sampling import SampleResult as SampleResult
    from research.sweeps import load_sweep as load_sweep
    from research.sweeps import sweep as sweep

_LAZY = {
    "load_model": "research.models",
    "LoopSampler": "research.sampling",
    "Sampler": "research.sampling",
    "SampleResult": "research.sampling",
    "Hook": "research.sampling",
    "load_sweep": "research.sweeps",
    "sweep": "research.sweeps",
}

__all__ = [
    "Hook",
    "LoopSampler",
    "SampleResult",
    "Sampler",
    "__version__",
    "config_dir",
    "load_model",
    "load_sweep",
    "sweep",
]


__getattr__ = lazy_names(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
