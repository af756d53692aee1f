"""Set metrics of sides, from the features that their jobs kept: FID, KID and CMMD of any images that sides share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from research.compare.jobs import ComparedJob
from research.compare.pairing import Shared
from research.compare.sides import Side
from research.results.read import Row
from research.results.resampling import LEAST, Replicates, least_units, replicate_over
from research.results.set_scores import FRECHET, KeptFeatures, NoFeatures, kind

__all__ = ["LEAST", "NoFeatures", "SetScores", "kind"]


@dataclass
class SetScores:
    """Distances of sides' images, made once for each side, metric and set of shared images.

    Attributes:
        seed: of the groups of images that are left out together, where there are too many for one at a time.
    """

    seed: int = 0
    _kept: KeptFeatures = field(default_factory=KeptFeatures)
    _made: dict[Any, Replicates] = field(default_factory=dict)

    def replicates(self, side: Side, metric: str, shared: Shared) -> Replicates:
        """The distance over shared images, averaged over cells, and without each group of units.

        Raises:
            NoFeatures: one line that says what is missing, and how to have it.
        """
        key = side, metric, shared.name, shared.over
        if key not in self._made:
            self._made[key] = self._replicates(side, metric, shared)
        return self._made[key]

    def _replicates(self, side: Side, metric: str, shared: Shared) -> Replicates:
        places = {unit: place for place, unit in enumerate(shared.units)}
        vectors, rows, jobs = [], [], []
        for cell, keys in shared.cells.items():
            found = [side.cells[cell][key] for key in keys]
            vectors.append(np.stack([self._kept.of_job(_row(job, metric), metric)[place] for job, place in found]))
            rows.append(np.array([places[shared.unit(key)] for key in keys], dtype=np.intp))
            jobs.append(_row(found[0][0], metric))
        count, dimension = min(len(v) for v in vectors), vectors[0].shape[1]
        frechet = kind(jobs[0].info(metric)) == FRECHET
        distances = [self._kept.distance(row, metric, v) for row, v in zip(jobs, vectors, strict=True)]
        least = least_units(len(places), count, dimension, frechet=frechet)
        prompts = [unit if isinstance(unit, str) else unit[0] for unit in places]
        size = min(count, dimension) if frechet else 0
        return replace(replicate_over(shared.over, prompts, distances, rows, size=size, seed=self.seed), least=least)


def _row(job: ComparedJob, metric: str) -> Row:
    row = job.holder(metric)
    if row is None:
        raise NoFeatures(
            f"{job.id}: has no {metric}; research-score {job.row.folder} metrics=... computes it from the images."
        )
    return row
