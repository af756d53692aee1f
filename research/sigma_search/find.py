"""Finds levels by a method, and judges them on seeds that were not searched with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from research.errors import ConfigError
from research.sigma_search import gits
from research.sigma_search.bench import Bench
from research.sigma_search.descent import descend
from research.sigma_search.objectives import FOUND, Judged, Objective, SolverError, objective_of
from research.sigmas import AYS, Beta, Exponential, Given, Karras, KLOptimal, LogSnrUniform, Normal, SgmUniform

# the model's own and those that are said to be good at few steps
FIXED: Mapping[str, Any] = {
    "model": None, "karras": Karras(), "exponential": Exponential(), "ays": AYS(), "kl_optimal": KLOptimal(),
    "log_snr_uniform": LogSnrUniform(), "sgm_uniform": SgmUniform(), "normal": Normal(), "beta": Beta(),
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Levels with where they are from.

    Attributes:
        sigmas: without the end, which is clean.
        judged: the found grid ("found") and fixed ones by name, on the judging seeds.
        provenance: of the file: model, solver, steps, method, seeds.
        objective: "error" or "fid".
        heading: of its column.
        notes: what is to be known of the numbers.
    """

    sigmas: Sequence[float]
    judged: Mapping[str, Judged]
    provenance: Mapping[str, Any]
    objective: str = "error"
    heading: str = "error"
    notes: Sequence[str] = ()

    def table(self) -> list[str]:
        """Each grid with a 95 % interval, and the difference from the found one."""
        heading = f"{self.heading} (95 %)"
        lines = [f"{'levels':<16} {heading:>28} {'more than found (95 %)':>32}"]
        for name, one in sorted(self.judged.items(), key=lambda item: item[1].value.value):
            apart = "" if one.more is None else one.more.shown(4, "+")
            lines.append(f"{name:<16} {one.value.shown(4):>28} {apart:>32}")
        return [*lines, *self.notes]

    def content(self, *, command: str, made: datetime) -> str:
        """The YAML file: levels, and what they were found for."""
        import yaml

        values = {name: round(one.value.value, 6) for name, one in self.judged.items()}
        about = {
            **self.provenance,
            self.objective: values,
            "command": command,
            "made": made.isoformat(timespec="seconds"),
        }
        return yaml.safe_dump(
            {"sigmas": [float(s) for s in self.sigmas], "end": "zero", "found": about}, sort_keys=False
        )


def find(
    config: Mapping[str, Any],
    *,
    method: str,
    images: int,
    fine: int,
    coefficient: float = 1.15,
    evaluations: int = 120,
    objective: str = "error",
    told: Callable[[str], None] | None = None,
) -> Found:
    """Find levels for a job and judge them.

    Args:
        config: of the job, validated, with a prompt an image.
        method: "gits" or "search".
        images: to find with; as many, of other seeds, to judge by.
        fine: steps of the converged runs.
        coefficient: of gits.
        evaluations: of search.
        objective: "error", the solver's, or "fid", by which search descends and grids are judged.
        told: called with a line now and then.

    Raises:
        ConfigError: more steps than the converged runs have; a scheduler that adds noise of its own, unless the objective is
            FID; FID with another method than search, of too few images, or in a job without the metric.
    """
    say = told or (lambda line: None)
    steps, seed = int(config["steps"]), int(config["seed"])
    if steps >= fine:
        raise ConfigError(f"--fine: found {fine} for {steps} steps; accepted are more than the steps.")
    if objective == "fid" and method != "search":
        raise ConfigError(
            f"--objective: found fid with --method {method}; accepted is --method search, which descends it."
        )
    bench = Bench(config, fine, compared=objective == "error")
    aim = objective_of(objective, bench, config, images)
    searched, judged = range(seed, seed + images), range(seed + images, seed + 2 * images)
    say(f"{images} converged runs of {fine} steps")
    sigmas = [level.sigma for level in gits.grid(bench.trajectory(searched), steps, coefficient) if level.noise]
    if method == "search":
        sigmas = by_descent(bench, sigmas, searched, evaluations, say, aim)
    say(f"judging on seeds {judged[0]} to {judged[-1]}")
    results = aim.judge(judged, {FOUND: Given(sigmas=sigmas), **FIXED})
    provenance = {
        "model": config["model"]["path"],
        "weights_sha256": bench.weights,
        "scheduler": config["scheduler"]["name"],
        "options": dict(config["scheduler"]["options"]),
        "guidance": dict(config["guidance"]),
        "steps": steps,
        "method": method,
        **({"objective": objective} if method == "search" else {}),
        **({"coefficient": coefficient} if method == "gits" else {"evaluations": evaluations}),
        "fine": fine,
        "seeds": [searched[0], searched[-1]],
        "judged_on_seeds": [judged[0], judged[-1]],
    }
    return Found(sigmas, results, provenance, aim.name, aim.heading, aim.notes)


def by_descent(
    bench: Bench,
    sigmas: list[float],
    seeds: Sequence[int],
    evaluations: int,
    say: Callable[[str], None] = lambda line: None,
    objective: Objective | None = None,
) -> list[float]:
    """The best of the known grids, and from there by descent of an objective: of the solver's error, if none is given."""
    aim = objective or SolverError(bench)

    def error(found: Sequence[float]) -> float:
        try:
            value = aim.value(seeds, Given(sigmas=list(found)))
        except ConfigError:  # two levels in one
            return math.inf
        return value if math.isfinite(value) else math.inf

    starts = [sigmas]
    for grid in FIXED.values():
        if grid is not None:
            try:
                starts.append([level.sigma for level in grid.levels(bench.trained, bench.steps) if level.noise])
            except ConfigError:
                continue
    best = min(starts, key=error)
    say(f"descending from {aim.heading} {error(best):.4f}")

    def told(made: int, least: float) -> None:
        if made % 20 == 0:
            say(f"{made} runs, least {aim.heading} {least:.4f}")

    return descend(error, best, bench.trained, evaluations, told)
