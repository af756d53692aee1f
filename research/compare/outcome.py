"""What is asked of a comparison, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from research.results.timing import Spread
from research.showing import number, table

BETTER, WORSE, HIGHER, LOWER = "better", "worse", "higher", "lower"
EQUAL, NOT_APART, NO_INTERVAL, TOO_FEW = "equal", "not told apart", "no interval", "too few images"


@dataclass(frozen=True)
class Request:
    """What to compare, and how.

    Attributes:
        places: folders of jobs or sweeps, ``NAME=FOLDER`` to name a side; or one sweep.
        axis: a setting whose values are the sides.
        baseline: the side that all others are set against: its name, a value of the axis, a job's id or its folder.
        metrics: which numbers; all that the sides share by default.
        where: keep only jobs with these settings, ``KEY=VALUE``.
        over: what is drawn at random, ``prompts``, ``seeds`` (the prompts stay) or ``images``; ``auto`` is what all of the sweeps
            were run with, else prompts where several have several images.
        each: every job is a side of its own, with those that differ from it in seeds and prompts alone.
        repeats: folders with further runs of the same jobs, for seconds.
        unpaired: compare also sides that share no prompt and seed, as independent samples.
        force: compare numbers of different provenance, and mark them.
        level, power: of intervals, and of the counts that would settle a difference.
        seed: of everything that is drawn.
        effective_scale: give each side the scale of CFG that its guidance comes nearest to, from the traces of ``hooks=record``.
    """

    places: tuple[str, ...]
    axis: str | None = None
    baseline: str | None = None
    metrics: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    over: str = "auto"
    each: bool = False
    repeats: tuple[Path, ...] = ()
    unpaired: bool = False
    force: bool = False
    level: float = 0.95
    power: float = 0.8
    seed: int = 0
    effective_scale: bool = False


@dataclass(frozen=True)
class Settle:
    """What would settle a difference that is not told apart.

    Attributes:
        needed: units in all at which a true difference as large as the measured one is told apart; None beyond ten million. Of
            sets that are too small for any verdict, the smallest that are not.
        more: so many more than there are.
        resolvable: the smallest true difference that the units there are would tell apart.
    """

    needed: int | None
    more: int | None
    resolvable: float


@dataclass(frozen=True)
class Outcome:
    """One metric of two sides.

    Attributes:
        a, b: names of the sides; `b` is judged against `a`.
        better: +1 if higher is better, -1 if lower is, 0 if neither is said.
        value_a, value_b: over what the two share.
        difference, low, high: `b` less `a`, corrected for bias where `method` is the jackknife; no ends without an interval.
        p, p_holm: of no difference, and adjusted for the pairs of the same metric.
        p_many: what is adjusted where there are several pairs: of a mean the larger P of two tests.
        verdict: of `b`: better, worse (higher or lower where no direction is known), equal, not told apart, too few images (to
            correct a distance of sets for bias), or no interval.
        n, unit: independent units, and what they are.
        method: of the interval.
        provenance: empty, or how the two numbers' provenance differs, where that was forced.
        note: why there is no interval, or what it does not cover.
    """

    a: str
    b: str
    metric: str
    label: str
    better: int
    value_a: float | None
    value_b: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    p_many: float | None = None
    verdict: str = NO_INTERVAL
    n: int = 0
    unit: str = "images"
    paired: bool = True
    method: str = ""
    settle: Settle | None = None
    provenance: str = ""
    note: str = ""


@dataclass(frozen=True)
class SideSummary:
    """A side: its settings, its costs, and its numbers over what all sides share.

    Attributes:
        seconds: an image, the median with the least and the most of what was timed; averaged over its jobs.
        latency: the same of one image made alone; None where a job has none.
        out_of_line: why its seconds say nothing of its settings; empty where they do.
        effective_scale: the scale of CFG that its guidance comes nearest to, averaged over its jobs; None where that was not
            asked for, or a job's trace does not say it.
        beside_cfg: the share of its guidance, from 0 to 1, that CFG has at no scale; likewise.
    """

    name: str
    jobs: tuple[str, ...]
    settings: Mapping[str, Any]
    n_images: int
    nfe: float | None
    seconds_per_image: float | None
    values: Mapping[str, float]
    seconds: Spread | None = None
    latency: Spread | None = None
    out_of_line: str = ""
    effective_scale: float | None = None
    beside_cfg: float | None = None


@dataclass(frozen=True)
class FrontPoint:
    """A side on, or off, the front of a metric against a cost.

    Attributes:
        beaten_by: sides that are at least as good at no more cost.
        told_apart: off the front, whether it is told apart from any of those by the metric; None if it was not compared.
    """

    side: str
    value: float
    cost: float
    on_front: bool
    beaten_by: tuple[str, ...] = ()
    told_apart: bool | None = None


@dataclass(frozen=True)
class Front:
    """The Pareto front of a metric against a cost (``nfe`` or ``seconds_per_image``)."""

    metric: str
    cost: str
    points: tuple[FrontPoint, ...]


@dataclass(frozen=True, repr=False)
class Comparison:
    """All of it; `notes` are sentences that a reader has to know."""

    request: Request
    sides: tuple[SideSummary, ...]
    outcomes: tuple[Outcome, ...]
    fronts: tuple[Front, ...]
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        metrics = dict.fromkeys(one.metric for one in self.outcomes)
        return f"Comparison({' against '.join(side.name for side in self.sides[:4])}, {', '.join(metrics)})"

    def _repr_html_(self) -> str:
        rows = [
            {
                "": f"{one.b} against {one.a}",
                "metric": one.label,
                "before": number(one.value_a) if one.value_a is not None else "",
                "after": number(one.value_b) if one.value_b is not None else "",
                "difference": "" if one.difference is None else f"{one.difference:+.4g}",
                "interval": "" if one.low is None or one.high is None else f"{one.low:+.4g} to {one.high:+.4g}",
                "p": "" if one.p_holm is None else f"{one.p_holm:.3g}",
                "verdict": one.verdict + (" †" if one.provenance else ""),
            }
            for one in self.outcomes
        ]
        return table(rows) + "".join(f"<p style='opacity:.7;margin:2px'>{escape(note)}</p>" for note in self.notes)
