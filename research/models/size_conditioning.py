"""What Stable Diffusion XL is told of its pictures besides their text (Podell et al., arXiv:2307.01952, 2.2). Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from research.checks import check_number
from research.errors import ConfigError, nearest

KEY = "model.size_conditioning"
Pair = tuple[float, float]


@dataclass(frozen=True)
class SizeConditioning:
    """The numbers besides the text, as if a picture of training had them. Each ``negative_`` one is of the prediction that
    guidance leads away from, and like the other by default; but for the scores, which the refiner alone is told.

    Attributes:
        original_size: height and width in pixels before it was resized for training; the picture's own by default.
        crop: pixels that were cut off at the top and on the left.
        target_size: height and width that it was brought to; the picture's own by default.
        aesthetic_score: of its looks, from 1 to 10.
    """

    original_size: Pair | None = None
    crop: Pair = (0, 0)
    target_size: Pair | None = None
    aesthetic_score: float = 6.0
    negative_original_size: Pair | None = None
    negative_crop: Pair | None = None
    negative_target_size: Pair | None = None
    negative_aesthetic_score: float = 2.5

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> SizeConditioning:
        """Read from a mapping.

        Raises:
            ConfigError: an unknown name, or a value that is no number or pair of numbers.
        """
        names = [each.name for each in fields(cls)]
        if given is not None and not isinstance(given, Mapping):
            raise ConfigError(f"{KEY}: found {given!r}; accepted is null, or NAME: VALUE with {', '.join(names)}.")
        found: dict[str, Any] = {}
        for name, value in (given or {}).items():
            if name not in names:
                raise ConfigError(f"{KEY}.{name}: unknown key.{nearest(name, names)} Accepted: {', '.join(names)}.")
            if value is not None:
                found[name] = check_number(f"{KEY}.{name}", value) if "score" in name else _pair(f"{KEY}.{name}", value)
        return cls(**found)

    @property
    def differs(self) -> bool:
        """Whether the sizes of the two predictions are told apart."""
        return self._sizes(negative=True) != self._sizes(negative=False)

    def numbers(self, size: Pair, *, negative: bool, scored: bool) -> list[float]:
        """What the network is told of a picture of a size in pixels."""
        original, crop, target = self._sizes(negative=negative)
        last = [self.negative_aesthetic_score if negative else self.aesthetic_score] if scored else (target or size)
        return [*(original or size), *crop, *last]

    def _sizes(self, *, negative: bool) -> tuple[Pair | None, Pair, Pair | None]:
        own = self.original_size, self.crop, self.target_size
        if not negative:
            return own
        others = self.negative_original_size, self.negative_crop, self.negative_target_size
        original, crop, target = (one if other is None else other for one, other in zip(own, others, strict=True))
        return original, crop or (0, 0), target


def _pair(key: str, value: Any) -> Pair:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ConfigError(f"{key}: found {value!r}; accepted are two numbers, as [1024, 1024].")
    first, second = (check_number(key, each, least=0) for each in value)
    return first, second
