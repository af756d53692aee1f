"""No guidance."""

from __future__ import annotations

from research.sampling.plugs import Guidance


class NoGuidance(Guidance):
    """The conditional prediction as it is: one evaluation a stage."""
