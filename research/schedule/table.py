"""Schedules as text: the table on the terminal, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from research.csv_text import csv_text
from research.schedule.points import Series

COLUMNS = ("step", "stage", "t", "alphas_cumprod", "sigma", "log_snr")


def lines(series: Iterable[Series]) -> Iterable[str]:
    """A table for each scheduler: step and stage from 0, what the model is told, and the level of the latents there."""
    for one in series:
        remark = f"; {one.remark}" if one.remark else ""
        yield f"{one.label}  ({one.class_name}, steps={one.steps}, {len(one.points)} model evaluations{remark})"
        if not one.points:
            yield ""
            continue
        rows = [COLUMNS, *(_cells(point) for point in one.points)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        for place, row in enumerate(rows):
            mark = ""
            if place and one.strength < 1.0:
                mark = "" if one.points[place - 1].run else f"  left out by strength={one.strength:g}"
            yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + mark
        if one.flow:
            yield "  sigma is the flow time; alphas_cumprod and log_snr are those of the same mixture of picture and noise"
        yield ""


def coefficient_lines(series: Iterable[Series]) -> Iterable[str]:
    """What leads from each evaluation to the next, in numbers: factors of latents x, data predictions D, slopes d and fresh
    noise z, where [1] is one evaluation back. U is the data prediction that CFG++ steps along the noise of."""
    for one in series:
        yield f"{one.label}  ({one.class_name}, steps={one.steps})"
        if not one.plan:
            yield "  the class of diffusers is run by its own step; there is no table of it"
        for place, stage in enumerate(one.plan):
            update = stage.update
            parts = (("x", update.latents), ("D", update.data), ("d", update.slopes), ("z", {0: update.noise}))
            terms = [
                f"{factor:+.6g} {letter}{f'[{back}]' if back else ''}"
                for letter, factors in parts
                for back, factor in sorted(factors.items())
                if factor
            ]
            if update.lead:
                terms.append(f"(CFG++: {update.lead:+.6g} (D - U))")
            at = f"t = {stage.level.time:<9.6g} sigma = {stage.level.sigma:<9.5g}"
            yield f"  {stage.step:>4} {place:>4}  {at} x' = {' '.join(terms)}"
        yield ""


def _plan(one: Series) -> list[dict[str, Any]]:
    """The same for JSON: factors by how many evaluations back."""
    return [
        {
            "step": stage.step,
            "t": stage.level.time,
            "sigma": _finite(stage.level.sigma),
            "latents": {str(back): factor for back, factor in stage.update.latents.items()},
            "data": {str(back): factor for back, factor in stage.update.data.items()},
            "slopes": {str(back): factor for back, factor in stage.update.slopes.items()},
            "lead": stage.update.lead,
            "noise": stage.update.noise,
        }
        for stage in one.plan
    ]


def _cells(point: Any) -> tuple[str, ...]:
    numbers = (point.t, point.level.alphas_cumprod, point.level.sigma, point.level.log_snr)
    return str(point.step), str(point.stage), *(_shown(number) for number in numbers)


def _shown(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:.5g}"


def finding_lines(series: Sequence[Series]) -> list[str]:
    """What the linter found, each finding once, with the schedulers it is about; empty if nothing."""
    about: dict[tuple[str, str, str], list[str]] = {}
    for one in series:
        for finding in one.findings:
            about.setdefault((finding.severity, finding.rule, finding.message), []).append(one.label)
    order = ("error", "warning", "note")
    found = []
    for (level, rule, message), labels in sorted(about.items(), key=lambda item: order.index(item[0][0])):
        where = "; ".join(labels) if len(labels) <= 3 else f"{'; '.join(labels[:2])} and {len(labels) - 2} more"
        found.append(f"{level} [{rule}] {where}: {message}")
    return found


def as_csv(series: Iterable[Series]) -> str:
    """A line a model evaluation, with the settings that lead to it."""
    rows: list[Sequence[Any]] = [("label", "scheduler", "class_name", "steps", "strength", *COLUMNS, "run")]
    for one in series:
        for p in one.points:
            level = (p.level.alphas_cumprod, p.level.sigma, p.level.log_snr)
            numbers = ["" if math.isnan(value) else f"{value:.9g}" for value in (p.t, *level)]
            settings = (one.label, one.name, one.class_name, one.steps, f"{one.strength:g}")
            rows.append((*settings, p.step, p.stage, *numbers, str(p.run).lower()))
    return csv_text(rows)


def as_json(series: Iterable[Series]) -> str:
    """The same with findings, as one object; numbers that are none or infinite are null."""
    content = [
        {
            "label": one.label,
            "scheduler": one.name,
            "class_name": one.class_name,
            "options": dict(one.options),
            "steps": one.steps,
            "strength": one.strength,
            "remark": one.remark or None,
            "points": [
                {
                    "step": p.step,
                    "stage": p.stage,
                    "t": p.t,
                    "alphas_cumprod": _finite(p.level.alphas_cumprod),
                    "sigma": _finite(p.level.sigma),
                    "log_snr": _finite(p.level.log_snr),
                    "run": p.run,
                }
                for p in one.points
            ],
            "updates": _plan(one),
            "findings": [{"level": f.severity, "rule": f.rule, "message": f.message} for f in one.findings],
        }
        for one in series
    ]
    return json.dumps({"schedulers": content}, indent=1, ensure_ascii=False, default=str)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
