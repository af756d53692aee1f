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
from research.sigmas import AYS, Beta, Exponential, Given, Karras, KLOptimal, LogSnrUniform, Normal, SgmUniform
from research.statistics import Estimate, drawn, mean, unit_of

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
        errors: of the found grid ("found") and of fixed ones by name, each image's on the judging seeds.
        provenance: of the file: model, solver, steps, method, seeds.
        prompts: one an image; intervals are over prompts where several have several images.
    """

    sigmas: Sequence[float]
    errors: Mapping[str, Sequence[float]]
    provenance: Mapping[str, Any]
    prompts: Sequence[str] = ()

    def table(self) -> list[str]:
        """Mean error of each grid with a 95 % interval, and of the difference from the found one."""
        own = self.errors["found"]
        lines = [f"{'levels':<16} {'error (95 %)':>28} {'more than found (95 %)':>32}"]
        for name, errors in sorted(self.errors.items(), key=lambda item: sum(item[1])):
            more = [other - mine for other, mine in zip(errors, own, strict=True)]
            apart = "" if name == "found" else self._estimate(more).shown(4, "+")
            lines.append(f"{name:<16} {self._estimate(errors).shown(4):>28} {apart:>32}")
        return lines

    def _estimate(self, values: Sequence[float]) -> Estimate:
        units, strata = drawn(self.prompts, unit_of(self.prompts)) if self.prompts else (None, None)
        found = mean(values, units, strata=strata)
        return found or Estimate(_mean(values), math.nan, math.nan)

    def content(self, *, command: str, made: datetime) -> str:
        """The YAML file: levels, and what they were found for."""
        import yaml

        errors = {name: round(_mean(values), 6) for name, values in self.errors.items()}
        about = {**self.provenance, "error": errors, "command": command, "made": made.isoformat(timespec="seconds")}
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
        told: called with a line now and then.

    Raises:
        ConfigError: more steps than the converged runs have, or a scheduler that adds noise of its own.
    """
    say = told or (lambda line: None)
    steps, seed = int(config["steps"]), int(config["seed"])
    if steps >= fine:
        raise ConfigError(f"--fine: found {fine} for {steps} steps; accepted are more than the steps.")
    bench = Bench(config, fine)
    searched, judged = range(seed, seed + images), range(seed + images, seed + 2 * images)
    say(f"{images} converged runs of {fine} steps")
    sigmas = [level.sigma for level in gits.grid(bench.trajectory(searched), steps, coefficient) if level.noise]
    if method == "search":
        sigmas = by_descent(bench, sigmas, searched, evaluations, say)
    say(f"judging on seeds {judged[0]} to {judged[-1]}")
    errors = {"found": bench.errors(judged, Given(sigmas=sigmas)).tolist()}
    for name, grid in FIXED.items():
        if (values := _tried(bench, judged, grid)) is not None:
            errors[name] = values
    provenance = {
        "model": config["model"]["path"],
        "weights_sha256": bench.weights,
        "scheduler": config["scheduler"]["name"],
        "options": dict(config["scheduler"]["options"]),
        "guidance": dict(config["guidance"]),
        "steps": steps,
        "method": method,
        **({"coefficient": coefficient} if method == "gits" else {"evaluations": evaluations}),
        "fine": fine,
        "seeds": [searched[0], searched[-1]],
        "judged_on_seeds": [judged[0], judged[-1]],
    }
    return Found(sigmas, errors, provenance, list(config["prompts"]))


def by_descent(
    bench: Bench,
    sigmas: list[float],
    seeds: Sequence[int],
    evaluations: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[float]:
    """The best of the known grids, and from there by descent."""

    def error(found: Sequence[float]) -> float:
        try:
            value = float(bench.errors(seeds, Given(sigmas=list(found))).mean())
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
    say(f"descending from an error of {error(best):.4f}")

    def told(made: int, least: float) -> None:
        if made % 20 == 0:
            say(f"{made} runs, least error {least:.4f}")

    return descend(error, best, bench.trained, evaluations, told)


def _tried(bench: Bench, seeds: Sequence[int], grid: Any) -> list[float] | None:
    """A fixed grid's errors; None where the solver or model does not take it."""
    try:
        found: list[float] = bench.errors(seeds, grid).tolist()
    except ConfigError:
        return None
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
