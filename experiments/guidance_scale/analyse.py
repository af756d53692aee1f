"""Make study.md, study_results.csv and study.png of the sweep guidance_scale.

    python -m experiments.guidance_scale.analyse outputs/guidance_scale [--out experiments/guidance_scale]

The other folder, experiments/guidance, compares methods; this one follows classifier-free guidance alone along its scale.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.common import (
    COLOURS,
    INK,
    MARKERS,
    Estimate,
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

SHOWN = 3
Cells = dict[tuple[str, float], Row]


def window(row: Row) -> str:
    """On which part of the steps there is guidance."""
    modifiers = setting(row, "guidance").get("modifiers") or {}
    low, high = (modifiers.get("interval") or {}).get("steps") or (0, 1)
    return "all steps" if (low, high) == (0, 1) else f"steps {low:g} to {high:g}"


def table(cells: Cells, with_fid: bool) -> list[dict[str, Any]]:
    """A line a window and scale, with paired differences to the lowest scale on all steps, and to all steps at its scale."""
    base = min((cell for cell in cells if cell[0] == "all steps"), default=next(iter(cells)))
    sets = {cell: fid(features(row), row) for cell, row in cells.items()} if with_fid else {}
    lines = []
    for cell, row in cells.items():
        name, scale = cell
        whole = ("all steps", scale)
        line: dict[str, Any] = {"guidance on": name, "scale": scale, "NFE": row.result.nfe, "images": row.n_images}
        found = {"clip": mean(scores(row, "clip_score")), **({"fid": sets[cell].estimate} if sets else {})}
        found["clip base"] = difference(scores(row, "clip_score"), scores(cells[base], "clip_score"))
        if sets:
            found["fid base"] = sets[cell].less(sets[base])
        if whole in cells:
            found["clip gap"] = difference(scores(row, "clip_score"), scores(cells[whole], "clip_score"))
            if sets:
                found["fid gap"] = sets[cell].less(sets[whole])
        for key, estimate in found.items():
            line |= {key: estimate.value, f"{key} low": estimate.low, f"{key} high": estimate.high}
        lines.append(line)
    return lines


def estimate(line: dict[str, Any], key: str) -> Estimate:
    return Estimate(line[key], line[f"{key} low"], line[f"{key} high"], 0)


def shown(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for line in lines:
        cells = {"guidance on": line["guidance on"], "scale": f"{line['scale']:g}", "NFE": line["NFE"]}
        cells["CLIP score"] = estimate(line, "clip").shown()
        if "fid" in line:
            cells["FID"] = estimate(line, "fid").shown()
        for key, name in (
            ("clip base", "CLIP score less the lowest scale"),
            ("fid base", "FID less the lowest scale"),
            ("clip gap", "CLIP score less all steps"),
            ("fid gap", "FID less all steps"),
        ):
            if key in line:
                cells[name] = (
                    ""
                    if key.endswith("gap") and line["guidance on"] == "all steps"
                    else estimate(line, key).shown(1, "+")
                )
        found.append(cells)
    return found


def figure(lines: list[dict[str, Any]], cells: Cells, file: Path) -> None:
    """The trade-off, the paired differences to the lowest scale, and a sheet of the same seeds."""
    names, with_fid = list(dict.fromkeys(name for name, _ in cells)), "fid" in lines[0]
    scales = sorted({scale for _, scale in cells})
    drawn, grid = canvas(2, 2, size=(12, 9), height_ratios=(1, 1.1))
    (trade, sheet), (by_fid, by_clip) = grid
    for place, name in enumerate(names):
        mine = [line for line in lines if line["guidance on"] == name]
        x = [line["scale"] * (1 + 0.02 * (place - (len(names) - 1) / 2)) for line in mine]
        curve(by_clip, x, [estimate(line, "clip base") for line in mine], place, f"guidance on {name}")
        if not with_fid:
            continue
        curve(by_fid, x, [estimate(line, "fid base") for line in mine], place, f"guidance on {name}")
        trade.plot(
            [line["fid"] for line in mine], [line["clip"] for line in mine], color=COLOURS[place], marker=MARKERS[place],
            ms=5, lw=1.4, label=f"guidance on {name}",
        )  # fmt: skip
        for line in mine if place == 0 else ():
            trade.annotate(
                f"{line['scale']:g}", (line["fid"], line["clip"]), fontsize=8.5, color=COLOURS[place],
                xytext=(-5, -3) if line["scale"] > 2 else (5, 5), textcoords="offset points",
                ha="right" if line["scale"] > 2 else "left", va="top" if line["scale"] > 2 else "bottom",
            )  # fmt: skip
    for axes, what in ((by_fid, "FID"), (by_clip, "CLIP score")):
        better = "lower" if what == "FID" else "higher"
        tidy(
            axes,
            f"{what} less that at scale {scales[0]:g} (paired)",
            "guidance scale",
            f"{what}, difference ({better} is better)",
        )
        axes.axhline(0, color=INK, lw=0.8)
        step_ticks(axes, scales)
    by_clip.legend(fontsize=8, loc="lower left")
    tidy(
        trade,
        "The trade-off along the scale (numbers: scale)",
        "FID (lower is better)",
        "CLIP score (higher is better)",
    )
    if with_fid:
        trade.legend(fontsize=8, loc="lower left")
    else:
        trade.remove()
        by_fid.remove()
    columns = [scale for scale in scales if all((name, scale) in cells for name in names)]
    per_prompt = len(next(iter(cells.values())).result.images) // max(
        1, len({image.prompt for image in next(iter(cells.values())).result.images})
    )
    places = [k * per_prompt for k in range(SHOWN)]
    grid, labels = [], []
    for name in names:
        found = [pictures(cells[name, scale], places[-1] + 1) for scale in columns]
        for k in places:
            grid.append([column[k] for column in found])
            labels.append(name if k == places[SHOWN // 2] else "")
    show_grid(sheet, grid)
    sheet.set_xticks(sheet.get_xticks(), [f"{scale:g}" for scale in columns])
    sheet.set_yticks(sheet.get_yticks(), labels, fontsize=8)
    sheet.set_xlabel("guidance scale")
    sheet.set_title("The same seeds, guidance on ...", fontsize=10)
    save(drawn, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the sweep's folder, outputs/guidance_scale")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    rows = jobs(args.folder)
    sets = single(grouped(rows, window, "guidance.scale"))
    cells = dict(sorted(sets.items(), key=lambda item: (item[0][0] != "all steps", item[0])))
    lines = table(cells, has(rows, "fid"))
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(lines, args.out / "study_results.csv")
    first = rows[0]
    prompts = len({image.prompt for image in first.result.images})
    text = f"""
    Written by `python -m experiments.guidance_scale.analyse`. Model {setting(first, "model.path")},
    {setting(first, "scheduler.name")}, {setting(first, "steps")} steps, {first.n_images} images a job ({prompts} prompts);
    95 % intervals, of CLIP scores over prompts and of FID over seeds; differences are paired.
    """
    write_page(args.out / "study.md", "Guidance scale: CLIP score against FID", text, markdown(shown(lines)))
    figure(lines, cells, args.out / "study.png")
    print(f"{len(rows)} jobs: {args.out / 'study.md'}, study_results.csv, study.png")


if __name__ == "__main__":
    run(main)
