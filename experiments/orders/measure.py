"""The order of every solver that claims one, measured in float64 on two models that are known exactly.

    python -m experiments.orders.measure [--out experiments/orders]

The error of latents at the end of smooth levels, from the end of the exact trajectory with the same start, and its slope over
the number of steps; and the weak order of those that add noise (`experiments.orders.weak`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.common import canvas, markdown, run, save, step_ticks, tidy, write_csv, write_page
from experiments.orders import weak
from experiments.orders.named import named
from research.drawing import look
from research.solvers import LinearSolver
from research.solvers.native.ddim import DDIM
from research.solvers.native.deis import DEIS
from research.solvers.native.dpm2 import DPM2
from research.solvers.native.dpm_solver import DPMSolver
from research.solvers.native.dpmpp import DPMpp
from research.solvers.native.dpmpp_2s_a import DPMpp2SAncestral
from research.solvers.native.euler import Euler
from research.solvers.native.gradient_estimation import GradientEstimation
from research.solvers.native.heun import Heun
from research.solvers.native.heunpp2 import HeunPP2
from research.solvers.native.lms import LMS
from research.solvers.native.res import ResMultistep, ResSinglestep
from research.solvers.native.seeds import SEEDS
from research.solvers.native.unipc import UniPC
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_mixture import GaussianMixtureModel
from research.testing.orders import errors, slope

STEPS = (60, 120)
CURVE = (15, 30, 60, 120, 240, 480)
CASES: list[LinearSolver] = [
    DDIM(), Euler(), GradientEstimation(), HeunPP2(), Heun(), DPM2(), LMS(2), LMS(3), DPMpp(1), DPMpp(2),
    DPMpp(2, kind="heun"), DPMpp(3), DPMpp2SAncestral(eta=0.0), UniPC(1), UniPC(2), UniPC(2, lower_order_final=False),
    UniPC(2, corrector=False), DEIS(2), DEIS(3), DEIS(3, kind="rhoab"), DPMSolver(order=2), DPMSolver(order=3),
    ResMultistep(order=2), ResMultistep(order=3), ResSinglestep(order=2), ResSinglestep(order=3), SEEDS(order=2, eta=0.0),
    SEEDS(order=3, eta=0.0),
]  # fmt: skip
DRAWN = [
    Euler(), Heun(), DPM2(), DPMpp(2), DPMpp(3), UniPC(2, lower_order_final=False), DEIS(3), ResMultistep(order=3),
    ResSinglestep(order=3),
]  # fmt: skip


def models() -> dict[str, GaussianModel]:
    """The models by name."""
    std = torch.linspace(0.3, 2.0, 16).reshape(1, 4, 4)
    return {
        "Gaussian": GaussianModel(0.3, std, (1, 4, 4)),
        "mixture": GaussianMixtureModel(shape=(1, 4, 4)),
        "mixture, flow": GaussianMixtureModel(shape=(1, 4, 4), prediction="flow"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    numbers: list[dict[str, Any]] = []
    curves: dict[str, dict[str, list[float]]] = {}
    for solver in CASES:
        row: dict[str, Any] = {"solver": named(solver), "claimed": solver.claimed_order}
        for name, model in models().items():
            found = errors(solver, model, CURVE)
            row[name] = f"{slope(CURVE, found):.2f}"
            curves.setdefault(name, {})[named(solver)] = found
            numbers += [
                {"solver": named(solver), "model": name, "steps": n, "error": e}
                for n, e in zip(CURVE, found, strict=True)
            ]
        rows.append(row)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(numbers, arguments.out / "study_results.csv")
    of_noise(arguments.out)
    write_page(
        arguments.out / "study.md",
        "Orders",
        f"""Slope of the log of the error over the log of the number of steps, between {CURVE[-2]} and {CURVE[-1]} steps, in
        float64. Levels are smooth in half log-SNR and begin with short steps, so that the first ones of a multistep method, which
        have lower order, do not decide; the end has noise.""",
        markdown(rows),
    )
    draw(curves, arguments.out / "study.png")


def of_noise(out: Path) -> None:
    """Weak orders: a page and its numbers."""
    weak_rows, weak_numbers = weak.measured()
    write_csv(weak_numbers, out / "weak_results.csv")
    write_page(
        out / "weak.md",
        "Weak orders",
        f"""Slope of the log of the error over the log of the number of steps, between {weak.CURVE[-2]} and {weak.CURVE[-1]}
        steps, of mean (from a start one standard deviation off) and variance (from the marginal) of what is sampled on
        Gaussian data, the worst of four spreads; exact, without draws. The weak order is the smaller of the two. "exact" is
        wrong by rounding alone: under the reverse SDE (tau = 1) the data prediction is a martingale, and extrapolating it errs
        in no mean.""",
        markdown(weak_rows),
    )


def draw(curves: dict[str, dict[str, list[float]]], file: Path) -> None:
    """Error over steps on both noise models."""
    shown: Sequence[str] = [named(solver) for solver in DRAWN]
    figure, axes = canvas(1, 2, size=(10.4, 4.4), sharey=True)
    for panel, name in zip(axes, ("Gaussian", "mixture"), strict=True):
        for place, solver in enumerate(shown):
            own = look(place)
            panel.plot(
                CURVE,
                curves[name][solver],
                label=solver,
                color=own.colour,
                marker=own.marker,
                ls=own.line,
                lw=1.4,
                ms=5,
            )
        panel.set_yscale("log")
        tidy(panel, name, "steps", "error (log axis; lower is better)")
    for panel in axes:
        panel.set_xscale("log")
        step_ticks(panel, CURVE)
    axes[1].legend(fontsize=8)
    save(figure, file)


if __name__ == "__main__":
    run(main)
