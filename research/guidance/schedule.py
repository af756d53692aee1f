"""A guidance scale that changes over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from research.checks import check_choice, check_number
from research.errors import ConfigError
from research.guidance.modifier import Modifier
from research.sampling.interfaces import Batch, Branch, Guidance, Guided, Scale, StepState
from research.sampling.prediction import Prediction

_KEY = "guidance.modifiers.schedule"
# the part of the way from start to end, of the part p of the steps that is done, and the power
_SHAPES = {
    "constant": lambda p, power: 1.0,
    "linear": lambda p, power: p,
    "cosine": lambda p, power: (1 - math.cos(math.pi * p)) / 2,
    "power": lambda p, power: p**power,
    "power_cosine": lambda p, power: (1 - math.cos(math.pi * p**power)) / 2,
    "triangle": lambda p, power: 1 - abs(2 * p - 1),
}


class Schedule(Modifier):
    """The scale of a guidance as a function of the step (Wang et al., arXiv:2404.13040, table 1).

    Over the user's steps ``k = 0 ... n - 1``, with ``p = k / (n - 1)``, the scale goes from ``start`` to ``end``: linearly, as
    ``(1 - cos(pi p)) / 2`` (cosine), as ``p ** power``, as ``(1 - cos(pi p ** power)) / 2`` (power_cosine, MDT,
    arXiv:2303.14389, whose power is 4), or there and back (triangle, the paper's Lambda shape). Scales that were learned or
    found for each step are ``values``. The number of
    model evaluations follows: a stage whose scale is neutral costs what no guidance costs.

    Args:
        guidance: whose scale is set. Around `Interval` or another modifier it is that of the guidance inside.
        kind: constant, linear, cosine, power, power_cosine or triangle.
        start, end: scales; by default from the one that is no guidance to the guidance's own.
        power: above 0, of the kinds "power" and "power_cosine".
        reverse: the other way round, from ``end`` to ``start``.
        values: scales at even distances over the steps, first to last, on straight lines between; instead of all the others.

    Raises:
        ConfigError: an unknown kind, or a number that is not finite or out of range.
    """

    def __init__(
        self,
        guidance: Guidance,
        kind: str = "linear",
        start: float | None = None,
        end: float | None = None,
        power: float = 2.0,
        reverse: bool = False,
        values: Sequence[float] | None = None,
    ):
        super().__init__(guidance)
        self.kind, self.reverse = check_choice(f"{_KEY}.kind", kind, _SHAPES), bool(reverse)
        self.start_scale = None if start is None else check_number(f"{_KEY}.start", start)
        self.end_scale = None if end is None else check_number(f"{_KEY}.end", end)
        self.power = check_number(f"{_KEY}.power", power, above=0)
        self.values = None if values is None else self._checked(values)
        if kind != "constant" and self.start_scale is None and self.neutral is None and self.values is None:
            raise ConfigError(
                f"{_KEY}.start: must be given, as no scale of this guidance is no guidance to start from."
            )
        lowest, highest = self.scale_range
        for name, value in (("start", self.start_scale), ("end", self.end_scale)):
            if value is not None and not lowest <= value <= highest:
                raise ConfigError(
                    f"{_KEY}.{name}: found {value:g}; accepted with this guidance is {lowest:g} to {highest:g}."
                )

    @property
    def requires(self) -> frozenset[str]:
        """What any scale on the way needs."""
        reached = self._reached(self.scale)
        return self.guidance.requires.union(*(self.guidance.with_scale(scale).requires for scale in reached))

    def vectorises(self) -> bool:
        # from a start of its own it may come by the scale that needs no second prediction, each scale at another step
        return self.guidance.vectorises() and self.start_scale in (None, self.neutral) and self.values is None

    def at(self, step: int, n_steps: int, own: Scale | None = None) -> Scale:
        """The scale at the user's step ``step`` of ``n_steps``, counted from 0, of a guidance whose own is ``own``."""
        part = step / (n_steps - 1) if n_steps > 1 else 1.0
        if self.values is not None:
            place = (1 - part if self.reverse else part) * (len(self.values) - 1)
            before = min(int(place), len(self.values) - 2) if len(self.values) > 1 else 0
            after = min(before + 1, len(self.values) - 1)
            return self.values[before] + (place - before) * (self.values[after] - self.values[before])
        start, end = self._ends(self.scale if own is None else own)
        return start + (end - start) * _SHAPES[self.kind](1 - part if self.reverse else part, self.power)

    def start(self, run: Batch) -> None:
        # a guidance that makes ready only what its scale needs is asked at the one that needs most
        def reach(scale: Scale) -> float:
            return abs(float(scale) - (self.neutral or 0.0))

        with run.at_scale(self, max(self._reached(run.scale_of(self)), key=reach)):
            super().start(run)

    def differentiates(self, state: StepState) -> bool:
        with self._scaled(state):
            return self.guidance.differentiates(state)

    def stands_still(self, state: StepState) -> bool:
        with self._scaled(state):
            return self.guidance.stands_still(state)

    def branches(self, state: StepState) -> Sequence[Branch]:
        with self._scaled(state):
            return self.guidance.branches(state)

    def combine(self, state: StepState, predictions: Mapping[str, Prediction]) -> Guided:
        with self._scaled(state):
            return self.guidance.combine(state, predictions)

    def _checked(self, values: Sequence[float]) -> tuple[float, ...]:
        listed = list(values) if isinstance(values, list | tuple) else []
        lowest, highest = self.scale_range
        if not listed or not all(lowest <= check_number(f"{_KEY}.values", value) <= highest for value in listed):
            raise ConfigError(
                f"{_KEY}.values: found {values!r:.200}; accepted is a list of scales, with this guidance from {lowest:g} to "
                f"{highest:g}."
            )
        return tuple(float(value) for value in listed)

    def _reached(self, own: Scale) -> Sequence[Scale]:
        """Scales on the way of which one needs all that any needs."""
        return self._ends(own) if self.values is None else self.values

    def _ends(self, own: Scale) -> tuple[Scale, Scale]:
        end = own if self.end_scale is None else self.end_scale
        if self.start_scale is not None:
            return self.start_scale, end
        return end if self.kind == "constant" or self.neutral is None else self.neutral, end

    def _scaled(self, state: StepState) -> AbstractContextManager[None]:
        return state.at_scale(self, self.at(state.stage.step, state.stage.n_steps, state.scale_of(self)))
