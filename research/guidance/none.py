"""No guidance."""

from __future__ import annotations

from research.sampling.interfaces import Guidance


class NoGuidance(Guidance):
    """The conditional prediction as it is: one evaluation a stage."""
