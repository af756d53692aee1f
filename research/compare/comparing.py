"""The comparison itself: which numbers, which pairs, what can be said of each, and what a reader has to know of all."""

from __future__ import annotations

import statistics as python_statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from research.compare import features, seconds
from research.compare.outcome import NOT_APART, TOO_FEW, Comparison, Outcome, Request, SideSummary
from research.compare.pairing import AUTO, Shared, left_over, nothing_shared, share
from research.compare.provenance import differs
from research.compare.scores import Scores
from research.compare.sides import Side, Sides, find_pairs, find_sides
from research.compare.verdicts import fronts, judged, with_estimate
from research.directions import direction, is_companion, label
from research.errors import UserError, nearest
from research.results.axes import find_axes
from research.results.effective_scale import effective_scale
from research.statistics import IMAGES, JACKKNIFE, PROMPTS, SEEDS

MOST_IN_FAMILY = 64  # jobs
NFE, SECONDS = "nfe", "seconds_per_image"
_LABELS = {NFE: "NFE", SECONDS: "s / image"}


def compare(request: Request) -> Comparison:
    """Compare sides pair by pair, metric by metric.

    Raises:
        UserError: one line: nothing to compare or to pair, a metric that is missing, numbers of different provenance.
    """
    found = find_sides(request)
    if request.over == AUTO and found.unit:
        request = replace(request, over=found.unit)
    pairs = find_pairs(found.sides, request.baseline)
    notes = list(found.notes)
    metrics = _metrics(found.sides, request, notes)
    forced = _check_provenance(pairs, metrics, request, notes)
    scores = Scores(request, found.sides)
    outcomes: list[Outcome] = []
    sharing = {pair: share(pair, request.over) for pair in pairs}
    for (a, b), shared in sharing.items():
        if not len(shared) and not request.unpaired:
            raise nothing_shared(a, b, found.within)
        if len(shared):
            notes += left_over(a, b, shared, found.within)
    others = _others(found, pairs, request)
    tested: dict[str, int] = {}
    for metric in metrics:
        made = [_outcome(a, b, metric, sharing[a, b], scores, request, forced) for a, b in pairs]
        for a, b in others if metric not in (NFE, SECONDS) else ():
            if not differs(a, b, metric) and len(shared := share((a, b), request.over)):
                made.append(_outcome(a, b, metric, shared, scores, request, forced))
        outcomes += judged(made, request)[: len(pairs)]
        tested[metric] = sum(o.p is not None for o in made)
    notes += scores.notes
    common = share(found.sides, request.over)
    sides = tuple(_summary(side, metrics, common, scores, found) for side in found.sides)
    if request.effective_scale:
        sides = _with_scales(sides, found.sides, notes)
    notes += _remarks(outcomes, tested, request, found, len(common))
    notes += seconds.remarks(found.sides) if SECONDS in metrics else []
    return Comparison(
        request, sides, tuple(outcomes), fronts(sides, outcomes, _qualities(metrics)), tuple(dict.fromkeys(notes))
    )


def _others(found: Sides, pairs: Sequence[tuple[Side, Side]], request: Request) -> list[tuple[Side, Side]]:
    """Pairs that are tested though nobody asked: all pairs of the jobs of one sweep are one family, with a baseline too, so that
    a pair has one verdict here and in the sweep's report. Of very many jobs only the pairs that are asked for."""
    by_job = request.axis is None and (request.each or len(request.places) == 1)
    if request.baseline is None or not by_job or len(found.sides) > MOST_IN_FAMILY:
        return []
    asked = {frozenset(pair) for pair in pairs}
    sides = found.sides
    every = [(a, b) for place, a in enumerate(sides) for b in sides[place + 1 :]]
    return [pair for pair in every if frozenset(pair) not in asked]


def _metrics(sides: Sequence[Side], request: Request, notes: list[str]) -> dict[str, int]:
    """The numbers to compare, and which direction of each is better (0 where none is said)."""
    have = [[{key for row in job.rows for key in row.metrics} for job in side.jobs] for side in sides]
    everywhere = set.intersection(*(keys for side in have for keys in side))
    anywhere = set.union(*(keys for side in have for keys in side))
    known = {key for key in everywhere if not is_companion(key, anywhere)}
    if request.metrics:
        for key in request.metrics:
            if key in (NFE, SECONDS) or key in everywhere:
                continue
            lacking = [s.name for s, keys in zip(sides, have, strict=True) if not all(key in k for k in keys)]
            accepted = f"{nearest(key, [*known, NFE, SECONDS])} Accepted: {', '.join([*sorted(known), NFE, SECONDS])}"
            if key in anywhere:
                raise UserError(
                    f"--metrics: {key} is missing in jobs of {'; '.join(lacking[:3])}; research-score computes it from the "
                    f"images.{accepted}."
                )
            raise UserError(
                f"--metrics: found {key!r}, which no job has.{accepted}; research-score computes others from the images."
            )
        chosen = list(dict.fromkeys(request.metrics))
    else:
        lost = sorted(key for key in anywhere - everywhere if not is_companion(key, anywhere))
        if lost:
            notes.append(
                f"Not in all jobs, and left out: {', '.join(lost)}; research-score computes them from the images."
            )
        chosen = [*sorted(known, key=lambda k: (k != "clip_score", k)), NFE, SECONDS]
    return {key: _direction(key, sides) for key in chosen}


def _direction(key: str, sides: Sequence[Side]) -> int:
    if key in (NFE, SECONDS):
        return -1 if key == SECONDS else 0
    infos = (row.info(key) for side in sides for job in side.jobs if (row := job.holder(key)) is not None)
    return direction(key, next((i for i in infos if i), None))


def _qualities(metrics: Mapping[str, int]) -> dict[str, int]:
    return {key: better for key, better in metrics.items() if better and key != SECONDS}


def _check_provenance(
    pairs: Sequence[tuple[Side, Side]], metrics: Mapping[str, int], request: Request, notes: list[str]
) -> dict[tuple[Side, Side, str], str]:
    """Which numbers are compared although they are of different provenance, and how they differ.

    Raises:
        UserError: there are such numbers, and nobody forced it.
    """
    forced = {}
    for metric in metrics:
        for a, b in pairs:
            if metric == NFE:
                continue
            if metric == SECONDS:
                differences = _devices(a, b)
            else:
                differences = differs(a, b, metric)
            if not differences:
                continue
            if not request.force and (metric != SECONDS or SECONDS in request.metrics):
                rest = ",".join(m for m in metrics if m != metric)
                raise UserError(
                    f"{metric}: {a.name} and {b.name} have numbers of different provenance ({differences}); accepted are "
                    f"numbers computed alike (research-score), --metrics {rest or 'OTHERS'}, or --force, which marks them."
                )
            forced[a, b, metric] = differences
            if metric == SECONDS and not request.force:
                notes.append(
                    f"s / image of {a.name} and {b.name} is not compared: {differences} (--force compares it, and marks it)."
                )
    return forced


def _devices(a: Side, b: Side) -> str:
    found = [sorted({r.result.device or "unknown" for j in side.jobs for r in (j.row, *j.repeats)}) for side in (a, b)]
    return (
        "" if found[0] == found[1] and len(found[0]) == 1 else f"device {', '.join(found[0])} and {', '.join(found[1])}"
    )


def _outcome(
    a: Side, b: Side, metric: str, shared: Shared, scores: Scores, request: Request, forced: Mapping[Any, str]
) -> Outcome:
    provenance = forced.get((a, b, metric), "")
    base = Outcome(
        a.name, b.name, metric, _LABELS.get(metric) or label(metric), _direction(metric, [a, b]), None, None,
        provenance=provenance, paired=bool(len(shared)), unit=shared.over,
    )  # fmt: skip
    if metric == NFE:
        x, y = (_nfe(side, shared) for side in (a, b))
        gap = None if x is None or y is None else y - x
        return replace(
            base, value_a=x, value_b=y, difference=gap, low=gap, high=gap, method="exact", n=len(shared.cells)
        )
    if metric == SECONDS:
        cells = list(shared.cells) or sorted(set(a.cells) & set(b.cells), key=repr)
        values = [seconds.per_image(side, cells) for side in (a, b)]
        if provenance and not request.force:
            return replace(base, note=provenance)
        estimate, unit, note = seconds.difference(a, b, cells, request.level)
        return with_estimate(
            replace(base, value_a=values[0], value_b=values[1], unit=unit, note=note, paired=unit == "batches"),
            estimate,
        )
    try:
        found = scores.pair(a, b, metric, shared)
    except features.NoFeatures as error:
        if metric in request.metrics:
            raise
        values = [scores.recorded(side, metric, shared) for side in (a, b)]
        return with_estimate(replace(base, value_a=values[0], value_b=values[1], note=str(error)), None)
    filled = replace(base, value_a=found.value_a, value_b=found.value_b, note=found.note)
    return with_estimate(filled, found.estimate, found.least)


def _nfe(side: Side, shared: Shared) -> float | None:
    jobs = {job for cell in (list(shared.cells) or side.cells) for job in side.jobs_of(cell)}
    counts = [job.row.result.nfe for job in jobs]
    known = [count for count in counts if count is not None]
    return float(python_statistics.fmean(known)) if known and len(known) == len(counts) else None


def _summary(side: Side, metrics: Mapping[str, int], common: Shared, scores: Scores, found: Sides) -> SideSummary:
    first = side.jobs[0].settings
    settings = {a.key: first.get(a.key) for a in find_axes([j.settings for s in found.sides for j in s.jobs])}
    settings = {k: v for k, v in settings.items() if all(j.settings.get(k) == v for j in side.jobs)}
    values = {}
    for metric in metrics:
        if metric not in (NFE, SECONDS) and (value := scores.of_side(side, metric, common)) is not None:
            values[metric] = value
    shared = common if len(common) else share([side], common.over)
    return SideSummary(
        side.name,
        tuple(job.id for job in side.jobs),
        settings,
        side.n_images,
        _nfe(side, shared),
        seconds.per_image(side, list(shared.cells)),
        values,
        seconds.spread(side, list(shared.cells), lambda timed: timed.seconds),
        seconds.spread(side, list(shared.cells), lambda timed: timed.latency),
        seconds.out_of_line(side, list(shared.cells)),
    )


def _with_scales(summaries: Sequence[SideSummary], sides: Sequence[Side], notes: list[str]) -> tuple[SideSummary, ...]:
    """With effective scales.

    Raises:
        UserError: no side has one.
    """
    scaled = []
    for summary, side in zip(summaries, sides, strict=True):
        known = [scale for job in side.jobs if (scale := effective_scale(job.row.folder)) is not None]
        if len(known) == len(side.jobs):
            summary = replace(
                summary,
                effective_scale=python_statistics.fmean(one.scale for one in known),
                beside_cfg=python_statistics.fmean(one.beside for one in known),
            )
        scaled.append(summary)
    lacking = [summary.name for summary in scaled if summary.effective_scale is None]
    why = "jobs made with hooks=record whose guidance asks for the conditional and the unconditional prediction"
    if len(lacking) == len(scaled):
        raise UserError(f"--effective-scale: found no job whose trace says it; accepted are {why}.")
    if lacking:
        notes.append(
            f"No effective scale for {', '.join(lacking[:5])}{', ...' * (len(lacking) > 5)}: that takes {why}."
        )
    return tuple(scaled)


def _remarks(
    outcomes: Sequence[Outcome], tested: Mapping[str, int], request: Request, found: Sides, common: int
) -> list[str]:
    notes = []
    if any(side.n_images > common for side in found.sides):
        of = (
            f"the {common} images a side that all of them share"
            if common
            else "each side's own images, as none are shared by all"
        )
        notes.append(f"The numbers of the table of sides are over {of}.")
    level = f"{100 * request.level:g} %"
    if most := max(tested.values(), default=0):
        family = (
            f"adjusted (Holm) for the {most} pairs of a metric"
            if most > 1
            else "one pair a metric, so nothing to adjust for"
        )
        notes.append(
            f"Intervals are at {level} each; p is two-sided, {family}; told apart is p at most {1 - request.level:.3g} "
            "and an interval without 0."
        )
    if any(o.unit == PROMPTS and o.p is not None for o in outcomes):
        notes.append(
            "Intervals and tests are over prompts, as images of one prompt are alike: they hold for other prompts of the kind "
            "(--unit seeds: for other seeds of these prompts)."
        )
    if any(o.unit == SEEDS and o.p is not None for o in outcomes):
        notes.append(
            "Intervals and tests are over the seeds of these prompts: they hold for other seeds, and say nothing of other "
            "prompts (--unit prompts)."
        )
    elif request.over == SEEDS and any(o.p is not None for o in outcomes):
        notes.append(
            "Intervals and tests are over images, as no prompt has several, or there is one prompt: with several prompts they "
            "are wider than over seeds alone."
        )
    if any(o.method == JACKKNIFE for o in outcomes):
        names = ", ".join(dict.fromkeys(o.label for o in outcomes if o.method == JACKKNIFE))
        notes.append(
            f"{names}: the difference is corrected for bias by the paired jackknife over the shared images, and may differ "
            "from that of the two values, which have the bias of their count (a bootstrap would double it)."
        )
    if any(not o.paired and o.unit in (IMAGES, PROMPTS, SEEDS) and o.p is not None for o in outcomes):
        notes.append(
            "Some sides share no prompt and seed: their difference is of independent samples (--unpaired), with wider intervals."
        )
    if few := list(dict.fromkeys(o.label for o in outcomes if o.verdict == TOO_FEW)):
        notes.append(
            f"{', '.join(few)}: no verdict, as a distance of sets wants {features.LEAST} units at least, and a Frechet distance "
            "half as many images a setting as features, or bias is left that differs from side to side; KID and CMMD have none."
        )
    if any(o.verdict == NOT_APART for o in outcomes):
        by_prompt = any(o.unit == PROMPTS for o in outcomes)
        unit = " (prompts, each with as many images as now)" if by_prompt else ""
        notes.append(
            f"More images{unit} to settle it: if the true difference is the measured one, at power {request.power:g}; "
            "the smallest difference that these would tell apart stands beside it."
        )
    if any(o.provenance and request.force for o in outcomes):
        notes.append(
            "† marks numbers of different provenance, compared by force: what differs may be what they were computed with."
        )
    if found.within and any(len(s.cells) > 1 for s in found.sides):
        notes.append(
            f"Averaged over {', '.join(found.within)}; a prompt and seed counts once, however many settings it was made with."
        )
    return notes
