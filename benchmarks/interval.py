"""What an interval saves: classifier-free guidance on a fraction f of the steps against all of them, paired in one run.

    python benchmarks/interval.py [--model emoji] [--fractions 0 0.2 0.4 0.6 0.8] [--rounds 5] [--steps 20] [--images 32]

Guided steps evaluate two branches and the others one, so with f of the steps guided the ideal speed-up is 2 / (1 + f). A round
times the denoising loop of full guidance and of each fraction, in turns; the median of the rounds' ratios is told. One thread.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from research import LoopSampler, load_model
from research.guidance import CFG, Guidance, Interval
from research.tasks import TextToImage

ACCEPTED = 0.1  # of the ideal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--scheduler", default="ddim")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model)

    def seconds(guidance: Guidance) -> tuple[float, int]:
        sampler = LoopSampler(model, arguments.scheduler, guidance=guidance)
        result = sampler.sample(
            TextToImage("a red fox"), seeds=list(range(arguments.images)), steps=arguments.steps, progress=False
        )
        return result.timings["denoise"], result.nfe

    def limited(fraction: float) -> Guidance:
        # the middle of the steps; what is left of the fraction goes to the end
        start = (1 - fraction) / 2
        return Interval(CFG(3.0), steps=(start, start + fraction)) if fraction else CFG(1.0)

    seconds(CFG(3.0))  # first calls pay for what later ones find ready
    ratios: dict[float, list[float]] = {fraction: [] for fraction in arguments.fractions}
    guided: dict[float, float] = {}
    for turn in range(arguments.rounds):
        order = arguments.fractions if turn % 2 else arguments.fractions[::-1]
        for fraction in order:
            # each fraction beside a full run of its own: the machine's speed drifts
            pair = [CFG(3.0), limited(fraction)]
            found = [seconds(guidance) for guidance in (pair if turn % 2 else pair[::-1])]
            (full, evaluations), (part, fewer) = found if turn % 2 else found[::-1]
            ratios[fraction].append(full / part)
            guided[fraction] = 2 * fewer / evaluations - 1
    print(f"{model.name}, {arguments.scheduler}, {arguments.steps} steps, {arguments.images} images\n")
    print("| steps guided | ideal speed-up | measured | of the ideal |\n|---|---|---|---|")
    worst = 1.0
    for fraction in arguments.fractions:
        ideal, measured = 2 / (1 + guided[fraction]), statistics.median(ratios[fraction])
        worst = min(worst, measured / ideal)
        print(f"| {guided[fraction]:.0%} | {ideal:.2f} | {measured:.2f} | {measured / ideal:.0%} |")
    return 0 if worst >= 1 - ACCEPTED else 1


if __name__ == "__main__":
    raise SystemExit(main())
