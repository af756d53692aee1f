"""Make study.md, study_results.csv and study.png of the sweep few_steps.

    python -m experiments.few_steps.analyse outputs/few_steps [--out experiments/few_steps]

FID (CLIP score, where the jobs have that instead) by steps, and how much of an image its seed decides: the distance, in the
features that the FID is computed from, of an image to the same seed's at the most steps, beside that of different seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import (
    INK,
    Array,
    Estimate,
    Key,
    SetScore,
    canvas,
    curve,
    difference,
    features,
    fid,
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
    single,
    step_ticks,
    tidy,
    write_csv,
    write_page,
)
from research.results.read import Row

SHOWN = 3  # seeds of the contact sheet


def apart(a: dict[Key, Array], b: dict[Key, Array]) -> dict[Key, float]:
    """One less the cosine of two vectors of the same image."""
    return {
        key: max(0.0, 1 - float(x @ b[key] / np.linalg.norm(x) / np.linalg.norm(b[key])))
        for key, x in a.items()
        if key in b
    }


def others(vectors: dict[Key, Array]) -> float:
    """The mean of the same over pairs of different seeds, of one prompt where there are prompts of several images."""
    x = np.stack(list(vectors.values()))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    units = np.unique([str(key[0]) for key in vectors], return_inverse=True)[1]
    chosen = units[:, None] == units if len(set(units)) < len(units) else np.ones((len(x), len(x)), dtype=bool)
    return 1 - float((x @ x.T)[chosen & ~np.eye(len(x), dtype=bool)].mean())


def table(cells: dict[tuple[str, int], Row], metric: str) -> list[dict[str, Any]]:
    """A line a scheduler and step count, each compared with DDPM at as many steps and at its most, paired by seed."""
    most = {name: max(steps for n, steps in cells if n == name) for name, _ in cells}
    vectors = {cell: features(row) for cell, row in cells.items()} if metric == "fid" else {}
    found: dict[tuple[str, int], SetScore] = {cell: fid(vectors[cell], cells[cell]) for cell in vectors}
    last = "ddpm" if "ddpm" in most else next(iter(most))
    lines = []
    for (name, steps), row in cells.items():
        cell, target = (name, steps), (last, most[last])
        equal = (last, steps) if (last, steps) in cells else target

        def less(other: tuple[str, int], cell: tuple[str, int] = cell) -> Estimate:
            if metric == "fid":
                return found[cell].less(found[other])
            return difference(scores(cells[cell], metric), scores(cells[other], metric))

        value, gap, level = (found[cell].estimate if found else mean(scores(row, metric)), less(target), less(equal))
        line: dict[str, Any] = {"scheduler": name, "steps": steps, "NFE": row.result.nfe, "images": row.n_images}
        line |= {metric: value.value, "low": value.low, "high": value.high}
        line |= {"gap": gap.value, "gap low": gap.low, "gap high": gap.high}
        line |= {"equal": level.value, "equal low": level.low, "equal high": level.high}
        line["seconds an image"] = row.timings["denoise"] / row.n_images
        if vectors:
            same = mean(apart(vectors[cell], vectors[name, most[name]]))
            line |= {"to most steps": same.value, "to most low": same.low, "to most high": same.high}
            line["other seeds"] = others(vectors[cell])
        lines.append(line)
    return lines


def told(line: dict[str, Any], name: str, low: str, high: str, digits: int = 1, sign: str = "") -> str:
    return Estimate(line[name], line[low], line[high]).shown(digits, sign)


def shown(lines: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    last = max((line for line in lines if line["scheduler"] == lines[0]["scheduler"]), key=lambda line: line["steps"])
    found = []
    for line in lines:
        cells: dict[str, Any] = {key: line[key] for key in ("scheduler", "steps", "images")}
        cells[metric] = told(line, metric, "low", "high")
        first = line["scheduler"] == last["scheduler"]
        told_equal = told(line, "equal", "equal low", "equal high", 1, "+")
        cells[f"less {last['scheduler']} at as many steps"] = "" if first else told_equal
        cells[f"less {last['scheduler']} at {last['steps']} steps"] = told(line, "gap", "gap low", "gap high", 1, "+")
        if "to most steps" in line:
            cells["distance to the same seed at most steps"] = told(
                line, "to most steps", "to most low", "to most high", 2
            )
            cells["to other seeds"] = f"{line['other seeds']:.2f}"
        found.append(cells)
    return found


def figure(lines: list[dict[str, Any]], cells: dict[tuple[str, int], Row], metric: str, file: Path) -> None:
    names = list(dict.fromkeys(name for name, _ in cells))
    steps = sorted({step for _, step in cells})
    consistent = "to most steps" in lines[0]
    drawn, axes = canvas(
        1, 2 + consistent, size=(8.6 + 3.8 * consistent, 3.9), width_ratios=(*[1] * (1 + consistent), 1.15)
    )
    for place, name in enumerate(names):
        mine = [line for line in lines if line["scheduler"] == name]
        x = [line["steps"] for line in mine]
        curve(axes[0], x, [Estimate(line[metric], line["low"], line["high"], 0) for line in mine], place, name)
        if consistent:
            same = [Estimate(line["to most steps"], line["to most low"], line["to most high"], 0) for line in mine[:-1]]
            curve(axes[1], x[:-1], same, place, f"{name}, same seed")
    what = "FID (lower is better)" if metric == "fid" else "CLIP score (higher is better)"
    tidy(axes[0], f"Quality by steps, {lines[0]['images']} images", "steps (model evaluations)", what)
    step_ticks(axes[0], steps)
    if metric == "fid":
        axes[0].set_yscale("log")
        low, high = axes[0].get_ylim()
        ticks = [tick for tick in (5, 7, 10, 15, 20, 30, 50, 70, 100, 150) if low <= tick <= high]
        axes[0].set_yticks(ticks, [str(tick) for tick in ticks])
        axes[0].minorticks_off()
    axes[0].legend(fontsize=8)
    if consistent:
        axes[1].axhline(
            np.mean([line["other seeds"] for line in lines]), color=INK, lw=1, ls="--", label="different seeds"
        )
        tidy(
            axes[1],
            f"Distance to the image at {steps[-1]} steps",
            "steps (model evaluations)",
            "1 - cosine of the features",
        )
        step_ticks(axes[1], steps[:-1])
        axes[1].set_ylim(bottom=0)
        axes[1].legend(fontsize=8)
    grid, labels = [], []
    first = next(iter(cells.values()))
    for name in names:
        columns = [pictures(cells[name, step], SHOWN) if (name, step) in cells else [None] * SHOWN for step in steps]
        for k in range(SHOWN):
            grid.append([column[k] for column in columns])
            labels.append(f"{name}, seed {first.result.images[k].seed}")
    show_grid(axes[-1], grid)
    axes[-1].set_xticks(axes[-1].get_xticks(), steps)
    axes[-1].set_yticks(axes[-1].get_yticks(), labels, fontsize=8)
    axes[-1].set_xlabel("steps")
    axes[-1].set_title("The same seeds", fontsize=10)
    save(drawn, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the sweep's folder, outputs/few_steps")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--name", default="study", help="of the files; others than the first begin with it")
    args = parser.parse_args()
    rows = jobs(args.folder)
    metric = "fid" if has(rows, "fid") else "clip_score"
    sets = single(grouped(rows, "scheduler.name", "steps"))
    names = sorted(
        {name for name, _ in sets}, key=lambda name: ("ddpm", "ddim").index(name) if name in ("ddpm", "ddim") else 2
    )
    cells = {(name, steps): sets[name, steps] for name in names for steps in sorted(s for n, s in sets if n == name)}
    lines = table(cells, metric)
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(lines, args.out / f"{args.name}_results.csv")
    first = rows[0]
    text = f"""
    Written by `python -m experiments.few_steps.analyse`. Model {setting(first, "model.path")}, {first.n_images} images a job, the
    same seeds in all; 95 % intervals, paired by seed where two jobs are compared; {first.result.device}.
    """
    write_page(args.out / f"{args.name}.md", "Few steps: DDPM and DDIM", text, markdown(shown(lines, metric)))
    figure(lines, cells, metric, args.out / f"{args.name}.png")
    print(f"{len(rows)} jobs: {args.out / args.name}.md, _results.csv, .png")


if __name__ == "__main__":
    run(main)
