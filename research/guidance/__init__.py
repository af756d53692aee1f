"""Ways to combine predictions, one file a method."""

from research.guidance.cfg import CFG
from research.guidance.none import NoGuidance
from research.sampling.plugs import Guidance

__all__ = ["CFG", "Guidance", "NoGuidance"]
