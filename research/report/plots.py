"""Which figures a sweep has the numbers for: what more steps, more guidance and more time do to the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from research.report.advice import principal
from research.report.columns import NFE, SECONDS, Measure
from research.results.axes import Axis
from research.results.directions import front
from research.results.read import Row, Sweep

Value = Callable[[Row], Any]


@dataclass(frozen=True)
class Panels:
    """What is drawn: `y` against `x`, a colour for each value of some axes, a panel for each of another.

    Attributes:
        x_better: +1 or -1 where one end of `x` is better, which makes a Pareto front; 0 where `x` is a setting.
        path: points are joined along this axis, all others being equal.
        facet: a panel for each of its values.
        tradeoff: two scores: values of the path are written in, and each panel has its own scales.
    """

    name: str
    caption: str
    x: Value
    x_label: str
    y: Measure
    path: Axis | None
    facet: Axis | None
    x_better: int = 0
    x_measure: Measure | None = None
    tradeoff: bool = False

    def drawn(self, rows: Sequence[Row]) -> list[Row]:
        """The jobs that have both numbers."""
        return [r for r in rows if self.x(r) is not None and self.y.value(r) is not None]

    def alike(self, rows: Sequence[Row]) -> list[Row]:
        """Of those, the ones whose numbers were computed with what most were."""
        found = self.y.alike(self.drawn(rows))
        return self.x_measure.alike(found) if self.x_measure is not None else found

    def front(self, rows: Sequence[Row]) -> list[Row]:
        """The jobs that none beats on both axes, along `x`."""
        if not (self.x_better and self.y.better):
            return []
        found = self.alike(rows)
        places = front([(-self.x_better * self.x(r), -self.y.better * (self.y.value(r) or 0.0)) for r in found])
        return sorted((found[i] for i in places), key=self.x)


def figures(sweep: Sweep) -> list[Panels]:
    """The trade-off of the two principal metrics, each of them against cost, and against steps and guidance scale."""
    rows = sweep.done
    axes = {axis.key: axis for axis in sweep.axes}
    steps, scale = axes.get("steps"), axes.get("guidance.scale")
    of_set, single = principal(rows)
    first = of_set or single
    if first is None:
        return []
    both = list(dict.fromkeys(m for m in (of_set, single) if m is not None))
    found: list[Panels] = []
    if of_set is not None and single is not None:
        path = scale or steps or (sweep.axes[-1] if sweep.axes else None)
        caption = f"{of_set.label} against {single.label}: {_corner(of_set, single)} is best."
        if path is not None:
            caption += f" Points are joined along {path.label}, whose values stand beside them."
        found.append(
            Panels(
                *(f"{of_set.key}_vs_{single.key}", caption, single.value, single.label, of_set, path),
                *(steps if path is scale else None, single.better, single, True),
            )
        )
    for m in both:
        caption = f"{m.label} against model evaluations an image (NFE)."
        found.append(Panels(f"{m.key}_vs_nfe", caption, NFE.value, "NFE", m, steps, None, -1))
    for m in both:
        caption = f"{m.label} against seconds of sampling an image, without loading and scoring."
        found.append(
            Panels(f"{m.key}_vs_seconds", caption, SECONDS.value, "seconds an image", m, steps, None, -1, SECONDS)
        )
    if steps is not None and steps.numeric:
        caption = f"{first.label} against the number of steps."
        found.append(Panels(f"{first.key}_vs_steps", caption, _setting(steps), "steps", first, steps, scale))
    if scale is not None and scale.numeric:
        other = single or first
        caption = f"{other.label} against guidance scale."
        found.append(Panels(f"{other.key}_vs_guidance", caption, _setting(scale), scale.label, other, scale, steps))
    return [p for p in found if len(p.drawn(rows)) >= 2]


def marks_explained(rows: Sequence[Row], panels: Panels) -> str:
    """What a reader has to know of the marks."""
    drawn = panels.drawn(rows)
    text = ""
    if panels.front(rows):
        text += " Rings: the Pareto front, where nothing measured is better in both."
    shown = [m for m in (panels.y, panels.x_measure) if m is not None and m is not SECONDS]
    sure = [m.label for m in shown if any(m.interval(r) is not None for r in drawn)]
    without = [m.label for m in shown if m.label not in sure]
    text += f" Bars: 95 % intervals of {' and '.join(sure)}." if sure else ""
    text += f" {' and '.join(without)} has no interval." if without else ""
    other = len(drawn) - len(panels.alike(rows))
    if other:
        text += (
            f" NOT OF ONE PROVENANCE: the {other} hollow marks were computed with something else than the filled ones"
            " (see the letters in the table) and cannot be compared with them."
        )
    return text


def _corner(y: Measure, x: Measure) -> str:
    return f"the {'upper' if y.better > 0 else 'lower'} {'right' if x.better > 0 else 'left'}"


def _setting(axis: Axis) -> Value:
    return lambda row: row.settings.get(axis.key)
