"""What modifiers share: they wrap any guidance, and each other."""

from __future__ import annotations

from research.guidance.wrapping import Wrapping
from research.sampling.interfaces import Guidance


class Modifier(Wrapping):
    """A guidance with something changed about it. Its scale is that of the guidance inside."""

    def __init__(self, guidance: Guidance):
        super().__init__(guidance)

    @property
    def scale(self) -> float:
        return self.guidance.scale

    @scale.setter
    def scale(self, value: float) -> None:
        self.guidance.scale = value

    @property
    def neutral(self) -> float | None:  # type: ignore[override]
        return self.guidance.neutral

    @property
    def scale_range(self) -> tuple[float, float]:  # type: ignore[override]
        return self.guidance.scale_range
