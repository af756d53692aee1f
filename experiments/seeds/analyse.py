"""Make study.md and study.png of results.json.

python -m experiments.seeds.analyse [--folder experiments/seeds]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from experiments.common import COLOURS, MARKERS, canvas, markdown, save, tidy, write_page

FLOOR = 1e-8  # where "none" is drawn on a logarithmic axis


def table(told: dict[str, Any]) -> str:
    schedulers = list(dict.fromkeys(row["scheduler"] for row in told["rows"]))
    rows = []
    for name in dict.fromkeys(row["variation"] for row in told["rows"]):
        mine = {row["scheduler"]: row for row in told["rows"] if row["variation"] == name}
        rows.append({"variation": name, **{s: cell(mine[s]) if s in mine else "" for s in schedulers}})
    return markdown(rows)


def about(told: dict[str, Any]) -> str:
    base, where = told["base"], told["machine"]
    return f"""
    Written by `python -m experiments.seeds.analyse`. Model {base["model"]}, {base["steps"]} steps, guidance scale
    {base["scale"]:g}, {len(base["seeds"])} seeds in one batch, {base["dtype"]}, {base["threads"]} thread as the base;
    {where["cpu"]}, instructions {where["instructions"]}, torch {where["torch"]}. *Equal*: latents equal to the last bit, for all
    seeds. Otherwise the largest difference of the latents (their deviation is about 1), then how many of the 8-bit pictures
    are equal all the same, and the largest difference in levels of 255.
    """


def cell(row: dict[str, Any]) -> str:
    if row["equal_latents"] == row["n"]:
        return "equal"
    return (
        f"{row['largest_latent_difference']:.1g}; {row['equal_pictures']} of {row['n']}, "
        f"{row['largest_level_difference']} level{'s' * (row['largest_level_difference'] != 1)}"
    )


def figure(told: dict[str, Any], file: Path) -> None:
    names = list(dict.fromkeys(row["variation"] for row in told["rows"]))
    schedulers = list(dict.fromkeys(row["scheduler"] for row in told["rows"]))
    drawn, (latents, levels) = canvas(1, 2, size=(10.5, 0.6 + 0.34 * len(names)), sharey=True)
    for place, scheduler in enumerate(schedulers):
        mine = [row for row in told["rows"] if row["scheduler"] == scheduler]
        y = [names.index(row["variation"]) + 0.2 * (place - (len(schedulers) - 1) / 2) for row in mine]
        look = {"color": COLOURS[place], "marker": MARKERS[place], "ls": "", "ms": 5, "label": scheduler}
        latents.plot([max(FLOOR, row["largest_latent_difference"]) for row in mine], y, **look)
        levels.plot([row["largest_level_difference"] for row in mine], y, **look)
    latents.set_yticks(range(len(names)), names)
    latents.invert_yaxis()
    latents.set_xscale("log")
    ticks = [1e-6, 1e-4, 1e-2, 1]
    latents.set_xticks([FLOOR, *ticks], ["equal", *(f"{tick:g}" for tick in ticks)])
    latents.set_xlim(FLOOR / 3, 20)
    levels.set_xscale("symlog", linthresh=1)
    levels.set_xticks([0, 1, 4, 16, 64, 255], ["equal", "1", "4", "16", "64", "255"])
    levels.set_xlim(-0.3, 400)
    tidy(latents, "Final latents", "largest difference to the base", "")
    tidy(levels, "8-bit pictures", "largest difference to the base, levels of 255", "")
    levels.axvspan(-0.3, 1.3, color="0.93", zorder=0)
    levels.legend(fontsize=8, loc="upper right")
    save(drawn, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="of results.json")
    args = parser.parse_args()
    told = json.loads((args.folder / "results.json").read_text(encoding="utf-8"))
    write_page(args.folder / "study.md", "Same seeds, drawn otherwise", about(told), table(told))
    figure(told, args.folder / "study.png")
    print(f"{args.folder / 'study.md'}, study.png")


if __name__ == "__main__":
    main()
