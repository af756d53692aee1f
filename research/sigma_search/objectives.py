"""What a grid of noise levels is descended by, and judged by on seeds that were set apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from research.errors import ConfigError
from research.sigma_search.bench import Bench
from research.statistics import Estimate, around, drawn, jackknife, mean, unit_of

FOUND = "found"
LEAST_FOR_FID = 8  # images: of fewer neither bias nor spread can be told
_GROUPS = 20  # of the jackknife


@dataclass(frozen=True)
class Judged:
    """A grid on the judging seeds.

    Attributes:
        value: of the grid, lower is better.
        more: how much more it is than that of the found grid, paired by seeds; None for the found one.
    """

    value: Estimate
    more: Estimate | None = None


class Objective(Protocol):
    """A number of a grid, lower is better.

    Attributes:
        name: "error" or "fid".
        heading: of its column.
        notes: what whoever reads its numbers should know, known once grids are judged.
    """

    name: str
    heading: str
    notes: list[str]

    def value(self, seeds: Sequence[int], sigmas: Any) -> float:
        """Of a grid, for descent.

        Raises:
            ConfigError: the solver or model does not take the grid.
        """
        ...

    def judge(self, seeds: Sequence[int], grids: Mapping[str, Any]) -> dict[str, Judged]:
        """Of grids by name, "found" among them; those that the solver or model does not take are left out."""
        ...


class SolverError:
    """The distance from a converged run, each image's, and its mean over images.

    Args:
        bench: samples the job.
        prompts: one an image; intervals are over prompts where several have several images.
    """

    name, heading = "error", "error"

    def __init__(self, bench: Bench, prompts: Sequence[str] = ()) -> None:
        self.bench, self.prompts = bench, prompts
        self.notes: list[str] = []

    def value(self, seeds: Sequence[int], sigmas: Any) -> float:
        return float(self.bench.errors(seeds, sigmas).mean())

    def judge(self, seeds: Sequence[int], grids: Mapping[str, Any]) -> dict[str, Judged]:
        errors = taken(grids, lambda grid: self.bench.errors(seeds, grid).tolist())
        own = errors[FOUND]
        return {
            name: Judged(
                self._estimate(values),
                None
                if name == FOUND
                else self._estimate([other - mine for other, mine in zip(values, own, strict=True)]),
            )
            for name, values in errors.items()
        }

    def _estimate(self, values: Sequence[float]) -> Estimate:
        units, strata = drawn(self.prompts, unit_of(self.prompts)) if self.prompts else (None, None)
        found = mean(values, units, strata=strata)
        return found or Estimate(sum(values) / len(values), math.nan, math.nan)


class FrechetDistance:
    """FID of the job's pictures: of so few images biased upward, by as much for one grid as for another with as many, and noisy.

    Descent sees the same seeds at each grid, so that its noise is that of one choice of seeds, which it fits; that is why
    judging is on others. Differences are paired: the images of a seed are left out of both sides at once
    (`research.statistics.jackknife`).

    Args:
        bench: samples the job.
        metric: a `research.metrics.FID`: its features and reference are used.

    Raises:
        ConfigError: its features or reference cannot be read.
    """

    name, heading = "fid", "FID"

    def __init__(self, bench: Bench, metric: Any) -> None:
        self.bench, self.metric = bench, metric
        self.features, reference = metric.load(bench.device)
        self.reference = reference.gaussian
        self.notes: list[str] = []

    def value(self, seeds: Sequence[int], sigmas: Any) -> float:
        return self._distance(self._vectors(seeds, sigmas))

    def judge(self, seeds: Sequence[int], grids: Mapping[str, Any]) -> dict[str, Judged]:
        from research.metrics.frechet import bias_at

        vectors = taken(grids, lambda grid: self._vectors(seeds, grid))
        count, groups = len(seeds), _groups(len(seeds))
        without = {
            name: np.array([self._distance(own[groups != group]) for group in range(int(groups.max()) + 1)])
            for name, own in vectors.items()
        }
        full = {name: self._distance(own) for name, own in vectors.items()}
        sizes = torch.bincount(groups).tolist()
        found: dict[str, Judged] = {}
        for name in vectors:
            spread = jackknife(full[name], without[name], sizes)
            value = around(full[name], math.nan if spread is None else spread.se, count)
            apart = jackknife(full[name] - full[FOUND], without[name] - without[FOUND], sizes)
            found[name] = Judged(value, None if name == FOUND else apart)
        bias = bias_at(vectors[FOUND], self.reference)
        self.notes = [
            f"FID of {count} images on {vectors[FOUND].shape[1]} features is biased upward, here by roughly {bias:.2g}: compare "
            "it with that of as many images alone; differences are corrected for bias."
        ]
        best = min(found, key=lambda name: found[name].value.value if name != FOUND else math.inf, default=FOUND)
        more = found[best].more
        if more is not None and not more.told_apart:
            self.notes.append(
                f"The found levels are not told apart from {best} on {count} images; more --images would tell."
            )
        return found

    def _vectors(self, seeds: Sequence[int], sigmas: Any) -> Tensor:
        found: Tensor = self.metric.vectors(self.bench.pictures(seeds, sigmas), self.features)
        return found.double()

    def _distance(self, vectors: Tensor) -> float:
        from research.metrics.frechet import distance_of_features

        return distance_of_features(vectors, self.reference)


def objective_of(name: str, bench: Bench, config: Mapping[str, Any], images: int) -> Objective:
    """An objective by its name, for a composed job.

    Raises:
        ConfigError: FID of too few images, or a job without the metric.
    """
    if name == "error":
        return SolverError(bench, list(config["prompts"]))
    from research.jobs.build import build
    from research.metrics import FID

    if images < LEAST_FOR_FID:
        raise ConfigError(f"--images: found {images}; accepted with --objective fid are {LEAST_FOR_FID} and more.")
    for key, node in config["metrics"].items():
        metric = build(node, f"metrics.{key}")
        if isinstance(metric, FID):
            metric.check(n_images=images)
            return FrechetDistance(bench, metric)
    raise ConfigError(
        f"metrics: found {', '.join(config['metrics']) or 'none'}; accepted with --objective fid is one of the class FID "
        "(metrics=fid metrics.fid.reference=FOLDER)."
    )


def taken(grids: Mapping[str, Any], made: Callable[[Any], Any]) -> dict[str, Any]:
    """What is made of grids by name, less those that the solver or model refuses; the found one has to be taken."""
    found: dict[str, Any] = {}
    for name, grid in grids.items():
        try:
            found[name] = made(grid)
        except ConfigError:
            if name == FOUND:
                raise
    return found


def _groups(count: int) -> Tensor:
    """A random group for each image."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)) % min(_GROUPS, count)
