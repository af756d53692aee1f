"""What distribution guidance samples from, where the answer is known: Gaussians by condition.

    python experiments/guidance/oracle.py [--out DIR]

writes oracle.md and oracle.png. The formulae are derived in research/testing/gaussian_conditional.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import CFG, CFGPlusPlus, Guidance, Interval
from research.testing.gaussian_conditional import (
    ConditionalGaussianModel,
    ConditionalGaussianTask,
    Gaussian,
    guided_end,
    tilted,
)

COND, UNCOND = Gaussian(1.0, 0.5), Gaussian(0.0, 1.0)
MODEL = ConditionalGaussianModel({"cond": COND, "uncond": UNCOND}, shape=(1, 96, 96))
SEEDS = range(2)  # of 9216 independent numbers each: the spread is known to 0.5 %
SCALES = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0)
STEPS = 200
WINDOWS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0), (0.2, 0.8), (0.0, 1.0))
WINDOW_SCALE = 4.0

ODE = {
    "ddim": {"timestep_spacing": "linspace"},
    "euler": {},
    "heun": {},
    "dpmpp_2m": {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
}
SDE: dict[str, dict[str, Any]] = {"ddim eta=1": {"eta": 1.0}, "euler_a": {}}


def sampled(guidance: Guidance, name: str, options: dict[str, Any], steps: int = STEPS) -> tuple[float, float, Any]:
    """Mean and spread of what the loop draws, and the timeline it walked."""
    task = ConditionalGaussianTask()
    LoopSampler(MODEL, name.split()[0], options, guidance=guidance).sample(task, seeds=SEEDS, steps=steps)
    ends = torch.cat(task.ends) / task.end_level[0]
    return float(ends.mean()), float(ends.std()), task


def rows() -> Iterator[dict[str, Any]]:
    """For each scale the exact means and spreads, and those of the samplers."""
    for scale in SCALES:
        row: dict[str, Any] = {"scale": scale}
        for name, options in {**ODE, **SDE}.items():
            *row[name], task = sampled(CFG(scale), name, options)
        start = task.timeline_walked[0].sigma
        for name, stochastic in (("ode", False), ("sde", True)):
            end = guided_end(COND, UNCOND, scale, start, stochastic)
            row[name] = float(end.mean), float(end.std)
        try:
            said = tilted(COND, UNCOND, scale)
            row["tilted"] = float(said.mean), float(said.std)
        except ConfigError:
            row["tilted"] = None
        yield row


def windows() -> Iterator[dict[str, Any]]:
    """Guidance on a part of the steps only: exact, and drawn."""
    for window in WINDOWS:
        guidance = Interval(CFG(WINDOW_SCALE), steps=window)
        mean, std, task = sampled(guidance, "ddim", ODE["ddim"])
        sigmas = {}
        for stage in task.timeline_walked:
            sigmas.setdefault(stage.step, stage.sigma)
        levels = [sigmas.get(round(part * STEPS), task.end_level[1] / task.end_level[0]) for part in window]
        start, end = task.timeline_walked[0].sigma, task.end_level[1] / task.end_level[0]
        pieces = [(levels[0], 1.0), (levels[1], WINDOW_SCALE), (end, 1.0)]
        exact = guided_end(COND, UNCOND, pieces, start, end=end)
        yield {"window": window, "exact": (float(exact.mean), float(exact.std)), "ddim": (mean, std)}


def plus_plus() -> Iterator[dict[str, Any]]:
    """CFG++ by step count, with the scale of CFG that its steps amount to half way."""
    for steps in (10, 25, 50, 100, 200):
        row: dict[str, Any] = {"steps": steps}
        for scale in (0.2, 0.6):
            mean, std, task = sampled(CFGPlusPlus(scale), "ddim", {}, steps)
            stage = task.timeline_walked[steps // 2]
            row[str(scale)] = mean, std, scale * stage.sigma / (stage.sigma - stage.sigma_next)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    by_scale, by_window, by_steps = list(rows()), list(windows()), list(plus_plus())
    (out / "oracle.md").write_text(tables(by_scale, by_window, by_steps), encoding="utf-8")
    figure(by_scale, by_window, out / "oracle.png")
    print(f"{time.perf_counter() - start:.0f} s: {out / 'oracle.md'}, {out / 'oracle.png'}")


def tables(by_scale: list[dict[str, Any]], by_window: list[dict[str, Any]], by_steps: list[dict[str, Any]]) -> str:
    names = ["tilted", "ode", *ODE, "sde", *SDE]
    lines = [
        "# What guidance samples from",
        "",
        f"Written by `python experiments/guidance/oracle.py`. Data: conditional N({COND.mean:g}, {COND.std:g}^2), unconditional "
        f"N({UNCOND.mean:g}, {UNCOND.std:g}^2). Cells are mean / spread; samplers take {STEPS} steps and draw "
        f"{len(SEEDS) * 96 * 96} numbers.",
        "",
        "## CFG by scale",
        "",
        "*tilted* is the density p(x|c)^scale p(x)^(1-scale), *ode* and *sde* what CFG samples from exactly; the samplers of",
        "each stand right of it.",
        "",
        "| scale | " + " | ".join(f"*{n}*" if n in ("tilted", "ode", "sde") else n for n in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    lines += [f"| {row['scale']:g} | " + " | ".join(shown(row[name]) for name in names) + " |" for row in by_scale]
    lines += [
        "",
        f"## CFG at scale {WINDOW_SCALE:g} on a part of the steps, and scale 1 elsewhere",
        "",
        "| steps | exact | ddim |",
        "|---|---|---|",
    ]
    lines += [
        f"| {lo:g} to {hi:g} | {shown(row['exact'])} | {shown(row['ddim'])} |"
        for row in by_window
        for lo, hi in [row["window"]]
    ]
    lines += [
        "",
        "## CFG++ by step count",
        "",
        "*like CFG at* is scale x sigma / (sigma - sigma') of the middle step, the scale at which CFG takes the same step.",
        "",
        "| steps | 0.2: mean / spread | like CFG at | 0.6: mean / spread | like CFG at |",
        "|---" * 5 + "|",
    ]
    for row in by_steps:
        cells = [cell for scale in ("0.2", "0.6") for cell in (shown(row[scale]), f"{row[scale][2]:.3g}")]
        lines.append(f"| {row['steps']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(pair: Any) -> str:
    return "none" if pair is None else f"{pair[0]:.3g} / {pair[1]:.3g}"


def figure(by_scale: list[dict[str, Any]], by_window: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained")
    scales = np.linspace(0, 7, 57)
    start = 14.6
    curves = {
        "CFG, ODE: exact": [guided_end(COND, UNCOND, float(s), start) for s in scales],
        "CFG, SDE: exact": [guided_end(COND, UNCOND, float(s), start, True) for s in scales],
        "p(x|c)$^s$ p(x)$^{1-s}$": [tilted(COND, UNCOND, float(s)) for s in scales],
    }
    for axes, part, title in ((left, 0, "mean"), (middle, 1, "spread")):
        for (label, ends), style in zip(curves.items(), ("C0-", "C1-", "k--"), strict=True):
            values = [float((end.mean, end.std)[part]) for end in ends]
            axes.plot(scales, values, style, lw=1.4, label=label)
        for names, colour in ((ODE, "C0"), (SDE, "C1")):
            for name, marker in zip(names, "os^D", strict=False):
                points = [row[name][part] for row in by_scale]
                axes.plot(
                    SCALES, points, marker, color=colour, mfc="none", ms=5 + 1.5 * "os^D".index(marker), label=name
                )
        axes.set(xlabel="guidance scale", title=f"{title} of the samples")
        axes.grid(alpha=0.25)
    middle.set_yscale("log")
    left.legend(fontsize=7.5)
    for row in by_window[:5]:
        lo, hi = row["window"]
        right.plot([lo, hi], [row["exact"][1]] * 2, "C0-", lw=2.5)
        right.plot((lo + hi) / 2, row["ddim"][1], "o", color="C0", mfc="none")
        right.plot([lo, hi], [row["exact"][0]] * 2, "C2-", lw=2.5)
        right.plot((lo + hi) / 2, row["ddim"][0], "o", color="C2", mfc="none")
    right.axhline(COND.std, color="C0", lw=0.8, ls=":")
    right.axhline(COND.mean, color="C2", lw=0.8, ls=":")
    right.set(xlabel="part of the steps that is guided", title=f"scale {WINDOW_SCALE:g} on a fifth of the steps")
    right.text(0.02, COND.mean + 0.02, "mean at scale 1", color="C2", fontsize=8)
    right.text(0.02, COND.std + 0.02, "spread at scale 1", color="C0", fontsize=8)
    right.set_ylim(bottom=0)
    right.grid(alpha=0.25)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
