"""Make study.md, study_results.csv and study.png of the sweep strength_study.

python -m experiments.img2img_strength.analyse outputs/strength_study [--out experiments/img2img_strength]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.common import (
    COLOURS,
    MARKERS,
    Estimate,
    Key,
    canvas,
    curve,
    difference,
    grouped,
    has,
    jobs,
    markdown,
    mean,
    pictures,
    run,
    save,
    scores,
    setting,
    show_grid,
    tidy,
    write_csv,
    write_page,
)
from research.results.read import Row

# how far the picture is left behind, and how it is called; the first that was scored is the figure's axis
DISTANCES = {
    "perceptual": "perceptual distance to the input (0 is equal)",
    "ssim": "structural similarity to the input (1 is equal)",
}
SHOWN = 4  # inputs of the contact sheet


def together(rows: list[Row], metric: str) -> dict[Key, float]:
    """The scores of all seeds."""
    return {key: value for row in rows for key, value in scores(row, metric).items()}


def table(cells: dict[tuple[float, float], list[Row]], metrics: list[str]) -> list[dict[str, Any]]:
    """A line a guidance scale and strength; the gap is to the highest strength of the same scale, paired by input and seed."""
    found = []
    for (scale, strength), rows in cells.items():
        line: dict[str, Any] = {"scale": scale, "strength": strength, "NFE": rows[0].result.nfe}
        line["images"] = sum(row.n_images for row in rows)
        for metric in metrics:
            estimate = mean(together(rows, metric))
            line |= {metric: estimate.value, f"{metric}_low": estimate.low, f"{metric}_high": estimate.high}
        whole = cells[scale, max(other for one, other in cells if one == scale)]
        gap = difference(together(rows, "clip_score"), together(whole, "clip_score"))
        found.append(line | {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high})
    return found


def estimates(lines: list[dict[str, Any]], metric: str) -> list[Estimate]:
    return [Estimate(line[metric], line[f"{metric}_low"], line[f"{metric}_high"], 0) for line in lines]


def figure(
    lines: list[dict[str, Any]], cells: dict[tuple[float, float], list[Row]], metrics: list[str], file: Path
) -> None:
    away = next(name for name in DISTANCES if name in metrics)
    scales = sorted({line["scale"] for line in lines})
    drawn, grid = canvas(2, 3, size=(13, 6.8), height_ratios=(1.7, 1))
    front, prompt, kept = grid[0]
    for place, scale in enumerate(scales):
        mine = sorted((line for line in lines if line["scale"] == scale), key=lambda line: line["strength"])
        front.plot(
            [line[away] for line in mine], [line["clip_score"] for line in mine], color=COLOURS[place],
            marker=MARKERS[place], ms=5, lw=1.4, label=f"guidance scale {scale:g}",
        )  # fmt: skip
        for line in mine:
            if place == 0 or line["strength"] in (0.1, 0.2):
                front.annotate(
                    f"{line['strength']:g}", (line[away], line["clip_score"]), fontsize=7.5, color=COLOURS[place],
                    xytext=(5, -8) if place == 0 else (-4, 5), textcoords="offset points", ha="left" if place == 0 else "right",
                )  # fmt: skip
        x = [line["strength"] + 0.012 * (place - (len(scales) - 1) / 2) for line in mine]
        curve(prompt, x, estimates(mine, "clip_score"), place, f"guidance scale {scale:g}")
        curve(kept, x, estimates(mine, away), place, f"guidance scale {scale:g}")
    tidy(front, "The trade-off (numbers: strength)", DISTANCES[away], "CLIP score with the prompt")
    tidy(prompt, "Fidelity to the prompt", "strength", "CLIP score with the prompt")
    tidy(kept, "Fidelity to the input", "strength", DISTANCES[away])
    for axes in grid[0]:
        axes.legend(fontsize=8, loc="lower right" if away != "ssim" or axes is not kept else "upper right")
    for axes in grid[1]:
        axes.remove()
    sheet = drawn.add_subplot(grid[1][0].get_gridspec()[1, :])
    strengths = sorted({strength for _, strength in cells})
    blocks = [cells[scale, strength][0] for scale in scales for strength in strengths if (scale, strength) in cells]
    show_grid(sheet, [list(line) for line in zip(*(pictures(row, SHOWN) for row in blocks), strict=True)])
    sheet.set_xticks(sheet.get_xticks(), [f"{setting(row, 'task.strength'):g}" for row in blocks], fontsize=8)
    names = [image.prompt.partition(" on ")[0] for image in blocks[0].result.images[:SHOWN]]
    sheet.set_yticks(sheet.get_yticks(), names, fontsize=8)
    sheet.set_title(
        "The same seed at each strength, at guidance scales " + ", ".join(f"{s:g}" for s in scales), fontsize=10
    )
    sheet.set_xlabel("strength")
    save(drawn, file)


def shown(lines: list[dict[str, Any]], metrics: list[str]) -> list[dict[str, Any]]:
    digits = {"ssim": 2, "perceptual": 2}
    return [
        {
            **{key: f"{line[key]:g}" for key in ("scale", "strength", "NFE", "images")},
            **{
                name: Estimate(line[name], line[f"{name}_low"], line[f"{name}_high"]).shown(digits.get(name, 1))
                for name in metrics
            },
            "CLIP score less strength 1": Estimate(line["gap"], line["gap_low"], line["gap_high"]).shown(1, "+"),
        }
        for line in lines
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the sweep's folder, outputs/strength_study")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    rows = jobs(args.folder)
    metrics = [name for name in ("clip_score", "perceptual", "ssim") if has(rows, name)]
    cells = dict(sorted(grouped(rows, "guidance.scale", "task.strength").items()))
    lines = table(cells, metrics)
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(lines, args.out / "study_results.csv")
    n = len({image.prompt for row in rows for image in row.result.images})
    seeds = len({setting(row, "seed") for row in rows})
    text = f"""
    Written by `python -m experiments.img2img_strength.analyse`. {n} inputs with a prompt each, {seeds} seeds; 95 % intervals
    over inputs, in brackets.
    """
    write_page(
        args.out / "study.md",
        "Strength: fidelity to the input, fidelity to the prompt",
        text,
        markdown(shown(lines, metrics)),
    )
    figure(lines, cells, metrics, args.out / "study.png")
    print(f"{len(rows)} jobs, {len(lines)} points: {args.out / 'study.md'}, study_results.csv, study.png")


if __name__ == "__main__":
    run(main)
