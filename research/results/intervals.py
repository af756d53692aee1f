"""How sure a job's number is, and how two jobs differ in it, from their records: what `research.statistics` says of them."""

from __future__ import annotations

import math
import statistics as python_statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from research.results import scales, set_scores
from research.results.read import Row
from research.statistics import IMAGES, LEVEL, PROMPTS, SEEDS, Estimate, apart, around, drawn, mean, unit_of

MOST_SECONDS = 3.0  # that the interval of one job may take
_NAMED = ("interval", "ci", "ci95", "confidence_interval", "bootstrap")
_ENDS = (("low", "high"), ("lo", "hi"), ("lower", "upper"), ("ci_low", "ci_high"), ("ci95_low", "ci95_high"))


def interval(row: Row, key: str) -> Estimate | None:
    """A metric of a job with its interval at 95 %, or None if nothing in the record says how sure it is.

    It is over prompts, seeds or images as `unit_of` says: of a mean over images that of `research.statistics.mean`, of a
    distance of a set whose features were kept that of the jackknife, about the number as it is (what it would be with as many
    other images). Of another number it is what the metric itself says, or Student's interval of its standard error. It ends at
    the bounds of the metric.
    """
    if ("interval", key) not in row.derived:
        made = _interval(row, key)
        row.derived["interval", key] = None if made is None else _inside(made, bounds_of(row, key))
    found: Estimate | None = row.derived["interval", key]
    return found


def bounds_of(row: Row, key: str) -> scales.Bounds | None:
    """The bounds of a metric, unless the number lies outside: then it is another than its name says."""
    ends, value = scales.bounds(key, row.info(key)), row.metrics.get(key)
    return ends if ends is not None and value is not None and ends[0] <= value <= ends[1] else None


def _inside(found: Estimate, ends: scales.Bounds | None) -> Estimate:
    return found if ends is None else replace(found, low=max(found.low, ends[0]), high=min(found.high, ends[1]))


def _interval(row: Row, key: str) -> Estimate | None:
    value = row.metrics.get(key)
    if value is None or not math.isfinite(value):
        return None
    if (ends := _said(row, key)) is not None:
        return Estimate(
            value, *ends, se=math.nan, p=math.nan, n=row.n_images, freedom=math.nan, method="the metric's own"
        )
    if scores := summands(row, key):
        prompts = [prompt for prompt, _ in scores]
        units, strata = drawn(prompts, unit_of(prompts, row.unit))
        found = mean(list(scores.values()), units, bounds=bounds_of(row, key), strata=strata)
        # prompts with unequal numbers of images: the metric is the mean of the images
        moved = 0.0 if found is None else value - found.value
        return None if found is None else replace(found, value=value, low=found.low + moved, high=found.high + moved)
    if set_scores.kind(row.info(key)) is not None and set_scores.seconds(row, key) <= MOST_SECONDS:
        try:
            sets = set_scores.replicates(row, key, set_scores.shared_images(row, row)).estimate()
        except set_scores.NoFeatures:
            sets = None
        if sets is not None:
            return replace(sets, value=value, low=value + sets.low - sets.value, high=value + sets.high - sets.value)
    error = row.metrics.get(f"{key}_se")
    # what a metric says itself is over images
    if error is None or not math.isfinite(error) or unit(row) != IMAGES:
        return None
    return around(value, error, max(2, row.n_images))


def unit(row: Row) -> str:
    """What a job's intervals are over, as `unit_of` says."""
    return unit_of([image.prompt or "" for image in row.images], row.unit)


def unit_in_words(row: Row) -> str:
    """The same for a reader, with what it holds for."""
    prompts = len({image.prompt for image in row.images})
    return {
        PROMPTS: f"over {prompts} prompts, for other prompts of the kind (report.unit=seeds: for other seeds of these)",
        SEEDS: f"over the seeds of {prompts} prompts, for other seeds of these prompts and not for other prompts",
    }.get(unit(row), "over images")


def difference(a: Row, b: Row, key: str) -> Estimate | None:
    """`a` less `b`: paired over the prompts and seeds that both have, where the metric is a mean over images or a distance of a
    set whose features were kept (`research.results.set_scores`); of other numbers that say their own spread, as of independent
    samples. None if that cannot be said, or of a distance of sets that are too small for it.
    """
    return contrast(a, b, key)


def contrast(a: Row, b: Row, key: str, times: float = 1.0) -> Estimate | None:
    """`a` less `times` what `b` has; see `difference`."""
    if set_scores.kind(a.info(key)) is not None and set_scores.kind(b.info(key)) is not None:
        return _of_sets(a, b, key, times)
    x, y = summands(a, key), summands(b, key)
    keys = [image for image in x if image in y]
    if keys:
        prompts = [str(image[0]) for image in keys]
        units, strata = drawn(prompts, unit_of(prompts, a.unit))
        return mean([x[image] - times * y[image] for image in keys], units, strata=strata)
    one, other = interval(a, key), interval(b, key)
    if one is None or other is None:
        return None
    return apart(_scaled(_student(other), times), _student(one))


def _of_sets(a: Row, b: Row, key: str, times: float) -> Estimate | None:
    images = set_scores.shared_images(a, b)
    try:
        sides = [set_scores.replicates(row, key, images or set_scores.shared_images(row, row)) for row in (a, b)]
    except set_scores.NoFeatures:
        return None
    x, y = sides
    if images:
        found = x.less(y, times)
    else:
        one, other = (side.estimate() for side in sides)
        found = None if one is None or other is None else apart(_scaled(other, times), one)
    return found if found is not None and found.n >= max(x.least, y.least) else None


def _student(found: Estimate) -> Estimate:
    """An interval with a standard error: half its width over that of a unit normal, where the metric gave ends alone."""
    freedom = found.freedom if math.isfinite(found.freedom) else max(1.0, found.n - 1)
    if math.isfinite(found.se):
        return replace(found, freedom=freedom)
    half = (found.high - found.low) / 2
    return replace(found, se=half / python_statistics.NormalDist().inv_cdf((1 + LEVEL) / 2), freedom=freedom)


def _scaled(found: Estimate, times: float) -> Estimate:
    return replace(found, value=times * found.value, se=abs(times) * found.se)


def summands(row: Row, key: str) -> Mapping[tuple[str, Any], float]:
    """Scores of the images whose mean the metric is; none where it is no such mean."""
    scores, value = row.scores.get(key, {}), row.metrics.get(key)
    if not scores or value is None:
        return {}
    found = python_statistics.fmean(scores.values())
    return scores if math.isclose(found, value, rel_tol=1e-3, abs_tol=1e-6) else {}


def _said(row: Row, key: str) -> tuple[float, float] | None:
    """The interval that the metric gives itself, in its info or as numbers of their own beside it."""
    info = row.result.metrics_info.get(key)
    found: list[Any] = [info.get(name) for name in _NAMED] if isinstance(info, Mapping) else []
    pairs = [_pair(f) for f in found]
    pairs += [_pair([row.metrics.get(f"{key}_{low}"), row.metrics.get(f"{key}_{high}")]) for low, high in _ENDS]
    return next((p for p in pairs if p is not None), None)


def _pair(found: Any) -> tuple[float, float] | None:
    if isinstance(found, Mapping):
        return next((p for low, high in _ENDS if (p := _pair([found.get(low), found.get(high)])) is not None), None)
    if isinstance(found, Sequence) and not isinstance(found, str) and len(found) == 2:
        low, high = found
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in (low, high)):
            return (float(low), float(high)) if low <= high else None
    return None
