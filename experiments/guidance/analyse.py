"""Make study.md, study_results.csv and study.png of what `experiments.guidance.run` has run.

    python -m experiments.guidance.analyse [--full | --short] [--output outputs] [--out experiments/guidance]

Each method at the setting that was tuned for it, against CFG at the scale that was tuned for that: differences are paired, of the
same prompts and seeds, which neither has been tuned on. Intervals are over prompts; p values are Holm's over all methods and both
measures of a model.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.common import (
    COLOURS,
    INK,
    Estimate,
    canvas,
    difference,
    features,
    fid,
    markdown,
    mean,
    run,
    save,
    scores,
    tidy,
    write_csv,
    write_page,
)
from experiments.guidance.methods import CFG, CFG_INTERVAL, METHODS, MODELS, NONE, Method, Setting, methods_of
from experiments.guidance.run import FORMS, Form, found, rounds
from research.errors import UserError
from research.results.effective_scale import EffectiveScale, effective_scale
from research.results.read import Row
from research.statistics import holm

KINDS = {
    "baseline": "baselines",
    "rule": "other rules for the two predictions",
    "branch": "predictions of another kind",
    "on CFG": "on top of CFG",
}
WIDEST = 12.0  # of a figure's axis, in units of the measure: what lies further out is an arrow at the edge


@dataclass(frozen=True)
class Judged:
    """A method at its tuned setting.

    Attributes:
        clip: of its pictures, with an interval over prompts.
        fid_gap, clip_gap: less those of tuned CFG; None of CFG itself. `p_many` of each is Holm's.
        error: solver error; NaN of a method that draws noise.
        scale: the scale of CFG that it comes nearest to; None where it asks for no unconditional prediction.
    """

    method: Method
    setting: Setting
    row: Row
    clip: Estimate
    fid_gap: Estimate | None
    clip_gap: Estimate | None
    error: float
    scale: EffectiveScale | None


def judged(base: Path, form: Form, methods: Sequence[Method]) -> list[Judged]:
    """Methods of a model, CFG among them, in the order of the tables.

    Raises:
        UserError: a stage was not run to its end.
    """
    stages = dict(rounds(base, methods, form.evaluations))
    chosen = stages["judge"]
    rows = {name: row for (name, _), row in found(base / "judge", chosen, form.evaluations).items()}
    errors = {
        name: row.metrics.get("solver_error", math.nan)
        for (name, _), row in found(base / "solver", stages["solver"], form.evaluations).items()
    }
    sets = {name: fid(features(row), row) for name, row in rows.items()}
    clips = {name: scores(row, "clip_score") for name, row in rows.items()}
    others = [method.name for method in methods if method.name != CFG]
    gaps = {name: (sets[name].less(sets[CFG]), difference(clips[name], clips[CFG])) for name in others}
    corrected = iter(holm([gap.p_many for name in others for gap in gaps[name]]))
    held = {name: tuple(replace(gap, p_many=_number(next(corrected))) for gap in gaps[name]) for name in others}
    return [
        Judged(
            method,
            chosen[method.name][0],
            rows[method.name],
            mean(clips[method.name]),
            *held.get(method.name, (None, None)),
            errors.get(method.name, math.nan),
            effective_scale(rows[method.name].folder),
        )
        for method in methods
    ]


def _number(p: float | None) -> float:
    return math.nan if p is None else p


def _gap(gap: Estimate | None) -> str:
    """A difference with its interval, in bold where Holm's p is below 0.05."""
    if gap is None:
        return ""
    shown = gap.shown(1, "+")
    return f"**{shown}**" if gap.p_many < 0.05 else shown


def lines(results: Sequence[Judged]) -> list[dict[str, Any]]:
    """A line a method, as the page shows it."""
    return [
        {
            "method": one.method.name,
            "setting": one.setting.label,
            "steps": one.row.result.config["steps"],
            "NFE": f"{one.row.result.nfe:g}",
            "FID": f"{one.row.metrics['fid']:.1f}",
            "FID less CFG's": _gap(one.fid_gap),
            "CLIP score": f"{one.clip.value:.1f}",
            "CLIP score less CFG's": _gap(one.clip_gap),
            "density": f"{one.row.metrics['density']:.2f}",
            "coverage": f"{one.row.metrics['coverage']:.2f}",
            "solver error": "" if math.isnan(one.error) else f"{one.error:.3f}",
            "effective scale": "" if one.scale is None else f"{one.scale.scale:.2f}",
            "beside CFG": "" if one.scale is None else f"{one.scale.beside:.2f}",
        }
        for one in results
    ]


def csv_lines(model: str, results: Sequence[Judged]) -> list[dict[str, Any]]:
    """A line a method, with all digits that a file needs."""
    told = []
    for one in results:
        line: dict[str, Any] = {"model": model, "method": one.method.name, "kind": one.method.kind}
        line |= {
            "setting": one.setting.label,
            "steps": one.row.result.config["steps"],
            "nfe": float(one.row.result.nfe),
        }
        line["fid"] = one.row.metrics["fid"]
        for name, estimate in (
            ("clip_score", one.clip),
            ("fid_less_cfg", one.fid_gap),
            ("clip_score_less_cfg", one.clip_gap),
        ):
            value, low, high, p = (
                ("",) * 4 if estimate is None else (estimate.value, estimate.low, estimate.high, estimate.p_many)
            )
            line |= {name: value, f"{name}_low": low, f"{name}_high": high}
            if "less" in name:
                line[f"{name}_p_holm"] = p
        line |= {name: one.row.metrics.get(name, "") for name in ("kid", "precision", "recall", "density", "coverage")}
        line["solver_error"] = "" if math.isnan(one.error) else one.error
        line["effective_scale"] = "" if one.scale is None else one.scale.scale
        line["beside_cfg"] = "" if one.scale is None else one.scale.beside
        told.append({**line, "job_id": one.row.job_id})
    return told


def draw(studied: Mapping[str, Sequence[Judged]], form: Form, file: Path) -> None:
    """Each method's differences to tuned CFG: a row a method, a column a measure of a model."""
    names = {one.method.name: one.method for results in studied.values() for one in results}
    order = [n for kind in KINDS for n, method in names.items() if method.kind == kind and n != CFG]
    places = {name: len(order) - 1 - place for place, name in enumerate(order)}
    figure, grid = canvas(
        1, 2 * len(studied), size=(3.1 * 2 * len(studied) + 1.6, 0.24 * len(order) + 1.5), sharey=True
    )
    for column, (model, results) in enumerate(studied.items()):
        for axes, key, label, better in (
            (grid[2 * column], "fid_gap", "FID less CFG's", "\u2190 better"),
            (grid[2 * column + 1], "clip_gap", "CLIP score less CFG's", "better \u2192"),
        ):
            tidy(axes, f"{model}", f"{label} ({better})", "")
            axes.axvline(0, color=INK, lw=1)
            for one in results:
                gap = getattr(one, key)
                if gap is None:
                    continue
                y, sure = places[one.method.name], gap.p_many < 0.05
                colour = COLOURS[list(KINDS).index(one.method.kind)]
                at = min(max(gap.value, -WIDEST), WIDEST)
                if at != gap.value:
                    axes.plot(at, y, marker=">" if at > 0 else "<", color=colour, ms=7, ls="none")
                    axes.annotate(
                        f"{gap.value:+.0f}", (at, y), xytext=(-8 if at > 0 else 8, 0), textcoords="offset points",
                        va="center", ha="right" if at > 0 else "left", fontsize=8, color=INK,
                    )  # fmt: skip
                    continue
                ends = [[max(gap.value - gap.low, 0)], [max(gap.high - gap.value, 0)]]
                axes.errorbar(
                    gap.value, y, xerr=ends, color=colour, marker="o", ms=5, lw=1.4, capsize=2, mfc=colour if sure else "white",
                )  # fmt: skip
            axes.set_xlim(-WIDEST - 1, WIDEST + 1)
            axes.set_ylim(-0.7, len(order) - 0.3)
    grid[0].set_yticks(list(places.values()), list(places), fontsize=8.5)
    from matplotlib.lines import Line2D

    shown = [Line2D([], [], color=COLOURS[i], marker="o", lw=1.4, label=text) for i, text in enumerate(KINDS.values())]
    shown.append(
        Line2D([], [], color=INK, marker="o", mfc="white", ls="none", label="hollow: not told apart from CFG (Holm)")
    )
    figure.legend(handles=shown, loc="outside lower center", ncols=3, fontsize=8.5, frameon=False)
    figure.suptitle(
        f"{form.evaluations} network evaluations a picture, every method tuned alike: difference to tuned CFG (0), 95 %",
        fontsize=11, color=INK,
    )  # fmt: skip
    save(figure, file)


def best_and_worst(model: str, results: Sequence[Judged]) -> str:
    """What of a model's methods is told apart from CFG."""
    told: dict[str, list[str]] = {}
    for key, measure, sign in (("fid_gap", "FID", 1), ("clip_gap", "CLIP score", -1)):
        for one in results:
            gap = getattr(one, key)
            if gap is not None and gap.p_many < 0.05:
                told.setdefault(f"{'worse' if sign * gap.value > 0 else 'better'} by {measure}", []).append(
                    one.method.name
                )
    tried = len(results) - 1
    said = [f"{what}: {', '.join(names)}" for what, names in told.items()]
    return f"Of {tried} methods on `{model}`, told apart from tuned CFG: " + ("; ".join(said) or "none") + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_const", dest="form", const="full")
    size.add_argument("--short", action="store_const", dest="form", const="short")
    parser.add_argument("--models", default="|".join(MODELS), help="names with | between them")
    parser.add_argument("--methods", help="names with | between them, CFG among them; all by default")
    parser.add_argument("--output", default="outputs", help="where experiments.guidance.run has written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--name", default="study", help="of the files")
    args = parser.parse_args()
    form = FORMS[args.form or ""]
    wanted = args.models.split("|")
    if unknown := [model for model in wanted if model not in MODELS]:
        raise UserError(f"--models: found {unknown[0]!r}; accepted: {' | '.join(MODELS)}.")
    names = [method.name for method in METHODS] if args.methods is None else args.methods.split("|")
    if CFG not in names or not {*names} <= {method.name for method in METHODS}:
        raise UserError(
            f"--methods: found {args.methods!r}; accepted are {CFG} and others of: {' | '.join(m.name for m in METHODS)}."
        )
    studied = {
        model: judged(
            Path(args.output, form.name, model), form, [method for method in methods_of(model) if method.name in names]
        )
        for model in wanted
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(
        [line for model in studied for line in csv_lines(model, studied[model])], args.out / f"{args.name}_results.csv"
    )
    images = next(iter(studied.values()))[0].row.n_images
    text = f"""
    Written by `python -m experiments.guidance.analyse`. {form.evaluations} network evaluations a picture, {images} pictures a
    method of {form.prompts[2]} prompts that nothing was tuned on. Each method is shown at the setting that was best on the other
    prompts, of as many as every other method had; the first lines are the baselines ({NONE}; {CFG}; {CFG_INTERVAL}). Differences
    are to CFG at its own tuned scale, of the same prompts and seeds, with 95 % intervals over prompts, bold where Holm's p over
    all methods and both measures is below 0.05. The FID is that of {images} pictures, which is far higher than that of many; what
    so few add to it is taken out of the differences. *Effective scale* is that of the CFG which the method comes nearest to,
    *beside CFG* the share of its guidance that no scale of CFG gives (`research-compare --effective-scale`).
    """
    parts = [
        f"## {model}\n\n{best_and_worst(model, results)}\n\n{markdown(lines(results))}"
        for model, results in studied.items()
    ]
    write_page(args.out / f"{args.name}.md", "Guidance methods at equal compute, tuned alike", text, *parts)
    draw(studied, form, args.out / f"{args.name}.png")
    for model, results in studied.items():
        print(best_and_worst(model, results))
    print(f"written: {args.out / args.name}.md, {args.name}_results.csv, {args.name}.png")


if __name__ == "__main__":
    run(main)
