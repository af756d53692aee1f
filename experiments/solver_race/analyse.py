"""Make study.md, the two CSV files and study.png of the sweeps solver_race, solver_race_error and solver_race_order.

    python -m experiments.solver_race.analyse outputs/solver_race [--out experiments/solver_race]

The other two sweeps are looked for beside the first one; what is not there is left out.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from experiments.common import (
    Estimate,
    difference,
    features,
    fid,
    grouped,
    has,
    jobs,
    markdown,
    mean,
    run,
    scores,
    setting,
    single,
    write_csv,
    write_page,
)
from experiments.solver_race.figure import FITTED_FROM, family, figure
from research.metrics import fit_order
from research.results.read import Row

COMPARED = "ddim"
Cells = dict[tuple[str, int], Row]


def cells_of(folder: Path) -> Cells:
    """A job a scheduler and step count, by family."""
    found = single(grouped(jobs(folder), "scheduler.name", "steps"))
    return dict(sorted(found.items(), key=lambda item: (family(item[0][0]), item[0])))


def timed(file: Path) -> dict[tuple[str, int], float]:
    """Seconds an image by scheduler and steps, of seconds.py; none where it was not run."""
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8") as lines:
        return {
            (line["scheduler"], int(line["steps"])): float(line["seconds an image"]) for line in csv.DictReader(lines)
        }


def quality(cells: Cells, seconds: dict[tuple[str, int], float]) -> list[dict[str, Any]]:
    """Scores, evaluations and seconds, and the paired differences to DDIM at as many steps."""
    with_fid = has(list(cells.values()), "fid")
    sets = {cell: fid(features(row), row) for cell, row in cells.items()} if with_fid else {}
    lines = []
    for (name, steps), row in cells.items():
        line: dict[str, Any] = {"scheduler": name, "steps": steps, "NFE": row.result.nfe, "images": row.n_images}
        line["seconds an image"] = seconds.get((name, steps), row.timings["denoise"] / row.n_images)
        other = COMPARED, steps
        found = {"clip": mean(scores(row, "clip_score"))}
        if with_fid:
            found["fid"] = sets[name, steps].estimate
        if other in cells:
            found["clip gap"] = difference(scores(row, "clip_score"), scores(cells[other], "clip_score"))
            if with_fid:
                found["fid gap"] = sets[name, steps].less(sets[other])
        for key, estimate in found.items():
            line |= {key: estimate.value, f"{key} low": estimate.low, f"{key} high": estimate.high}
        lines.append(line)
    return lines


def errors(cells: Cells, sweep: str) -> list[dict[str, Any]]:
    lines = []
    for (name, steps), row in cells.items():
        estimate = mean(scores(row, "solver_error"))
        line: dict[str, Any] = {"sweep": sweep, "scheduler": name, "steps": steps, "NFE": row.result.nfe}
        line |= {
            "images": row.n_images,
            "error": estimate.value,
            "error low": estimate.low,
            "error high": estimate.high,
        }
        lines.append(line)
    return lines


def orders(cells: Cells) -> dict[str, Estimate]:
    """The order of each scheduler: fitted image by image, the mean and its interval over images."""
    found = {}
    for name in dict.fromkeys(name for name, _ in cells):
        mine = {
            steps: scores(row, "solver_error")
            for (n, steps), row in cells.items()
            if n == name and steps >= FITTED_FROM
        }
        if len(mine) < 2:
            continue
        images = next(iter(mine.values()))
        found[name] = mean({key: fit_order(list(mine), [held[key] for held in mine.values()]).order for key in images})
    return found


def at(line: dict[str, Any], key: str) -> Estimate:
    return Estimate(line[key], line[f"{key} low"], line[f"{key} high"], 0)


def tables(lines: list[dict[str, Any]], wrong: list[dict[str, Any]], order: dict[str, Estimate]) -> str:
    found = []
    for line in lines:
        cells: dict[str, Any] = {key: line[key] for key in ("scheduler", "steps", "NFE")}
        for key, name in (
            ("fid", "FID"),
            ("fid gap", f"FID less {COMPARED}"),
            ("clip", "CLIP score"),
            ("clip gap", f"CLIP score less {COMPARED}"),
        ):
            if key in line:
                gap = key.endswith("gap")
                cells[name] = (
                    "" if gap and line["scheduler"] == COMPARED else at(line, key).shown(1, "+" if gap else "")
                )
        cells["s / image"] = f"{line['seconds an image']:.3f}"
        found.append(cells)
    text = "## Scores\n\n" + markdown(found)
    if wrong:
        steps = sorted({line["steps"] for line in wrong})
        rows = []
        for name in dict.fromkeys(line["scheduler"] for line in wrong):
            cells = {"scheduler": name}
            for kind in dict.fromkeys(line["sweep"] for line in wrong):
                for step in steps:
                    cells[f"{kind}, {step}"] = "".join(
                        f"{line['error']:.3f}"
                        for line in wrong
                        if (line["sweep"], line["scheduler"], line["steps"]) == (kind, name, step)
                    )
            cells["order"] = order[name].shown(2) if name in order else ""
            rows.append(cells)
        text += "\n## Solver error, by steps\n\n" + markdown(rows)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the first sweep's folder, outputs/solver_race")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    cells = cells_of(args.folder)
    beside = (Path(f"{args.folder}_{name}") for name in ("error", "order"))
    common, own = (cells_of(folder) if folder.is_dir() else {} for folder in beside)
    lines, order = quality(cells, timed(args.out / "study_seconds.csv")), orders(own)
    wrong = [
        *errors(common, f"at scale {scale_of(common)}, against one reference"),
        *errors(own, f"at scale {scale_of(own)}, each against its own"),
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(lines, args.out / "study_results.csv")
    if wrong:
        write_csv(wrong, args.out / "study_errors.csv")
    first = next(iter(cells.values()))
    text = f"""
    Written by `python -m experiments.solver_race.analyse`. Model {setting(first, "model.path")}, {first.n_images} images a job
    for the scores, the same seeds in all; 95 % intervals over prompts, paired where schedulers are compared;
    {first.result.device}.
    """
    write_page(args.out / "study.md", "Solver race", text, tables(lines, wrong, order))
    figure(lines, wrong, order, args.out / "study.png")
    print(f"{len(cells)} + {len(common)} + {len(own)} jobs: {args.out / 'study.md'}, CSV files, study.png")


def scale_of(cells: Cells) -> str:
    return next((f"{setting(row, 'guidance.scale'):g}" for row in cells.values()), "")


if __name__ == "__main__":
    run(main)
