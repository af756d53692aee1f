"""What may be said of two sides by a difference, its interval and its test, and how many images would settle the rest."""

from __future__ import annotations

from collections.abc import Sequence
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
    Outcome,
    Request,
    Settle,
)
from research.statistics import EXACT, Estimate, holm, needed, resolvable


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
        n=estimate.n,
        method=estimate.method,
        settle=settle,
    )


def judged(outcomes: Sequence[Outcome], request: Request) -> list[Outcome]:
    """Verdicts over all pairs of one metric, adjusted for their number."""
    adjusted = holm([o.p for o in outcomes])
    alpha = 1 - request.level
    tested = sum(o.p is not None for o in outcomes)
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
