"""Schedulers against exact answers: what upstream's faults cost, and what is left where they are put right.

    python experiments/parity/oracle.py [--out DIR]

writes oracle.md and oracle.png. Gaussian data have a best denoiser in closed form (research/testing/gaussian.py), so that
the right end of every trajectory is known.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from research.errors import UserError
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import measure

SEEDS = range(2)
MEAN = torch.tensor([0.5, -0.5, 1.0, -1.0]).reshape(4, 1, 1)
STD = torch.tensor([0.25, 0.5, 1.0, 2.0]).reshape(4, 1, 1)
SHAPE = (4, 16, 16)
FLOOR = 1e-8  # rounding; smaller errors are drawn there

LINSPACE, TRAILING = {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
TO_THE_END = {**KARRAS, "final_sigmas_type": "sigma_min"}
RUNGE_KUTTA = {"skip_prk_steps": False}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"}


@dataclass(frozen=True)
class Case:
    fault: str
    scheduler: str
    steps: int
    strength: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)  # of the model
    data: str = "spread"  # or "point"
    what: str = "path"  # or "std"


def cases() -> list[Case]:
    found: list[Case] = []
    own = "DDIM: own timesteps ignored"
    for data in ("point", "spread"):
        for options in (LINSPACE, TRAILING):
            for steps in (13, 80):
                for strength in (1.0, 0.4):
                    found.append(Case(own, "ddim", steps, strength, options, data=data))
    found += [Case(own, "ddim", 20, 1.0, {**LINSPACE, "eta": eta}, data="point", what="std") for eta in (0.5, 1.0)]
    for steps in (20, 80):
        found.append(Case("PNDM: own timesteps ignored", "pndm", steps, 1.0, LINSPACE))
    for strength in (0.3, 0.5, 0.75):
        found.append(Case("PNDM: warm-up lost in a slice", "pndm", 20, strength))
        found.append(Case("PNDM: warm-up lost in a slice", "pndm", 50, strength))
    found += [Case("PNDM: warm-up lost in a slice", "pndm", 20, 0.5, RUNGE_KUTTA)]
    for steps, strength in ((50, 0.1), (50, 0.3), (20, 0.3), (20, 0.5), (20, 0.75), (40, 0.5)):
        found.append(Case("LMS: order beyond its history in a slice", "lms", steps, strength))
    rounded = "Timesteps rounded"
    for name in ("dpmpp_2m", "dpmpp_2s", "unipc"):
        found += [Case(rounded, name, steps, 1.0, TO_THE_END, data="point") for steps in (10, 25)]
    found.append(Case(rounded, "deis", 25, 1.0, KARRAS, data="point"))
    found.append(Case(rounded, "dpmpp_2m", 64, 1.0, TO_THE_END))
    found.append(
        Case(
            rounded,
            "dpmpp_2m",
            25,
            1.0,
            {**TO_THE_END, "use_karras_sigmas": False, "use_exponential_sigmas": True},
            data="point",
        )
    )
    cosine = "Cosine betas and Karras sigmas"
    found += [Case(cosine, name, 25, 1.0, KARRAS, COSINE) for name in ("dpmpp_2m", "unipc")]
    found.append(Case("Last step of no length", "dpmpp_2m", 20, 1.0, {**TO_THE_END, "solver_order": 3}))
    return found


def error_of(case: Case, parity: bool) -> float | str:
    """The error as a number, or why there is none."""
    spread = 0.0 if case.data == "point" else STD
    model = GaussianModel(MEAN, spread, SHAPE, scheduler_config=case.config)
    try:
        result = measure(
            model, case.scheduler, case.steps, strength=case.strength, options=case.options, parity=parity, seeds=SEEDS
        )
    except UserError as error:
        return "not finite" if "not finite" in str(error) else "fails: loses its place"
    return abs(getattr(result, case.what))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    rows = [(case, error_of(case, True), error_of(case, False)) for case in cases()]
    out.mkdir(parents=True, exist_ok=True)
    (out / "oracle.md").write_text(table(rows), encoding="utf-8")
    figure(rows, out / "oracle.png")
    print(f"{len(rows)} settings, {time.perf_counter() - start:.0f} s: {out / 'oracle.md'}, {out / 'oracle.png'}")


def table(rows: list[tuple[Case, float | str, float | str]]) -> str:
    lines = [
        "# Errors against exact answers",
        "",
        "Written by `python experiments/parity/oracle.py`. *Upstream* is `parity=True`, which is what diffusers computes;",
        "*ours* is without. Error: root mean square distance from the end of the exact trajectory, in units of the data's",
        "spread (of 1 for a point); for eta above 0 the relative error of the spread at the end.",
        "",
        "| fault | scheduler | options | data | steps | strength | upstream | ours | ratio |",
        "|---" * 9 + "|",
    ]
    for case, theirs, ours in rows:
        options = ", ".join(f"{k.removeprefix('use_')}={v}" for k, v in case.options.items())
        numbers = isinstance(theirs, float) and isinstance(ours, float)
        ratio = f"{theirs / max(ours, FLOOR):.3g}" if numbers else ""
        cells = [
            case.fault,
            case.scheduler,
            options,
            case.data,
            case.steps,
            case.strength,
            shown(theirs),
            shown(ours),
            ratio,
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def shown(error: float | str) -> str:
    return error if isinstance(error, str) else f"{error:.1e}"


def figure(rows: list[tuple[Case, float | str, float | str]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 6.2), layout="constrained")
    low, high, fails = 3e-9, 60.0, 20.0
    axes.fill_between([low, high], [low, high], [low, low], color="tab:green", alpha=0.08, lw=0)
    axes.plot([low, high], [low, high], color="0.5", lw=1)
    axes.text(3e-4, 4e-4, "equal", rotation=35, rotation_mode="anchor", color="0.4", fontsize=9)
    axes.text(2e-4, 5e-6, "ours is nearer\nto the exact answer", color="tab:green", fontsize=9)
    faults = list(dict.fromkeys(case.fault for case, _, _ in rows))
    for fault, marker in zip(faults, "osD^vPX*", strict=False):
        mine = [(a, b) for case, a, b in rows if case.fault == fault]
        points = [
            (fails if isinstance(a, str) else max(a, FLOOR), max(b, FLOOR)) for a, b in mine if not isinstance(b, str)
        ]
        axes.scatter(*zip(*points, strict=True), marker=marker, s=38, alpha=0.75, label=fault, zorder=3)
    axes.axvline(fails / 2, color="0.6", lw=0.8, ls=":")
    axes.text(fails * 0.75, 1.5e-8, "upstream fails", rotation=90, fontsize=8, color="0.3", va="bottom")
    axes.set(xscale="log", yscale="log", xlim=(1e-4, high), ylim=(low, high))
    axes.set_xlabel("error of diffusers (parity=True)")
    axes.set_ylabel("error of ours")
    axes.set_title("Distance from the exact answer, one mark a setting", fontsize=11)
    axes.legend(fontsize=8, loc="upper left", framealpha=0.95)
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
