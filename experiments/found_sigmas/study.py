"""Levels that are found against the best fixed grid, at few evaluations, on prompts and seeds that were not searched with.

    python -m experiments.found_sigmas.study [--out experiments/found_sigmas] [--schedulers dpmpp_2m unipc] [--steps 4 6 8]

A grid is found with `emoji_16` and judged with `heldout_16`; the fixed grid that it is compared with is the best on the former.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from experiments.common import canvas, curve, markdown, run, save, step_ticks, tidy, write_csv, write_page
from research.package import config_dir
from research.sigma_search import gits
from research.sigma_search.bench import Bench
from research.sigma_search.cli import compose
from research.sigma_search.find import FIXED, by_descent
from research.sigmas import Given
from research.statistics import Estimate, mean

IMAGES, FINE, EVALUATIONS = 16, 40, 60


def prompts_of(name: str) -> list[str]:
    """The sentences of a prompt set."""
    content = yaml.safe_load(Path(config_dir(), "prompt_set", f"{name}.yaml").read_text(encoding="utf-8"))
    return list(content["prompts"])


def bench(scheduler: str, steps: int, prompt_set: str, ends: dict[Any, Tensor]) -> Bench:
    """One setting with the prompts of a set."""
    words = [f"scheduler={scheduler}", f"steps={steps}", f"prompt_set={prompt_set}", "guidance.scale=3"]
    return Bench(compose(words, IMAGES), FINE, ends)


def measured(errors: Tensor, prompts: Sequence[str]) -> Estimate:
    """The mean error over prompts."""
    found = mean(errors.tolist(), prompts[: len(errors)])
    assert found is not None
    return found


def cell(scheduler: str, steps: int, shared: Mapping[str, dict[Any, Tensor]], trajectory: Any) -> dict[str, Any]:
    """Find and judge for one scheduler and number of steps: errors by grid on the judging set."""
    seeds, others = range(IMAGES), range(1000, 1000 + IMAGES)
    search = bench(scheduler, steps, "emoji_16", shared["emoji_16"])
    judge = bench(scheduler, steps, "heldout_16", shared["heldout_16"])
    known = {name: float(search.errors(seeds, grid).mean()) for name, grid in FIXED.items()}
    best = min(known, key=lambda name: known[name])
    by_gits = [level.sigma for level in gits.grid(trajectory, steps) if level.noise]
    by_search = by_descent(search, by_gits, seeds, EVALUATIONS)
    grids = {"gits": Given(sigmas=by_gits), "search": Given(sigmas=by_search), **FIXED}
    errors = {name: judge.errors(others, grid) for name, grid in grids.items()}
    return {"best fixed": best, "errors": errors, "sigmas": {"gits": by_gits, "search": by_search}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--schedulers", nargs="+", default=["dpmpp_2m", "unipc"])
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 6, 8])
    arguments = parser.parse_args()
    shared: dict[str, dict[Any, Tensor]] = {"emoji_16": {}, "heldout_16": {}}
    trajectory = bench(arguments.schedulers[0], arguments.steps[0], "emoji_16", {}).trajectory(range(IMAGES))
    prompts = prompts_of("heldout_16")
    rows, numbers, grids, curves = [], [], [], {}
    for scheduler in arguments.schedulers:
        for steps in arguments.steps:
            found = cell(scheduler, steps, shared, trajectory)
            errors, best = found["errors"], found["best fixed"]
            row: dict[str, Any] = {"scheduler": scheduler, "steps": steps, "best fixed": best}
            for name in ("gits", "search", best):
                row["error, best fixed" if name == best else f"error, {name}"] = measured(errors[name], prompts).shown(
                    3
                )
            for name in ("gits", "search"):
                row[f"{name} less best fixed"] = measured(errors[name] - errors[best], prompts).shown(3, "+")
            rows.append(row)
            for name, values in errors.items():
                curves.setdefault((scheduler, name), []).append(measured(values, prompts))
                for place, value in enumerate(values.tolist()):
                    numbers.append(
                        {
                            "scheduler": scheduler,
                            "steps": steps,
                            "levels": name,
                            "prompt": prompts[place],
                            "error": value,
                        }
                    )
            for name, sigmas in found["sigmas"].items():
                grids.append(
                    {
                        "scheduler": scheduler,
                        "steps": steps,
                        "levels": name,
                        "sigmas": " ".join(f"{s:.4g}" for s in sigmas),
                    }
                )
            print(markdown([row]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(numbers, arguments.out / "study_results.csv")
    write_page(
        arguments.out / "study.md",
        "Levels that are found",
        f"""Root mean square distance of the final latents from a converged run of {FINE} steps, over the spread of that; mean
        of {IMAGES} held-out prompts with other seeds, and 95 % intervals over prompts (paired in differences; below 0 the found
        grid is better). The best fixed grid is the one with the least error on the prompts that were searched with. Descent had
        {EVALUATIONS} runs.""",
        markdown(rows),
        "## Found levels",
        markdown(grids),
    )
    draw(curves, arguments.schedulers, arguments.steps, arguments.out / "study.png")


def draw(
    curves: Mapping[tuple[str, str], list[Estimate]], schedulers: Sequence[str], steps: Sequence[int], file: Path
) -> None:
    """Error by steps, a panel a scheduler."""
    figure, axes = canvas(1, len(schedulers), size=(5.2 * len(schedulers), 4.2), sharey=True, squeeze=False)
    for panel, scheduler in zip(axes[0], schedulers, strict=True):
        for place, name in enumerate(["search", "gits", *FIXED]):
            shifted = [step * (1 + 0.008 * (place - 5)) for step in steps]
            curve(panel, shifted, curves[scheduler, name], place, name)
        panel.set_yscale("log")
        tidy(panel, scheduler, "steps", "error (log axis; lower is better)")
    for panel in axes[0]:
        step_ticks(panel, steps)
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    save(figure, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main)
