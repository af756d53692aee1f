"""Jobs, sweeps or values of an axis against each other, paired over prompts and seeds, saying no more than the numbers carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.compare.asked import compare as compare
    from research.compare.outcome import Comparison as Comparison
    from research.compare.outcome import Outcome as Outcome
    from research.compare.outcome import Request as Request
    from research.statistics import Estimate as Estimate

_LAZY = {
    "Comparison": "research.compare.outcome",
    "Estimate": "research.statistics",
    "Outcome": "research.compare.outcome",
    "Request": "research.compare.outcome",
    "compare": "research.compare.asked",
}

__all__ = ["Comparison", "Estimate", "Outcome", "Request", "compare"]

__getattr__ = lazy_names(__name__, _LAZY)
