"""Make study.md, study_results.csv and study.png of the sweep inference_time_scaling.

    python -m experiments.inference_time_scaling.analyse outputs/inference_time_scaling [--out experiments/inference_time_scaling]

The score that was searched for and one that was not, by all network evaluations of an image, and paired differences from the
loop.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.common import (
    COLOURS,
    MARKERS,
    Estimate,
    canvas,
    difference,
    jobs,
    markdown,
    mean,
    run,
    save,
    scores,
    tidy,
    write_csv,
    write_page,
)
from research.errors import UserError
from research.results.read import Row

METRICS = {"clip_score": "CLIP score (searched for)", "background": "background as asked, % (not searched for)"}


def kind(row: Row) -> str:
    """What a job spends its evaluations on."""
    config = row.result.config
    name = (config.get("sampler") or {}).get("name", "loop")
    score = (config.get("sampler") or {}).get("score") or {}
    if name == "loop":
        scale = config["guidance"]["scale"]
        return "loop: more steps" if scale == 3 else f"loop at scale {scale:g}"
    return f"{name}, by the background" if "Background" in str(score.get("_target_")) else name


def table(rows: list[Row]) -> list[dict[str, Any]]:
    """A line a job: its cost, both scores, and their differences from the loop of as many evaluations and of the same steps."""
    loops = {row.result.nfe: row for row in rows if kind(row) == "loop: more steps"}
    if not loops:
        raise UserError(
            "inference_time_scaling: found no job with sampler=loop at guidance.scale=3; accepted is a sweep with one."
        )
    lines = []
    for row in sorted(rows, key=lambda row: (row.result.nfe or 0, kind(row))):
        cost = row.result.nfe or 0
        equal = loops[min(loops, key=lambda nfe: abs(nfe - cost))]
        line: dict[str, Any] = {
            "sampler": kind(row),
            "steps": row.result.config["steps"],
            "NFE": cost,
            "images": row.n_images,
        }
        line |= {
            "scores an image": row.result.score_evaluations or 0,
            "decodings an image": row.result.decoder_calls or 1,
        }
        line["loop's NFE"] = equal.result.nfe
        for metric in METRICS:
            value = mean(scores(row, metric))
            gap = difference(scores(row, metric), scores(equal, metric))
            line |= {metric: value.value, f"{metric} low": value.low, f"{metric} high": value.high}
            line |= {f"{metric} gap": gap.value, f"{metric} gap low": gap.low, f"{metric} gap high": gap.high}
        lines.append(line)
    return lines


def shown(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for line in lines:
        cells = {key: line[key] for key in ("sampler", "steps", "NFE", "scores an image", "decodings an image")}
        for metric in METRICS:
            cells[metric] = Estimate(*_three(line, metric)).shown(1)
            itself = line["sampler"] == "loop: more steps"
            cells[f"{metric}, less the loop's at equal NFE"] = (
                "" if itself else Estimate(*_three(line, f"{metric} gap")).shown(1, "+")
            )
        found.append(cells)
    return found


def _three(line: dict[str, Any], name: str) -> tuple[float, float, float]:
    return line[name], line[f"{name} low"], line[f"{name} high"]


def figure(lines: list[dict[str, Any]], file: Path) -> None:
    fig, axes = canvas(1, 2, size=(9.5, 3.8))
    kinds = list(dict.fromkeys(line["sampler"] for line in lines))
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for place, name in enumerate(kinds):
            mine = [line for line in lines if line["sampler"] == name]
            x = [line["NFE"] * (1 + 0.012 * (place - len(kinds) / 2)) for line in mine]
            y = [line[metric] for line in mine]
            errors = [
                [v - line[f"{metric} low"] for v, line in zip(y, mine, strict=True)],
                [line[f"{metric} high"] - v for v, line in zip(y, mine, strict=True)],
            ]
            axis.errorbar(
                x,
                y,
                yerr=errors,
                label=name,
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=5,
                linewidth=1,
                elinewidth=0.7,
            )
        axis.set_xscale("log")
        axis.set_xticks([20, 40, 80], ["20", "40", "80"])
        axis.minorticks_off()
        axis.set_ylim(bottom=75)  # what fails as a whole lies below, and stands in the table
        tidy(axis, label, "network evaluations an image, all candidates", metric)
    axes[1].legend(fontsize=7, frameon=False, loc="best")
    save(fig, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    rows = jobs(args.folder)
    lines = table(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(lines, args.out / "study_results.csv")
    write_page(
        args.out / "study.md",
        "Inference-time scaling",
        f"{lines[0]['images']} images a job, held-out prompts; 95 % intervals over prompts, differences paired by seed. NFE "
        "are network evaluations an image "
        "of all candidates, both branches of the guidance.",
        markdown(shown(lines)),
    )
    figure(lines, args.out / "study.png")


if __name__ == "__main__":
    run(main)
