"""Seconds of denoising an image for every scheduler of the race, in rounds, so that other work on the machine hits all alike.

    python -m experiments.solver_race.seconds [--model emoji] [--out experiments/solver_race]

Writes study_seconds.csv, which analyse.py takes instead of the sweep's own timings. On a CPU it is the time of this process on
one thread, which waiting for other processes does not count into; on a GPU it is the wall clock. The lower of the rounds is kept.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from experiments.common import write_csv
from experiments.solver_race.figure import FAMILIES
from research import LoopSampler, load_model
from research.guidance import CFG
from research.tasks import TextToImage


def measured(sampler: LoopSampler, steps: int, images: int, clock: Callable[[], float]) -> float:
    """Seconds an image."""
    task = TextToImage("pizza on a blue background")
    began = clock()
    sampler.sample(task, seeds=range(images), steps=steps, progress=False)
    return (clock() - began) / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--steps", default="5,10,20")
    parser.add_argument("--schedulers", default=",".join(name for names in FAMILIES.values() for name in names))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(args.model)
    clock = time.process_time if str(model.device) == "cpu" else time.perf_counter
    steps, names = [int(step) for step in args.steps.split(",")], args.schedulers.split(",")
    samplers = {name: LoopSampler(model, name, guidance=CFG(3.0)) for name in names}
    measured(samplers[names[0]], steps[0], args.images, clock)  # what is loaded and compiled on first use
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):
        for name in names:
            for step in steps:
                found.setdefault((name, step), []).append(measured(samplers[name], step, args.images, clock))
    clocked = "process" if clock is time.process_time else "wall"
    lines = [
        {"scheduler": name, "steps": step, "seconds an image": min(times), "clock": clocked, "rounds": len(times)}
        for (name, step), times in found.items()
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(lines, args.out / "study_seconds.csv")
    print(f"{len(lines)} timings: {args.out / 'study_seconds.csv'}")


if __name__ == "__main__":
    main()
