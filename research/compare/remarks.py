"""What a reader of a comparison has to know of how its numbers came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from research.compare.features import LEAST
from research.compare.outcome import NOT_APART, TOO_FEW, Outcome, Request
from research.compare.pairing import IMAGES
from research.compare.sides import Sides
from research.statistics import JACKKNIFE


def remarks(
    outcomes: Sequence[Outcome],
    pairs: Sequence[Any],
    metrics: Mapping[str, int],
    request: Request,
    found: Sides,
    common: int,
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
    tested = {m: sum(o.p is not None for o in outcomes if o.metric == m) for m in metrics}
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
    if any(o.method == JACKKNIFE for o in outcomes):
        names = ", ".join(dict.fromkeys(o.label for o in outcomes if o.method == JACKKNIFE))
        notes.append(
            f"{names}: the difference is corrected for bias by the paired jackknife over the shared images, and may differ "
            "from that of the two values, which have the bias of their count (a bootstrap would double it)."
        )
    if any(not o.paired and o.unit == request.over and o.p is not None for o in outcomes):
        notes.append(
            "Some sides share no prompt and seed: their difference is of independent samples (--unpaired), with wider intervals."
        )
    if few := list(dict.fromkeys(o.label for o in outcomes if o.verdict == TOO_FEW)):
        notes.append(
            f"{', '.join(few)}: no verdict, as a distance of sets wants {LEAST} units at least, and a Frechet distance half as "
            "many images a setting as features, or bias is left that differs from side to side; KID and CMMD have none."
        )
    if any(o.verdict == NOT_APART for o in outcomes):
        unit = "" if request.over == IMAGES else " (prompts, each with as many images as now)"
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
