"""Pareto fronts of quality against evaluations and seconds, and whether what is off them is told apart from what beats it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from research.compare.outcome import (
    BETTER,
    EQUAL,
    HIGHER,
    LOWER,
    NOT_APART,
    WORSE,
    Front,
    FrontPoint,
    Outcome,
    SideSummary,
)
from research.results.directions import front

COSTS = ("nfe", "seconds_per_image")
_APART = (BETTER, WORSE, HIGHER, LOWER)


def fronts(
    sides: Sequence[SideSummary], outcomes: Sequence[Outcome], qualities: Mapping[str, int]
) -> tuple[Front, ...]:
    """One for each metric with a direction and each cost, over the sides that have both."""
    verdicts = {(o.metric, *sorted((o.a, o.b))): o.verdict for o in outcomes}
    by_force = {(o.metric, name) for o in outcomes if o.provenance for name in (o.a, o.b)}
    found = []
    for metric, better in qualities.items():
        for cost in COSTS:
            points = [(s, s.values[metric], getattr(s, cost)) for s in sides if metric in s.values]
            points = [p for p in points if p[2] is not None and (cost == "nfe" or (cost, p[0].name) not in by_force)]
            if len(points) > 1:
                made = _points([(s.name, value, price) for s, value, price in points], better, metric, verdicts)
                found.append(Front(metric, cost, made))
    return tuple(found)


def _points(
    points: Sequence[tuple[str, float, float]], better: int, metric: str, verdicts: Mapping[tuple[str, ...], str]
) -> tuple[FrontPoint, ...]:
    on = set(front([(cost, -better * value) for _, value, cost in points]))
    made = []
    for place, (name, value, cost) in enumerate(points):
        if place in on:
            made.append(FrontPoint(name, value, cost, True))
            continue
        beaten = tuple(
            other for k, (other, v, c) in enumerate(points) if k in on and c <= cost and better * v >= better * value
        )
        said = [verdicts.get((metric, *sorted((name, other)))) for other in beaten]
        # equally good at more cost is not told apart either
        apart = (
            True
            if any(v in _APART for v in said)
            else False
            if said and all(v in (NOT_APART, EQUAL) for v in said)
            else None
        )
        made.append(FrontPoint(name, value, cost, False, beaten, apart))
    return tuple(sorted(made, key=lambda p: (p.cost, -better * p.value)))
