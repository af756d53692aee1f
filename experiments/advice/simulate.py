"""How often is the report's advice wrong? Sweeps whose truth is known are drawn, and the report is asked of each.

python -m experiments.advice.simulate [--cases 300] [--out experiments/advice]

A sweep has six settings of 5 to 50 evaluations and is scored by CLIP score, with a margin of 1 point. Advice is wrong if the
setting advised is worse than the best by more than the margin, in truth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.common import COLOURS, MARKERS, canvas, markdown, run, save, tidy, write_csv, write_page
from research.jobs.record import ImageRecord, JobResult
from research.results.axes import Axis
from research.results.pairs import Pairs, as_good
from research.results.read import Row, Sweep
from research.results.scales import Margin

Array = NDArray[np.float64]
STEPS = (5, 10, 15, 20, 30, 50)
MARGIN = 1.0
COUNTS = (3, 5, 8, 16, 30, 64, 128, 500)
GAPS = (0.0, 1.01, 3.0, 10.0)  # just more than the margin, in place of 1
CASES = 300
HARD = 12.0  # what makes a prompt hard, the same for all settings: cancels in paired differences


@dataclass(frozen=True)
class Kind:
    """How scores are distributed.

    Attributes:
        draw: noise [settings, images] of mean 0, and the loss of each image [settings, images], given that of its setting.
        each: images a prompt.
    """

    name: str
    draw: Callable[[np.random.Generator, Array, int], Array]
    each: int = 1


def _normal(rng: np.random.Generator, loss: Array, n: int) -> Array:
    return rng.normal(0, 4, (len(loss), n)) - loss[:, None]


def _skewed(rng: np.random.Generator, loss: Array, n: int) -> Array:
    return 4 - rng.exponential(4, (len(loss), n)) - loss[:, None]


def _failing(rng: np.random.Generator, loss: Array, n: int) -> Array:
    """One image in ten fails, and the others are as good as the best."""
    return rng.normal(0, 1, (len(loss), n)) - 10 * loss[:, None] * (rng.random((len(loss), n)) < 0.1)


def _alike(rng: np.random.Generator, loss: Array, n: int) -> Array:
    """Four images a prompt, of whose differences a third of the variance is the prompt's."""
    of_prompt = np.repeat(rng.normal(0, 4 * np.sqrt(1 / 3), (len(loss), n // 4)), 4, axis=1)
    return of_prompt + rng.normal(0, 4 * np.sqrt(2 / 3), (len(loss), n)) - loss[:, None]


KINDS = (
    Kind("normal", _normal),
    Kind("skewed", _skewed),
    Kind("one image in ten fails", _failing),
    Kind("four images a prompt", _alike, 4),
)
# what each setting loses against the best, in gaps: the dearest alone is the best, or each is better than the one before
TRUTHS = {"the dearest alone is better": (1, 1, 1, 1, 1, 0), "each better than the one before": (5, 4, 3, 2, 1, 0)}


def sweep(scores: Array, each: int) -> Sweep:
    """A sweep as the report reads it, of scores [settings, images]."""
    rows = []
    images = [ImageRecord(file=f"{k}.png", seed=k, prompt=f"prompt {k // each}") for k in range(scores.shape[1])]
    for steps, own in zip(STEPS, scores.tolist(), strict=True):
        result = JobResult(
            job_id=f"{steps:012d}", status="done", nfe=steps, n_images=len(own), images=images,
            metrics={"clip_score": float(np.mean(own))}, metrics_info={"clip_score": {"per_image": own}},
        )  # fmt: skip
        rows.append(Row(Path("none"), result, {"steps": steps}))
    return Sweep(Path("none"), rows, [Axis("steps", STEPS)])


def advised(drawn: Sweep) -> int | None:
    """The place of the setting that the report advises, by the report's rule and without its sentences."""
    pairs = Pairs(drawn.rows, "clip_score", 1, [row.metrics["clip_score"] for row in drawn.rows])
    good = as_good([pairs.p_worse(drawn.rows, Margin(MARGIN))])
    return good.index(True) if True in good else None  # the cheapest comes first


def shares(
    kind: Kind, truth: Sequence[int], gap: float, prompts: int, cases: int, seed: int = 0
) -> tuple[float, float]:
    """The share of sweeps in which advice is given, and in which it is wrong.

    Args:
        truth: what each setting loses, in gaps.
        gap: in points.
        prompts: how many, with `Kind.each` images each.
        cases: sweeps that are drawn.
    """
    rng = np.random.default_rng([seed, prompts, round(100 * gap), *truth, *kind.name.encode()])
    loss = gap * np.asarray(truth, dtype=np.float64)
    given = wrong = 0
    for _ in range(cases):
        hard = np.repeat(rng.normal(0, HARD, prompts), kind.each)
        place = advised(sweep(60 + hard + kind.draw(rng, loss, prompts * kind.each), kind.each))
        if place is not None:
            given += 1
            wrong += bool(loss[place] > MARGIN)
    return given / cases, wrong / cases


def cells(cases: int, counts: Sequence[int] = COUNTS, kinds: Sequence[Kind] = KINDS) -> list[dict[str, object]]:
    """A line for each kind, truth, gap and count."""
    lines: list[dict[str, object]] = []
    for kind in kinds:
        for name, truth in TRUTHS.items():
            for gap in GAPS:
                if gap == 0 and truth[0] > 1:
                    continue  # equal settings are equal in either truth
                for n in counts:
                    given, wrong = shares(kind, truth, gap, n, cases)
                    lines.append(
                        {"scores": kind.name, "truth": name if gap else "all equal", "gap": gap, "units": n,
                         "sweeps": cases, "advised": given, "wrong": wrong}
                    )  # fmt: skip
    return lines


def figure(lines: Sequence[dict[str, object]], file: Path) -> None:
    """Wrong advice above, and how often advice is given below; a column for each kind of scores."""
    kinds = list(dict.fromkeys(str(line["scores"]) for line in lines))
    drawn, axes = canvas(2, len(kinds), size=(3.1 * len(kinds), 5.6), sharex=True, sharey="row", squeeze=False)
    cases = list(dict.fromkeys((str(line["truth"]), float(str(line["gap"]))) for line in lines))
    for column, kind in enumerate(kinds):
        for place, (truth, gap) in enumerate(cases):
            mine = [line for line in lines if (line["scores"], line["truth"], line["gap"]) == (kind, truth, gap)]
            label = "all equal" if not gap else f"{gap:g} apart, {'one' if truth.startswith('the') else 'a ladder'}"
            look = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "ms": 4, "lw": 1.2}
            for row, name in enumerate(("wrong", "advised")):
                y = [100 * float(str(line[name])) for line in mine]
                axes[row, column].plot([line["units"] for line in mine], y, label=label, **look)
        tidy(axes[0, column], kind, "", "wrong advice, % of sweeps" if not column else "")
        unit = "prompts" if kind.startswith("four") else "images"
        tidy(axes[1, column], "", f"{unit} a setting", "advice given, % of sweeps" if not column else "")
        axes[0, column].axhline(5, color="black", lw=0.8, ls=":")
        axes[0, column].set_ylim(-0.2, 8)
        axes[1, column].set_xscale("log")
        axes[1, column].set_xticks(COUNTS, [str(n) for n in COUNTS], fontsize=7)
        axes[1, column].minorticks_off()
    drawn.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    save(drawn, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=CASES, help="sweeps a cell")
    parser.add_argument("--out", type=Path, default=Path("experiments/advice"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    lines = cells(args.cases)
    write_csv(lines, args.out / "study_results.csv")
    figure(lines, args.out / "study.png")
    shown = []
    for name, truth, gap in dict.fromkeys((line["scores"], line["truth"], line["gap"]) for line in lines):
        mine = [line for line in lines if (line["scores"], line["truth"], line["gap"]) == (name, truth, gap)]
        percent = {
            str(c["units"]): f"{100 * float(str(c['wrong'])):.1f} / {100 * float(str(c['advised'])):.0f}" for c in mine
        }
        shown.append({"scores": name, "truth": truth, "gap": f"{float(str(gap)):g}", **percent})
    worst = max(lines, key=lambda line: float(str(line["wrong"])))
    most, where = 100 * float(str(worst["wrong"])), ", ".join(str(worst[key]) for key in ("scores", "truth", "units"))
    about = f"""
    Written by `python -m experiments.advice.simulate --cases {args.cases}`. Of {args.cases} sweeps of six settings a cell, the
    share in which the advice is wrong (the setting advised is worse than the best by more than 1 point, in truth) / in which any
    setting is advised, in percent, by the number of images a setting (of prompts, with four images each). The most is
    {most:.1f} % ({where} units, {worst["gap"]} apart).
    """
    write_page(args.out / "study.md", "Advice on sweeps whose truth is known", about, markdown(shown))


if __name__ == "__main__":
    run(main)
