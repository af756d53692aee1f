"""Make study.md, study_results.csv and study.png of the sweep inpaint_study.

    python -m experiments.inpaint.analyse outputs/inpaint_study [--out experiments/inpaint]

Two numbers are taken here: the *seam*, how much brighter or darker neighbouring pixels on the two sides of the mask's border are
than they were in the picture (0 to 255, after the picture's own pixels are pasted back), and the means of the metrics by model.
"""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.common import (
    COLOURS,
    INK,
    MARKERS,
    Estimate,
    Key,
    canvas,
    difference,
    grouped,
    image_keys,
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
from research.metrics.job import ScoredJob
from research.results.read import Row

LABELS = {
    "seam": "Seam, levels of 255\n(lower is better)",
    "clip_score": "CLIP score\n(higher is better)",
    "psnr_drawn": "PSNR of the hole, dB\n(higher is better)",
    "psnr_kept": "PSNR of the kept part, dB\n(higher is better)",
}


@cache
def given(row: Row) -> tuple[list[Image.Image], list[Image.Image]]:
    """The input of each of a job's images, and its mask."""
    made = [Image.fromarray(array) for array in pictures(row)]
    job = ScoredJob(row.result.config, [image.seed for image in row.result.images])
    return job.inputs(made), job.masks(made)


def pasted(row: Row) -> list[NDArray[np.float64]]:
    """Images [H, W, 3] with the input's own pixels outside the mask."""
    found = []
    for image, before, mask in zip(pictures(row), *given(row), strict=True):
        inside = (np.asarray(mask, dtype=float) / 255)[..., None]
        found.append(inside * image + (1 - inside) * np.asarray(before, dtype=float))
    return found


def jump(image: NDArray[np.float64], mask: NDArray[np.bool_]) -> float:
    """The mean difference of neighbouring pixels of which one is inside the mask and one is not."""
    gaps = []
    for axis in (0, 1):
        across = np.diff(mask.astype(int), axis=axis) != 0
        gaps.append(np.abs(np.diff(image, axis=axis)).mean(-1)[across])
    return float(np.concatenate(gaps).mean())


def seams(row: Row, *more: Any) -> dict[Key, float]:
    found = []
    for image, before, mask in zip(pasted(row), *given(row), strict=True):
        hole = np.asarray(mask) > 127
        found.append(jump(image, hole) - jump(np.asarray(before, dtype=float), hole))
    return dict(zip(image_keys(row, *more), found, strict=True))


def of(row: Row) -> str:
    """The model's short name."""
    return str(setting(row, "model.path")).rstrip("/").rpartition("/")[2]


def mask_name(row: Row) -> str:
    return Path(str(setting(row, "task.mask")).removeprefix("zoo:")).stem.removeprefix("mask_")


def condition(rows: list[Row]) -> dict[tuple[str, ...], str]:
    """What the prompts ask for: in the order of the config, first what was there, then something else."""
    found = dict.fromkeys(tuple(setting(row, "prompts")) for row in sorted(rows, key=lambda row: row.result.created))
    names = ("what was there", "another thing")
    return {prompts: names[min(place, 1)] for place, prompts in enumerate(found)}


def collect(rows: list[Row], metric: str) -> dict[Key, float]:
    """The scores of images of several masks and seeds."""
    found: dict[Key, float] = {}
    for row in rows:
        found |= seams(row, mask_name(row)) if metric == "seam" else scores(row, metric, mask_name(row))
    return found


def table(cells: dict[tuple[str, str, str], list[Row]], metrics: list[str]) -> list[dict[str, Any]]:
    """A line a prompt's kind and mask (the last one over all masks): both models, and their paired difference."""
    models = list(dict.fromkeys(model for _, _, model in cells))
    found = []
    for asked in dict.fromkeys(asked for asked, _, _ in cells):
        masks = list(dict.fromkeys(mask for name, mask, _ in cells if name == asked))
        for mask in [*masks, "all"]:
            for metric in metrics:
                if metric == "psnr_drawn" and asked != "what was there":
                    continue
                held = [
                    collect(
                        [row for m in (masks if mask == "all" else [mask]) for row in cells[asked, m, model]], metric
                    )
                    for model in models
                ]
                line: dict[str, Any] = {"prompt": asked, "mask": mask, "metric": metric, "images": len(held[0])}
                for model, values in zip(models, held, strict=True):
                    estimate = mean(values)
                    line |= {model: estimate.value, f"{model} low": estimate.low, f"{model} high": estimate.high}
                if len(models) == 2:
                    gap = difference(held[1], held[0])
                    line |= {"difference": gap.value, "difference low": gap.low, "difference high": gap.high}
                found.append(line)
    return found


def shown(lines: list[dict[str, Any]], models: list[str]) -> list[dict[str, Any]]:
    def told(line: dict[str, Any], name: str, sign: str = "") -> str:
        return Estimate(line[name], line[f"{name} low"], line[f"{name} high"]).shown(1, sign)

    return [
        {
            **{key: line[key] for key in ("prompt", "mask", "metric")},
            **{model: told(line, model) for model in models},
            **({"second less first": told(line, "difference", "+")} if "difference" in line else {}),
        }
        for line in lines
    ]


def figure(lines: list[dict[str, Any]], cells: dict[tuple[str, str, str], list[Row]], file: Path) -> None:
    """The paired differences by mask, and a sheet of one seed."""
    models = list(dict.fromkeys(model for _, _, model in cells))
    asked = list(dict.fromkeys(asked for asked, _, _ in cells))
    masks = list(dict.fromkeys(line["mask"] for line in lines))
    panels = [metric for metric in LABELS if any(line["metric"] == metric for line in lines)]
    drawn, grid = canvas(2, len(panels), size=(3.1 * len(panels), 6.4), height_ratios=(1, 1.05), squeeze=False)
    for axes, metric in zip(grid[0], panels, strict=True):
        for place, name in enumerate(asked):
            mine = [line for line in lines if (line["metric"], line["prompt"]) == (metric, name)]
            if not mine or "difference" not in mine[0]:
                continue
            y = np.array([line["difference"] for line in mine])
            ends = np.array([[line[f"difference {end}"] for line in mine] for end in ("low", "high")])
            x = [masks.index(line["mask"]) + 0.16 * (2 * place - 1) for line in mine]
            axes.errorbar(
                x, y, yerr=np.abs(ends - y), ls="", capsize=2, ms=5, color=COLOURS[place], marker=MARKERS[place],
                label=f"prompt: {name}",
            )  # fmt: skip
        axes.axhline(0, color=INK, lw=0.8)
        tidy(axes, LABELS[metric], "mask", f"{models[-1]} less {models[0]}")
        axes.set_xticks(range(len(masks)), masks, rotation=35, fontsize=8)
    drawn.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9)
    for axes in grid[1]:
        axes.remove()
    sheet = drawn.add_subplot(grid[1][0].get_gridspec()[1, :])
    shown_masks, count = masks[:-1], 2
    columns = [(name, mask) for name in asked for mask in shown_masks]
    cells_of = [[None] * (count * len(columns)) for _ in range(2 + len(models))]
    for place, (name, mask) in enumerate(columns):
        row = cells[name, mask, models[0]][0]
        for k in range(count):
            hole = np.asarray(given(row)[1][k]) > 127
            before = np.asarray(given(row)[0][k]).copy()
            cells_of[0][place * count + k] = before
            covered = before.copy()
            covered[hole] = 128
            cells_of[1][place * count + k] = covered
            for line, model in enumerate(models):
                cells_of[2 + line][place * count + k] = pasted(cells[name, mask, model][0])[k].round().astype(np.uint8)
    show_grid(sheet, cells_of)
    sheet.set_yticks(sheet.get_yticks(), ["picture", "hole", *models], fontsize=8)
    ticks = sheet.get_xticks()
    sheet.set_xticks(
        [ticks[place * count + count // 2] for place in range(len(columns))],
        [f"{mask}\n{name}" for name, mask in columns],
        fontsize=8,
    )
    sheet.set_title("One seed; pixels outside the mask are the picture's own", fontsize=10)
    save(drawn, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the sweep's folder, outputs/inpaint_study")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    rows = jobs(args.folder)
    names = condition(rows)
    order = sorted(rows, key=lambda row: (list(names).index(tuple(setting(row, "prompts"))), row.result.created))
    cells = grouped(order, lambda row: names[tuple(setting(row, "prompts"))], mask_name, of)
    metrics = [name for name in LABELS if name == "seam" or all(name in row.metrics for row in rows)]
    lines = table(cells, metrics)
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(lines, args.out / "study_results.csv")
    units = len({image.prompt for row in rows for image in row.result.images}) // len(names)
    seeds = len({setting(row, "seed") for row in rows})
    models = list(dict.fromkeys(model for _, _, model in cells))
    text = f"""
    Written by `python -m experiments.inpaint.analyse`. {units} pictures, {seeds} seeds; 95 % intervals over pictures, in
    brackets; the difference is {models[-1]} less {models[0]}, picture by picture.
    """
    write_page(
        args.out / "study.md",
        "Inpainting: compositing, and a model that sees the mask",
        text,
        markdown(shown(lines, models)),
    )
    figure(lines, cells, args.out / "study.png")
    print(f"{len(rows)} jobs: {args.out / 'study.md'}, study_results.csv, study.png")


if __name__ == "__main__":
    run(main)
