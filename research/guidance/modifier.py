"""What modifiers share: they wrap any guidance, and each other."""

from __future__ import annotations

import copy
from typing import Self

from research.guidance.wrapping import Wrapping
from research.sampling.interfaces import Guidance, Scale


class Modifier(Wrapping):
    """A guidance with something changed about it. Its scale is that of the guidance inside."""

    def __init__(self, guidance: Guidance):
        super().__init__(guidance)

    @property
    def plug(self) -> Guidance:
        return self.guidance.plug

    @property
    def scale(self) -> float:
        return self.guidance.scale

    @scale.setter
    def scale(self, value: float) -> None:
        self.guidance.scale = value

    def with_scale(self, scale: Scale) -> Self:
        found = copy.copy(self)
        found.guidance = self.guidance.with_scale(scale)
        return found

    @property
    def neutral(self) -> float | None:
        return self.guidance.neutral

    @property
    def scale_range(self) -> tuple[float, float]:
        return self.guidance.scale_range
