"""Which figures a sweep has the numbers for: what more steps, more guidance and more time do to the scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.directions import front
from research.errors import UserError
from research.labels import count
from research.report.advice import principal
from research.report.columns import NFE, SECONDS, Measure, quality
from research.results.axes import Axis
from research.results.intervals import unit_in_words
from research.results.read import Row, Sweep

Value = Callable[[Row], Any]
FIGURES_AT_MOST = 16  # of those that nobody asked for
NAMES_AT_MOST = 12  # values of an axis that are no numbers


@dataclass(frozen=True)
class Panels:
    """What is drawn: `y` against `x`, a colour for each value of some axes, a panel for each of another.

    Attributes:
        x_better: +1 or -1 where one end of `x` is better, which makes a Pareto front; 0 where `x` is a setting.
        path: points are joined along this axis, all others being equal.
        facet: a panel for each of its values.
        tradeoff: two scores: values of the path are written in.
        axis: the setting that `x` is, where it is one; if its values are no numbers, `x` is their place.
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
    axis: Axis | None = None

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
    """The trade-off of the two principal metrics, each of them against cost and against every axis of the sweep, and what is
    asked for besides (``sweep.figures``).

    Raises:
        UserError: a metric or an axis is asked for that the sweep does not have.
    """
    rows = sweep.done
    axes = {axis.key: axis for axis in sweep.axes}
    steps, scale = axes.get("steps"), axes.get("guidance.scale")
    of_set, single = principal(rows)
    both = list(dict.fromkeys(m for m in (of_set, single) if m is not None))
    found: list[Panels] = []
    if of_set is not None and single is not None:
        path = scale or steps or (sweep.axes[-1] if sweep.axes else None)
        caption = f"{single.label} against {of_set.label}: {_corner(single, of_set)} is best."
        if path is not None:
            caption += f" Points are joined along {path.label}, whose values stand beside them where there is room."
        found.append(
            Panels(
                *(f"{single.key}_vs_{of_set.key}", caption, of_set.value, of_set.label, single, path),
                *(steps if path is scale else None, of_set.better, of_set, True),
            )
        )
    for m in both:
        caption = f"{m.label} against model evaluations an image (NFE)."
        found.append(Panels(f"{m.key}_vs_nfe", caption, NFE.value, "NFE", m, steps, None, -1))
    for m in both:
        caption = f"{m.label} against seconds of sampling an image (medians), without loading and scoring."
        found.append(
            Panels(f"{m.key}_vs_seconds", caption, SECONDS.value, "seconds an image", m, steps, None, -1, SECONDS)
        )
    first = [axis for axis in (steps, scale) if axis is not None]
    for axis in [*first, *(axis for axis in sweep.axes if axis not in first)]:
        if axis.numeric or len(axis.values) <= NAMES_AT_MOST:
            found += [_against(axis, m, axes) for m in both]
    del found[FIGURES_AT_MOST:]
    for metric_asked, key in sweep.figures:
        found.append(_asked(sweep, axes, metric_asked, key))
    named = {panels.name: panels for panels in found}
    return [p for p in named.values() if len(p.drawn(rows)) >= 2]


def _against(axis: Axis, m: Measure, axes: Mapping[str, Axis]) -> Panels:
    """A metric against a setting; where that is steps or guidance scale, with a panel for each value of the other."""
    facet = {"steps": axes.get("guidance.scale"), "guidance.scale": axes.get("steps")}.get(axis.key)
    if not axis.numeric:
        places = {value: float(place) for place, value in enumerate(axis.values)}
        caption = f"{m.label} for each {axis.label}."

        def place(row: Row) -> float | None:
            return places.get(row.settings.get(axis.key))

        return Panels(f"{m.key}_vs_{_slug(axis)}", caption, place, axis.label, m, None, facet, axis=axis)
    caption = f"{m.label} against {'the number of steps' if axis.key == 'steps' else axis.label}."
    return Panels(f"{m.key}_vs_{_slug(axis)}", caption, _setting(axis), axis.label, m, axis, facet, axis=axis)


def _asked(sweep: Sweep, axes: Mapping[str, Axis], name: str, key: str) -> Panels:
    known = {m.key: m for m in quality(sweep.done)}
    if name not in known:
        raise UserError(
            f"--figure: found the metric {name!r}; accepted are {', '.join(known) or 'none, as none is there'}."
        )
    if key not in axes:
        raise UserError(
            f"--figure: found the axis {key!r}; accepted are {', '.join(axes) or 'none, as nothing varies'}."
        )
    return _against(axes[key], known[name], axes)


def _slug(axis: Axis) -> str:
    return "guidance" if axis.key == "guidance.scale" else re.sub(r"\W+", "_", axis.label).strip("_")


def marks_explained(rows: Sequence[Row], panels: Panels) -> str:
    """What a reader has to know of the marks."""
    drawn = panels.drawn(rows)
    text = ""
    if panels.front(rows):
        text += " Rings: the Pareto front, where nothing measured is better in both."
    shown = [m for m in (panels.y, panels.x_measure) if m is not None and m is not SECONDS]
    sure = [m.label for m in shown if any(m.interval(r) is not None for r in drawn)]
    without = [m.label for m in shown if m.label not in sure]
    text += f" Bars: 95 % intervals of {' and '.join(sure)}, {unit_in_words(drawn[0])}." if sure else ""
    text += f" {' and '.join(without)} has no interval." if without else ""
    if panels.axis is not None and sure:
        text += " Lines stand a little beside each other, so that their bars are seen."
    out = sum(1 for row in drawn if panels.x_measure is not None and panels.x_measure.apart(row))
    if out:
        text += f" Hollow: {count(out, 'job')} whose seconds are out of line with the others', and on no front."
    other = len(drawn) - len(panels.alike(rows)) - out
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
