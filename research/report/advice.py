"""Which setting to use, and why: worked out from a sweep's numbers, saying no more than they carry.

The rule: the one that needs the fewest model evaluations of the settings that are shown to be as good as the best by each metric
that has intervals: that another is better by the metric's margin (`research.results.scales`) or more is ruled out, with a chance
of 5 % at most to advise one of which it is not so, however many settings there are. Where none is shown to be so, the data cannot
tell; then the advice says which is measured best, and how many images would decide. A metric without intervals decides nothing;
its values are named, and that they have none. Of a sweep with a budget (`research.results.budget`) all of this is of the settings
inside it: those outside are neither advised nor what a setting has to be as good as.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from research.directions import front
from research.labels import count, number, value_label
from research.report.columns import LATENCY, NFE, SECONDS, Measure, pairs_of, quality
from research.report.times import command, measured_once
from research.results.budget import INSIDE, OVER, UNKNOWN
from research.results.intervals import unit
from research.results.pairs import LEAST_UNITS, as_good
from research.results.read import Row, Sweep
from research.results.scales import Margin, margin
from research.results.set_scores import kind
from research.statistics import IMAGES, PROMPTS

_SETS = ("fid", "fid_infinity", "fid_inf", "kid", "cmmd")


@dataclass(frozen=True)
class Rung:
    """The best measured setting at its cost or below, and what the step up from the cheaper one buys."""

    row: Row
    gain: str


@dataclass(frozen=True)
class Advice:
    """The answer in sentences.

    Attributes:
        use: the setting to take; None where the metrics pull apart or nothing can be said.
        headline: one line.
        reasons: why, one sentence each.
        doubts: what the numbers do not carry.
        cards: ``(title, row)`` of the settings worth a look.
        ladder: settings on the front of quality against evaluations, cheapest first, by `ladder_by`.
    """

    use: Row | None
    headline: str
    reasons: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    cards: list[tuple[str, Row]] = field(default_factory=list)
    ladder: list[Rung] = field(default_factory=list)
    ladder_by: Measure | None = None


def where(sweep: Sweep, row: Row) -> str:
    """A job by the settings that the sweep varies."""
    return ", ".join(f"{a.label} {value_label(row.settings.get(a.key))}" for a in sweep.axes) or row.job_id


def principal(rows: Sequence[Row]) -> tuple[Measure | None, Measure | None]:
    """The two metrics that the page is about: one of a set of images (FID before others), one of single images (CLIP score)."""
    known = [m for m in quality(rows) if m.better]
    by_key = {m.key: m for m in known}
    of_set = next((by_key[k] for k in _SETS if k in by_key), None)
    of_set = of_set or next((m for m in known if m.better < 0), None)
    others = [m for m in known if m is not of_set]
    single = by_key.get("clip_score") if of_set is not by_key.get("clip_score") else None
    return of_set, single or next((m for m in others if m.better > 0), next(iter(others), None))


def advise(sweep: Sweep) -> Advice | None:
    """The advice over a sweep, of the settings inside its budget; None if fewer than two have a metric with a direction."""
    both = [m for m in principal(sweep.done) if m is not None]
    # jobs that were scored apart from each other (metrics=a,b) have one of the two at most
    for found in (both, both[-1:], both[:1]):
        found = [*found, *_more(sweep.done, found)]
        rows = _comparable(sweep, found) if found else []
        if len(rows) > 1:
            break
    else:
        return None
    return _within_budget(sweep, rows, found) if sweep.budget else _advise(sweep, rows, found)


def _advise(sweep: Sweep, rows: list[Row], found: list[Measure]) -> Advice:
    """The advice over these settings."""
    sure = [m for m in found if _judged(sweep, m, rows)]
    by = next((m for m in reversed(found) if m in sure), found[-1])
    cards = _merged(_cards(found, rows))
    doubts = _doubts(sweep, rows, found, sure)
    ladder = _ladder(sweep, by, rows)
    if not sure:
        best = _best(by, rows)
        line = f"No metric here has an interval: {by.label} {_with_interval(by, best)} is measured best, by face value only."
        return Advice(None, line, [f"It is {where(sweep, best)}."], doubts, cards, ladder, by)
    shown = as_good([pairs_of(sweep, m).p_worse(rows, _margin(sweep, m)) for m in sure])
    good = [row for row, fit in zip(rows, shown, strict=True) if fit]
    if good:
        use = min(good, key=lambda r: _cost(r, found))
        cards = _merged([("use this", use), *cards])
        reasons = [*_reasons(sweep, use, good, rows, found, sure), _margins(sweep, sure)]
        return Advice(use, f"Use {where(sweep, use)}.", reasons, doubts, cards, ladder, by)
    possible = rows
    for m in sure:
        among_best = set(level(sweep, m, rows))
        possible = [r for r in possible if r in among_best]
    if not possible:
        names = " and ".join(m.label for m in sure)
        line = f"{names} pull apart: no setting is among the best by all of them."
        pairs = [
            f"By {m.label} take {where(sweep, _best(m, rows))} ({m.label} {_with_interval(m, _best(m, rows))})."
            for m in sure
        ]
        return Advice(None, line, pairs, doubts, cards, ladder, by)
    line = f"{_there(rows)} a setting cannot tell which setting to use."
    return Advice(None, line, _undecided(sweep, possible, rows, found, sure), doubts, cards, ladder, by)


# -- inside a budget


def _against_budget(sweep: Sweep, row: Row) -> dict[str, str]:
    return sweep.budget.judge(NFE.value(row), row.timing, row.out_of_line)


def _within_budget(sweep: Sweep, rows: list[Row], found: list[Measure]) -> Advice:
    """The advice over those of the settings that are inside the sweep's budget, and what the budget leaves out."""
    verdicts = {row: _against_budget(sweep, row) for row in rows}
    inside = [row for row, said in verdicts.items() if set(said.values()) == {INSIDE}]
    over = [row for row, said in verdicts.items() if OVER in said.values()]
    unknown = {row: said for row, said in verdicts.items() if row not in inside and row not in over}
    left_out = [*_over(sweep, inside, over, found), *_unknown(sweep, unknown)]
    if not inside:
        line = f"No setting is inside the budget ({sweep.budget})"
        line += f"; of {count(len(unknown), 'setting')} it is not known." if unknown else "."
        return Advice(None, line, [*left_out, *_cheapest(sweep, rows)], _doubts(sweep, rows, found, found))
    if len(inside) == 1:
        (only,) = inside
        line = f"Inside the budget ({sweep.budget}) there is {where(sweep, only)} alone."
        values = [f"Its {m.label} is {_with_interval(m, only)}, at {_cost_text(only)}." for m in found]
        cards = [("inside the budget", only)]
        return Advice(only, line, [*values, *left_out], _doubts(sweep, rows, found, found), cards)
    advice = _advise(sweep, inside, found)
    return replace(
        advice, headline=f"Inside the budget ({sweep.budget}): {advice.headline}", reasons=[*advice.reasons, *left_out]
    )


def _over(sweep: Sweep, inside: Sequence[Row], over: Sequence[Row], found: Sequence[Measure]) -> list[str]:
    """How many settings are over the budget, and what is given up with them."""
    if not over:
        return []
    lines = [f"{count(len(over), 'setting')} cost more than the budget."]
    for m in found if inside else ():
        best, own = _best(m, over), _best(m, inside)
        if m.better * ((m.value(best) or 0.0) - (m.value(own) or 0.0)) > 0:
            lines.append(
                f"The {_end(m)} {m.label} beyond it is {_with_interval(m, best)}, of {where(sweep, best)} at {_cost_text(best)}; "
                f"inside, {_with_interval(m, own)}."
            )
    return lines


def _unknown(sweep: Sweep, verdicts: Mapping[Row, Mapping[str, str]]) -> list[str]:
    """Of which settings it is not known whether they are inside the budget, and what command tells."""
    lines = []
    for name in sweep.budget.limits:
        rows = [row for row, said in verdicts.items() if said[name] == UNKNOWN]
        if not rows:
            continue
        what = f"{name} of {count(len(rows), 'setting')} not known (not measured, or out of line), so that they are not advised"
        if name == "nfe":
            lines.append(f"{what[0].upper()}{what[1:]}.")
            continue
        folders = [row.folder for row in rows] if len(rows) < len(sweep.done) and len(rows) <= 4 else [sweep.directory]
        trusted = any(row.result.plug_sources for row in rows)
        lines.append(
            f"{what[0].upper()}{what[1:]}; to measure: {command([f.as_posix() for f in folders], trusted=trusted)}"
        )
    return lines


def _cheapest(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """The least that any setting costs, of what the budget limits."""
    lines = []
    for name, measure in (("nfe", NFE), ("seconds", SECONDS), ("latency", LATENCY)):
        known = [r for r in rows if measure.value(r) is not None and not measure.apart(r)]
        if name in sweep.budget.limits and known:
            least = min(known, key=lambda r: measure.value(r) or 0.0)
            lines.append(f"The least {measure.label} is {measure.text(least)}, of {where(sweep, least)}.")
    return lines


# -- as good as the best


def _judged(sweep: Sweep, m: Measure, rows: Sequence[Row]) -> bool:
    """Whether it is known of each job how surely it differs from the best."""
    best = _best(m, rows)
    return all(pairs_of(sweep, m).difference(best, row) is not None for row in rows if row is not best)


def _margin(sweep: Sweep, m: Measure) -> Margin:
    return margin(m.key, next((i for r in sweep.done if (i := r.info(m.key))), None), sweep.margins)


def _margins(sweep: Sweep, sure: Sequence[Measure]) -> str:
    """What counts as as good."""
    sizes = ", ".join(f"{m.label} {_margin(sweep, m)}" for m in sure)
    last = _margin(sweep, sure[-1])
    example = f"{sure[-1].key}={replace(last, size=last.size / 2)}".replace(" ", "")
    return (
        f"As good as the best means: shown to be no worse than any other setting by the margin or more ({sizes}; "
        f"report.margin, or research-report --margin {example}, sets another)."
    )


def _why_silent(sweep: Sweep, m: Measure, rows: Sequence[Row]) -> str:
    """Why a metric decides nothing."""
    if not all(kind(r.info(m.key)) for r in rows):
        return f"{m.label} is one number a setting and says nothing of its own spread; small gaps in it mean nothing."
    if pairs_of(sweep, m).too_costly:
        return f"{m.label} decides nothing here, as its intervals would take minutes; research-compare works them out."
    return (
        f"{m.label} decides nothing here: too few images for a distance of sets (half as many as features, and eight units), or "
        "their features were not kept; research-compare says which."
    )


def _units(rows: Sequence[Row], n: int) -> str:
    """So many of what is drawn at random: images, or prompts with their images."""
    return count(n, "prompt" if _by_prompt(rows) else "image")


def _there(rows: Sequence[Row]) -> str:
    n = min(row.n_images for row in rows)
    if unit(rows[0]) == IMAGES:
        return count(n, "image")
    return f"{len({image.prompt for image in rows[0].images})} prompts with {count(n, 'image')}"


def _by_prompt(rows: Sequence[Row]) -> bool:
    return unit(rows[0]) == PROMPTS


def _undecided(
    sweep: Sweep, possible: Sequence[Row], rows: Sequence[Row], found: Sequence[Measure], sure: Sequence[Measure]
) -> list[str]:
    """What is known where no setting is shown to be as good as the best, and what would settle it."""
    lines = []
    for m in found:
        best = _best(m, rows)
        line = f"Measured best by {m.label}: {where(sweep, best)} ({_with_interval(m, best)}), at {_cost_text(best)}"
        lines.append(line + (" (it decides nothing here)." if m not in sure else "."))
    cheapest = min(possible, key=lambda r: _cost(r, found))
    by = sure[-1]
    best = _best(by, rows)
    if cheapest is not best:
        text = (
            f"{count(len(possible), 'setting')} of {len(rows)} may be the best, as all pairs are looked at together; the "
            f"cheapest is {where(sweep, cheapest)}, at {_cost_text(cheapest)}"
        )
        if (gap := pairs_of(sweep, by).difference(best, cheapest)) is not None:
            low, high = sorted((by.better * gap.low, by.better * gap.high))
            text += f": its {by.label} is worse by {number(low)} to {number(high)}, with 95 % confidence by itself"
        lines.append(text + ".")
    lines += [_settled(sweep, rows, sure), _margins(sweep, sure)]
    return lines


def _settled(sweep: Sweep, rows: Sequence[Row], sure: Sequence[Measure]) -> str:
    """How many images would decide."""
    wanted: list[tuple[int, int, Row]] = []
    for row in sorted(rows, key=lambda r: _cost(r, sure)):
        found = [pairs_of(sweep, m).units_needed(row, rows, _margin(sweep, m)) for m in sure]
        known = [n for n, _ in found if n is not None]
        if len(known) == len(found):
            wanted.append((max(known), max(there for _, there in found), row))
    if not wanted:
        return "More images alone would not decide: as measured, no setting is within the margin of the best by all metrics."
    n, there, row = min(wanted, key=lambda w: w[0])
    text = (
        f"About {_units(rows, n)} a setting ({n - there} more) would decide, if the differences are as measured: they would "
        f"show that {where(sweep, row)} is as good as the best"
    )
    if there < LEAST_UNITS:
        text += f" (fewer than {LEAST_UNITS} show no two settings to be equally good, only one to be the best)"
    return text + "."


def _reasons(
    sweep: Sweep, use: Row, good: list[Row], rows: list[Row], found: list[Measure], sure: list[Measure]
) -> list[str]:
    reasons = []
    names = " and ".join(m.label for m in sure)
    cost = _cost_text(use)
    if len(good) > 1:
        reasons.append(
            f"It costs {cost}: the least of the {len(good)} settings (of {len(rows)}) "
            f"that are shown to be as good as the best by {names}."
        )
    else:
        reasons.append(f"It is the only setting that is shown to be as good as the best by {names}, at {cost}.")
    for m in found:
        best = _best(m, rows)
        if best is use:
            reasons.append(f"Its {m.label} is the {_end(m)} measured: {_with_interval(m, use)}.")
            continue
        line = f"Its {m.label} is {_with_interval(m, use)}; the {_end(m)}, {_with_interval(m, best)}, "
        line += f"is of {where(sweep, best)} at {_cost_text(best)}"
        if m not in sure:
            line += f". {m.label} decides nothing here"
        elif (gap := pairs_of(sweep, m).difference(best, use)) is not None:
            low, high = sorted((m.better * gap.low, m.better * gap.high))
            line += f". Over the same {_units(rows, gap.n)} it is worse by {number(low)} to {number(high)}, with 95 % confidence"
        reasons.append(line + ".")
    return reasons


def fronts(sweep: Sweep) -> set[str]:
    """Ids of the jobs on the Pareto front of the principal metrics and NFE together."""
    found = [m for m in principal(sweep.done) if m is not None]
    rows = [r for r in _comparable(sweep, found) if NFE.value(r) is not None]
    if not found or len(rows) < 2:
        return set()
    points = [(NFE.value(r) or 0.0, *(-m.better * (m.value(r) or 0.0) for m in found)) for r in rows]
    return {rows[i].job_id for i in front(points)}


def near_fronts(sweep: Sweep) -> set[str]:
    """Ids of the jobs off that front of which no job that beats them is told apart by any of its metrics."""
    found = [m for m in principal(sweep.done) if m is not None]
    on = fronts(sweep)
    rows = [r for r in _comparable(sweep, found) if NFE.value(r) is not None]
    near = set()
    for row in rows if on else ():
        if row.job_id in on:
            continue
        beaters = [r for r in rows if r.job_id in on and _no_worse(r, row, found)]
        verdicts = [pairs_of(sweep, m).told_apart(r, row) for r in beaters for m in found]
        if beaters and True not in verdicts and False in verdicts:
            near.add(row.job_id)
    return near


def _no_worse(a: Row, b: Row, found: Sequence[Measure]) -> bool:
    better = all(m.better * (m.value(a) or 0.0) >= m.better * (m.value(b) or 0.0) for m in found)
    return better and (NFE.value(a) or 0.0) <= (NFE.value(b) or 0.0)


def _doubts(sweep: Sweep, rows: list[Row], found: list[Measure], sure: list[Measure]) -> list[str]:
    doubts = []
    for m in found:
        if m in sure:
            continue
        doubts.append(_why_silent(sweep, m, rows))
    outside = [r for r in sweep.done if r not in rows and set(_against_budget(sweep, r).values()) <= {INSIDE}]
    if outside:
        doubts.append(
            f"{count(len(outside), 'done job')} left out here: without one of these numbers, or with one computed otherwise."
        )
    if unknown := sorted(set(sweep.margins) - {key for r in sweep.done for key in r.metrics}):
        doubts.append(f"report.margin names {', '.join(unknown)}, which no job here has.")
    if sweep.failed:
        doubts.append(f"{count(len(sweep.failed), 'setting')} failed and not compared.")
    if len({tuple(r.settings.get("prompts") or ()) for r in rows}) > 1:
        doubts.append("The settings were given different prompts, so their scores differ for that too.")
    alike: dict[str, list[str]] = {}  # warnings that differ in their numbers alone
    for warning in (str(w) for r in rows for m in found for w in r.info(m.key).get("warnings") or []):
        alike.setdefault(re.sub(r"[\d.]+", "#", warning), []).append(warning)
    for same in alike.values():
        more = f" (so or alike in {len(same)} settings)" if len(set(same)) > 1 else ""
        doubts.append(f"{same[0].rstrip('.')}{more}.")
    if out := [r for r in rows if r.out_of_line]:
        doubts.append(f"Seconds of {count(len(out), 'setting')} are out of line, and of no account here.")
    once = measured_once([r for r in rows if not r.out_of_line])
    if once and {"seconds", "latency"} & sweep.budget.limits.keys():
        doubts.append(f"Seconds of {count(len(once), 'setting')} were measured once: nothing is known of their spread.")
    if any(len(r.result.together) > 1 for r in rows):
        doubts.append("Some jobs shared batches: their seconds are their share of the batch, not times measured alone.")
    return doubts[:8]


def _more(rows: Sequence[Row], found: Sequence[Measure]) -> list[Measure]:
    """Where the metric of a set has no interval (FID), another of its kind that has one in all jobs (KID) helps to decide."""
    sets = [m for m in quality(rows) if m.key in _SETS]
    if not any(m.key in _SETS and m.interval(r) is None for m in found for r in rows):
        return []
    return [m for m in sets if m.key not in {f.key for f in found} and all(m.interval(r) is not None for r in rows)][:1]


def _comparable(sweep: Sweep, found: Sequence[Measure]) -> list[Row]:
    """The jobs that have all these numbers, each computed with what most were."""
    alike = [set(m.alike(sweep.done)) for m in found]
    return [r for r in sweep.done if all(r in rows for rows in alike)]


def level(sweep: Sweep, m: Measure, rows: Sequence[Row]) -> list[Row]:
    """The best by a measure, and all that are not told apart from it."""
    return pairs_of(sweep, m).level(rows)


def _ladder(sweep: Sweep, by: Measure, rows: Sequence[Row]) -> list[Rung]:
    with_cost = [r for r in rows if NFE.value(r) is not None]
    places = front([(NFE.value(r) or 0.0, -by.better * (by.value(r) or 0.0)) for r in with_cost])
    steps = sorted((with_cost[i] for i in places), key=lambda r: NFE.value(r) or 0.0)
    rungs: list[Rung] = []
    pairs = pairs_of(sweep, by)
    for row in steps:
        if not rungs:
            rungs.append(Rung(row, "the cheapest measured"))
            continue
        apart = pairs.told_apart(row, rungs[-1].row)
        gap = pairs.difference(row, rungs[-1].row)
        size = f", by {number(by.better * gap.value, 2)}" if gap else ""
        rungs.append(
            Rung(
                row,
                {
                    True: f"better{size}",
                    False: f"measured better{size}, but not told apart",
                    None: "no interval to judge by",
                }[apart],
            )
        )
    return rungs


def _cards(found: Sequence[Measure], rows: Sequence[Row]) -> list[tuple[str, Row]]:
    return [(f"{_end(m)} {m.label}", _best(m, rows)) for m in found]


def _merged(cards: Sequence[tuple[str, Row]]) -> list[tuple[str, Row]]:
    """One card a setting, under all its titles."""
    titles: dict[Row, list[str]] = {}
    for title, row in cards:
        titles.setdefault(row, []).append(title)
    return [(" · ".join(found), row) for row, found in titles.items()]


def _best(m: Measure, rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda r: m.better * (m.value(r) or 0.0))


def _cost(row: Row, found: Sequence[Measure]) -> tuple[float, ...]:
    """Fewest evaluations first; among equals what is measured better, as it costs nothing."""
    nfe = NFE.value(row)
    return (float("inf") if nfe is None else nfe, *(-m.better * (m.value(row) or 0.0) for m in found))


def _cost_text(row: Row) -> str:
    nfe, seconds = NFE.value(row), row.timing.seconds
    parts = [f"{number(nfe)} model evaluations an image"] if nfe is not None else []
    if seconds is not None and not row.out_of_line:
        spread = f"{number(seconds.low, 2)} to {number(seconds.high, 2)}" if seconds.n > 1 else "measured once"
        parts.append(f"{number(seconds.median, 2)} s ({spread})")
    return " and ".join(parts) or "a cost that was not recorded"


def _with_interval(m: Measure, row: Row) -> str:
    sure = m.interval(row)
    return number(m.value(row)) + (f" [{number(sure.low)}, {number(sure.high)}]" if sure is not None else "")


def _end(m: Measure) -> str:
    return "highest" if m.better > 0 else "lowest"
