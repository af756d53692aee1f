"""What may be said of sides: verdicts by a difference, its interval and its test, how many images would settle the rest, and the
Pareto fronts of quality against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from research.compare.outcome import (
    BETTER,
    EQUAL,
    HIGHER,
    LOWER,
    NO_INTERVAL,
    NOT_APART,
    TOO_FEW,
    WORSE,
    Front,
    FrontPoint,
    Outcome,
    Request,
    Settle,
    SideSummary,
)
from research.directions import front
from research.statistics import EXACT, Estimate, holm, needed, resolvable

COSTS = ("nfe", "seconds_per_image")
_APART = (BETTER, WORSE, HIGHER, LOWER)


def with_estimate(outcome: Outcome, estimate: Estimate | None, least: int = 0) -> Outcome:
    """An outcome with its difference, not judged yet: `settle` has the least number of units, and what one contributes."""
    if estimate is None:
        known = outcome.value_a is not None and outcome.value_b is not None
        return replace(outcome, difference=outcome.value_b - outcome.value_a if known else None)  # type: ignore[operator]
    settle = Settle(least, None, estimate.deviation)
    return replace(
        outcome,
        difference=estimate.value,
        low=estimate.low,
        high=estimate.high,
        p=estimate.p,
        p_many=estimate.p_many,
        n=estimate.n,
        method=estimate.method,
        settle=settle,
    )


def judged(outcomes: Sequence[Outcome], request: Request) -> list[Outcome]:
    """Verdicts over all pairs of one metric, adjusted for their number."""
    tested = sum(o.p is not None for o in outcomes)
    adjusted = holm([o.p_many if tested > 1 else o.p for o in outcomes])
    alpha = 1 - request.level
    return [
        _verdict(o, p, alpha, alpha / max(1, tested), request.power) for o, p in zip(outcomes, adjusted, strict=True)
    ]


def _verdict(o: Outcome, p_holm: float | None, alpha: float, share_of_alpha: float, power: float) -> Outcome:
    gap = o.difference
    if gap is None or o.low is None or o.high is None:
        return replace(o, verdict=NO_INTERVAL, settle=None)
    if o.method == EXACT and gap == 0:
        return replace(o, p_holm=p_holm, verdict=EQUAL, settle=None)
    deviation, least = (o.settle.resolvable, o.settle.needed or 0) if o.settle is not None else (0.0, 0)
    least_difference = resolvable(deviation, o.n, share_of_alpha, power) if o.n else 0.0
    if o.n < least:
        return replace(o, p_holm=p_holm, verdict=TOO_FEW, settle=Settle(least, least - o.n, least_difference))
    # the test and the interval are made apart; where they disagree, at the edge, nothing is claimed
    told_apart = o.p is None or (p_holm is not None and p_holm <= alpha and not o.low <= 0 <= o.high)
    if told_apart:
        signed = gap * (o.better or 1)
        words = (BETTER, WORSE) if o.better else (HIGHER, LOWER)
        return replace(o, p_holm=p_holm, verdict=words[signed < 0], settle=None)
    count = needed(gap, deviation, share_of_alpha, power)
    count = None if count is None else max(count, o.n + 1)
    return replace(
        o,
        p_holm=p_holm,
        verdict=NOT_APART,
        settle=Settle(count, None if count is None else count - o.n, least_difference),
    )


# -- fronts


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
            points = [p for p in points if p[2] is not None]
            if cost != "nfe":
                points = [p for p in points if (cost, p[0].name) not in by_force and not p[0].out_of_line]
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
        against = [verdicts.get((metric, *sorted((name, other)))) for other in beaten]
        # equally good at more cost is not told apart either
        apart = (
            True
            if any(v in _APART for v in against)
            else False
            if against and all(v in (NOT_APART, EQUAL) for v in against)
            else None
        )
        made.append(FrontPoint(name, value, cost, False, beaten, apart))
    return tuple(sorted(made, key=lambda p: (p.cost, -better * p.value)))
