"""The figure of solver_race: scores by scheduler, quality by time, solver error by model evaluations, and orders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import COLOURS, MARKERS, Estimate, canvas, said_better, save, step_ticks, tidy

FAMILIES = {
    "first order, or multistep over epsilon": ("ddim", "ddim_trailing", "euler", "lms", "pndm"),
    "multistep, second order": ("dpmpp_2m", "dpmpp_2m_karras", "unipc", "deis"),
    "single step, second order": ("heun", "dpm2", "dpmpp_2s"),
    "draws noise": ("ddpm", "euler_a", "dpm2_a", "dpmpp_2m_sde", "dpmpp_sde", "lcm"),
}
FITTED_FROM = 10  # steps; below, errors do not fall by a law yet


def family(scheduler: str) -> int:
    return next((i for i, names in enumerate(FAMILIES.values()) if scheduler in names), len(FAMILIES))


def dots(axes: Any, lines: list[dict[str, Any]], key: str, names: list[str]) -> None:
    """A row a scheduler, a mark a step count, with intervals."""
    steps = sorted({line["steps"] for line in lines})
    for place, step in enumerate(steps):
        mine = [line for line in lines if line["steps"] == step]
        x = np.array([line[key] for line in mine])
        ends = np.array([[line[f"{key} {end}"] for line in mine] for end in ("low", "high")])
        y = [names.index(line["scheduler"]) + 0.22 * (place - 1) for line in mine]
        axes.errorbar(
            x, y, xerr=np.abs(ends - x), ls="", ms=4.5, elinewidth=1, color=COLOURS[place],
            marker=MARKERS[place], label=f"{step} steps",
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()


def plain(axis: Any, ends: tuple[float, float], ticks: tuple[float, ...]) -> None:
    """Numbers as people write them on a logarithmic axis."""
    shown = [tick for tick in ticks if ends[0] <= tick <= ends[1]]
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_ticks([], minor=True)


def figure(lines: list[dict[str, Any]], wrong: list[dict[str, Any]], order: dict[str, Estimate], file: Path) -> None:
    with_fid = "fid" in lines[0]
    best = "fid" if with_fid else "clip"
    middle = sorted({line["steps"] for line in lines})[len({line["steps"] for line in lines}) // 2]
    ranked = sorted(
        (line for line in lines if line["steps"] == middle), key=lambda line: line[best] * (1 if with_fid else -1)
    )
    names = [line["scheduler"] for line in ranked] + sorted(
        {line["scheduler"] for line in lines} - {r["scheduler"] for r in ranked}
    )
    drawn, grid = canvas(2, 3, size=(14.5, 10), width_ratios=(1, 1, 1))
    if with_fid:
        dots(grid[0][0], lines, "fid", names)
        grid[0][0].set_xscale("log")
        plain(grid[0][0].xaxis, grid[0][0].get_xlim(), (5, 10, 20, 50, 100, 200))
        tidy(grid[0][0], f"FID, {lines[0]['images']} images (sorted at {middle} steps)", "FID (lower is better)", "")
        grid[0][0].legend(fontsize=8)
    else:
        grid[0][0].remove()
    dots(grid[0][1], lines, "clip", names)
    tidy(grid[0][1], "CLIP score, the same images", "CLIP score (higher is better)", "")
    if not with_fid:
        grid[0][1].legend(fontsize=8)
    quick = grid[0][2]
    for line in lines:
        place = family(line["scheduler"])
        quick.plot(line["seconds an image"], line[best], MARKERS[place], color=COLOURS[place], ms=5)
    for place, name in enumerate(FAMILIES):
        quick.plot([], [], MARKERS[place], color=COLOURS[place], label=name)
    quick.set_xscale("log")
    plain(quick.xaxis, quick.get_xlim(), (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10))
    if with_fid:
        quick.set_yscale("log")
        plain(quick.yaxis, quick.get_ylim(), (5, 7, 10, 20, 50, 100, 200))
    quality = said_better("FID", -1) if with_fid else said_better("CLIP score", 1)
    tidy(quick, "Quality by time, 5, 10 and 20 steps", said_better("seconds an image", -1), quality)
    quick.legend(fontsize=7.5, loc="upper right" if with_fid else "lower right")
    kinds = list(dict.fromkeys(line["sweep"] for line in wrong))
    for axes, kind in zip(grid[1][:2], kinds, strict=False):
        tidy(axes, f"Solver error {kind}", "model evaluations an image", "RMS difference of the final latents")
        mine = [line for line in wrong if line["sweep"] == kind]
        for name in dict.fromkeys(line["scheduler"] for line in mine):
            place = family(name)
            members = list(FAMILIES.values())[place] if place < len(FAMILIES) else (name,)
            style = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))[members.index(name) % 5]
            one = [line for line in mine if line["scheduler"] == name]
            y = np.array([line["error"] for line in one])
            ends = np.array([[line[f"error {end}"] for line in one] for end in ("low", "high")])
            axes.errorbar(
                [line["NFE"] for line in one], y, yerr=np.abs(ends - y), color=COLOURS[place], ls=style, lw=1.3, elinewidth=0.5,
                marker=MARKERS[place], ms=4, label=name,
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_ylim(
            min(line["error"] for line in mine) / 1.6,
            max(line["error"] for line in mine) * (8 if axes is grid[1][0] else 1.6),
        )
        nfe = [line["NFE"] for line in mine]
        step_ticks(axes, [tick for tick in (5, 10, 20, 40, 80, 160, 320) if min(nfe) <= tick <= max(nfe)])
        if axes is grid[1][0]:
            axes.legend(fontsize=7, ncols=3, loc="upper center")
    for axes in grid[1][len(kinds) : 2]:
        axes.remove()
    last = grid[1][2]
    if order:
        ranks = sorted(order, key=lambda name: -order[name].value)
        x = np.array([order[name].value for name in ranks])
        ends = np.array([[order[name].low for name in ranks], [order[name].high for name in ranks]])
        for i, name in enumerate(ranks):
            place = family(name)
            last.errorbar(
                x[i], i, xerr=np.abs(ends[:, i : i + 1] - x[i]), color=COLOURS[place], marker=MARKERS[place], capsize=2
            )
        last.set_yticks(range(len(ranks)), ranks, fontsize=8)
        last.invert_yaxis()
        for whole in (1, 2):
            last.axvline(whole, color="0.5", lw=0.8, ls="--")
        tidy(last, f"Order: error ~ steps^-order, {FITTED_FROM} steps and more", "order, mean over images", "")
    else:
        last.remove()
    save(drawn, file)
