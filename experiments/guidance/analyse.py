"""Read the study's jobs and write results.csv, study.md, curves.png and contact_sheet.png.

    python experiments/guidance/analyse.py outputs/guidance_study [--out experiments/guidance] [--name study]

Groups of seeds are pooled: CLIP score and FID are those of all their pictures. Intervals are 95 % ones over seeds, see scores.py;
the prompts and the pictures of reference stay the same.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods import METHODS, Method, method_of
from scores import Scored, score
from sheet import write_sheet

from research.drawing import COLOURS, MARKERS
from research.results.read import Row, read_sweep

FAMILIES = list(dict.fromkeys(method.family for method in METHODS))
REFERENCE = "cfg"
BEYOND = 20.0, 80.0  # FIDs above and CLIP scores below are in the table and not in the figure


@dataclass(frozen=True)
class Job:
    """One job of the study."""

    method: Method
    scale: float
    steps: int
    seed: int
    nfe: int
    clip_score: float
    fid: float
    seconds: float  # of denoising, an image
    row: Row


@dataclass(frozen=True)
class Point:
    """A method at one scale and number of steps, over all groups of seeds."""

    method: Method
    scale: float
    steps: int
    nfe: float
    groups: int
    scored: Scored
    seconds: float  # median

    @property
    def clip_score(self) -> tuple[float, float]:
        """The score, and half its interval."""
        return self.scored.clip_score, self.scored.clip_interval

    @property
    def fid(self) -> tuple[float, float]:
        return self.scored.fid, self.scored.fid_interval


def read_jobs(folder: Path) -> list[Job]:
    """The study's finished jobs; others in the folder are left out."""
    jobs = []
    for row in read_sweep(folder).done:
        config = row.result.config
        scale = float(config["guidance"].get("scale", 1.0))
        method = method_of(list(row.result.overrides), scale)
        if method is not None:
            seconds = row.timings["denoise"] / row.n_images
            metrics = row.metrics
            jobs.append(
                Job(
                    method,
                    scale,
                    int(config["steps"]),
                    int(config["seed"]),
                    int(row.result.nfe),
                    metrics["clip_score"],
                    metrics["fid"],
                    seconds,
                    row,
                )
            )
    place = {method.name: i for i, method in enumerate(METHODS)}
    return sorted(jobs, key=lambda job: (place[job.method.name], job.steps, job.scale, job.seed))


def points(jobs: Iterable[Job]) -> list[Point]:
    grouped: dict[tuple[str, float, int], list[Job]] = defaultdict(list)
    for job in jobs:
        grouped[job.method.name, job.scale, job.steps].append(job)
    return [
        Point(
            found[0].method,
            scale,
            steps,
            statistics.fmean(job.nfe for job in found),
            len(found),
            score([job.row for job in found]),
            statistics.median(job.seconds for job in found),
        )
        for (_, scale, steps), found in grouped.items()
    ]


def equal_steps(found: list[Point], steps: int) -> list[Point]:
    return [point for point in found if point.steps == steps]


def equal_nfe(found: list[Point], budget: int) -> list[Point]:
    return [point for point in found if point.steps == point.method.steps(budget)]


def write_csv(jobs: list[Job], file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["method", "scale", "steps", "seed", "nfe", "clip_score", "fid", "seconds_per_image", "job_id"])
        for job in jobs:
            numbers = [f"{value:.5g}" for value in (job.clip_score, job.fid, job.seconds)]
            writer.writerow([job.method.name, f"{job.scale:g}", job.steps, job.seed, job.nfe, *numbers, job.row.job_id])


def tables(views: dict[str, list[Point]], device: str) -> str:
    """For each view a line a method, at the scale with the lowest FID."""
    lines = [
        "# Guidance methods on the embedded model",
        "",
        f"Written by `python experiments/guidance/analyse.py`; {device}. A line is a method at the scale whose FID is",
        "lowest among those swept, a choice that flatters each; +/- is half the 95 % interval over seeds. *Against cfg* is the",
        "difference of the lowest FIDs, with an interval of its own, since all have the same seeds. *At the highest CLIP",
        "score* is the scale with that, and its FID.",
    ]
    most = max(point.groups for found in views.values() for point in found)
    for title, found in views.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| method | scale | FID | against cfg | CLIP score | steps | NFE | s / image | at the highest CLIP score |",
            "|---" * 9 + "|",
        ]
        mine = {m.name: [point for point in found if point.method is m] for m in METHODS}
        best = {name: min(some, key=lambda point: point.fid[0]) for name, some in mine.items() if some}
        for name, point in best.items():
            top = max(mine[name], key=lambda point: point.clip_score[0])
            cells = [
                name + (f" ({point.groups} of {most} groups)" if point.groups < most else ""),
                f"{point.scale:g}",
                shown(point.fid),
                against(point, best[REFERENCE]),
                shown(point.clip_score),
                str(point.steps),
                f"{point.nfe:g}",
                f"{point.seconds:.3f}",
                f"scale {top.scale:g}: CLIP score {shown(top.clip_score)}, FID {shown(top.fid)}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def against(point: Point, reference: Point) -> str:
    """The difference of two FIDs; of different numbers of pictures there is none, as FID falls with their number."""
    if point.method.name == REFERENCE or point.groups != reference.groups:
        return ""
    return shown(point.scored.fid_against(reference.scored), "+.1f")


def shown(value: tuple[float, float], form: str = ".1f") -> str:
    """A value and half its interval; one group of seeds has none."""
    return f"{value[0]:{form}}" + ("" if math.isnan(value[1]) else f" +/- {value[1]:.1f}")


def figure(views: dict[str, list[Point]], file: Path) -> None:
    """CLIP score against FID: a row a view, a column a family, a line a method along its scales."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families = [f for f in FAMILIES if any(p.method.family == f for found in views.values() for p in found)]
    figure, grid = plt.subplots(
        len(views),
        len(families),
        figsize=(4.4 * len(families), 4.2 * len(views)),
        layout="constrained",
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    for (title, found), line in zip(views.items(), grid, strict=True):
        for family, axes in zip(families, line, strict=True):
            for name, colour, marker in (("none", "k", "*"), (REFERENCE, "0.55", "o")):
                curve(axes, [point for point in found if point.method.name == name], colour, marker, name)
            others = [m for m in METHODS if m.family == family and m.name not in ("none", REFERENCE)]
            for place, method in enumerate(others):
                mine = [point for point in found if point.method is method]
                curve(axes, mine, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], method.name)
            axes.set(xscale="log", xlim=(7, BEYOND[0]), ylim=(BEYOND[1], 98))
            axes.set_xticks([7, 8, 10, 12, 15, 20], ["7", "8", "10", "12", "15", "20"])
            axes.minorticks_off()
            axes.set_title(f"{title}: {family}", fontsize=10)
            axes.grid(alpha=0.25, which="both")
            axes.legend(fontsize=7.5, loc="lower left")
    for axes in grid[-1]:
        axes.set_xlabel("FID (lower is better), log axis")
    for line in grid:
        line[0].set_ylabel("CLIP score (higher is better)")
    figure.savefig(file, dpi=110)


def curve(axes: Any, mine: list[Point], colour: str, marker: str, label: str) -> None:
    if not mine:
        return
    mine = sorted(mine, key=lambda point: point.scale)
    x, y = [point.fid[0] for point in mine], [point.clip_score[0] for point in mine]
    half = [point.fid[1] for point in mine], [point.clip_score[1] for point in mine]
    axes.errorbar(
        x, y, xerr=half[0], yerr=half[1], color=colour, marker=marker, ms=5, lw=1.2, elinewidth=0.5, label=label
    )
    for point in (mine[0], mine[-1]) if len(mine) > 1 else ():
        axes.annotate(
            f"{point.scale:g}",
            (point.fid[0], point.clip_score[0]),
            fontsize=6.5,
            color=colour,
            xytext=(3, 3),
            textcoords="offset points",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the sweep's folder, outputs/guidance_study")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--name", default="study", help="of the table; the other files' names begin with it")
    parser.add_argument("--steps", type=int, help="for equal steps; by default CFG's most")
    args = parser.parse_args()
    jobs = read_jobs(args.folder)
    found = points(jobs)
    reference = sorted({point.steps for point in found if point.method.name == REFERENCE})
    steps = args.steps or reference[-1]
    views = {f"about {2 * n} evaluations": equal_nfe(found, 2 * n) for n in reversed(reference)}
    if any(point.method.cost > 2 and point.steps == steps for point in found):  # the short form has none
        views = {f"{steps} steps": equal_steps(found, steps), **views}
    args.out.mkdir(parents=True, exist_ok=True)
    name = args.name
    write_csv(jobs, args.out / f"{name}_results.csv")
    first = jobs[0].row.result
    device = f"{first.device}, {first.n_images} pictures a job, {max(point.groups for point in found)} groups of seeds"
    (args.out / f"{name}.md").write_text(tables(views, device), encoding="utf-8")
    figure(views, args.out / f"{name}_curves.png")
    shown_jobs = [job for job in jobs if job.steps == job.method.steps(2 * steps)]
    write_sheet(shown_jobs, args.out / f"{name}_sheet.png")
    print(f"{len(jobs)} jobs, {len(found)} points: {args.out / name}.md, _results.csv, _curves.png, _sheet.png")


if __name__ == "__main__":
    main()
