"""Set metrics of sides, from the features that their jobs kept: FID, KID and CMMD of any images that sides share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from research.compare.jobs import ComparedJob
from research.compare.pairing import Shared
from research.compare.resampling import Array, Discrepancy, Distance, Frechet, Real, Replicates, group_units, replicate
from research.compare.sides import Side
from research.errors import UserError
from research.results.read import Row

FRECHET, KID, CMMD = "frechet", "kid", "cmmd"
LEAST = 8  # units of any set
_KINDS = (("Frechet distance", FRECHET), ("KID (", KID), ("CMMD (", CMMD))
_BANDWIDTH = re.compile(r"Gaussian kernel of ([\d.eE+-]+)")


class NoFeatures(UserError):
    """Features, or what they are compared with, are not there."""


def kind(info: Mapping[str, Any]) -> str | None:
    """Which distance of features a metric is, by its record; None for one that is not resampled here."""
    definition = str(info.get("definition") or "")
    return next((name for start, name in _KINDS if definition.startswith(start)), None)


@dataclass
class SetScores:
    """Distances of sides' images, made once for each side, metric and set of shared images.

    Attributes:
        seed: of the groups of images that are left out together, where there are too many for one at a time.
    """

    seed: int = 0
    _made: dict[Any, Replicates] = field(default_factory=dict)
    _vectors: dict[tuple[Path, str], Array] = field(default_factory=dict)
    _references: dict[Any, Any] = field(default_factory=dict)
    _checked: set[tuple[Path, str]] = field(default_factory=set)

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
            vectors.append(np.stack([self._of_job(job, metric)[place] for job, place in found]))
            rows.append(np.array([places[shared.unit(key)] for key in keys], dtype=np.intp))
            jobs.append(found[0][0])
        count, dimension = min(len(v) for v in vectors), vectors[0].shape[1]
        which = kind(_row(jobs[0], metric).info(metric))
        groups = group_units(len(places), 0 if which != FRECHET else min(count, dimension), self.seed)
        distances = [
            self._distance(job, metric, v, groups[units]) for job, v, units in zip(jobs, vectors, rows, strict=True)
        ]
        # with fewer than D / 2 images a cell, FID keeps bias that leaving images out does not take away
        rows_wanted = dimension / 2 if which == FRECHET else 0.0
        least = max(LEAST, math.ceil(rows_wanted * len(places) / count))
        return replace(replicate(distances, rows, groups), least=least)

    def _of_job(self, job: ComparedJob, metric: str) -> Array:
        """A job's features [N, D], after seeing that they give the number that the job's record has."""
        row = _row(job, metric)
        key = row.folder, str(row.info(metric).get("features_file"))
        if key not in self._vectors:
            self._vectors[key] = _read(row, metric, len(job.keys))
        if (row.folder, metric) not in self._checked:
            self._check(job, row, metric, self._vectors[key])
            self._checked.add((row.folder, metric))
        return self._vectors[key]

    def _check(self, job: ComparedJob, row: Row, metric: str, vectors: Array) -> None:
        info = row.info(metric)
        if "subsets" in str(info.get("estimator")):
            return  # the mean over random subsets: the same quantity, another estimate
        found = self._distance(job, metric, vectors, np.arange(len(vectors))).without(np.empty(0, dtype=np.intp))
        recorded = row.metrics[metric]
        slack = 0.02 * abs(recorded) + 0.1 * row.metrics.get(f"{metric}_se", 0.0) + 1e-3
        if not math.isfinite(found) or abs(found - recorded) > slack:
            raise NoFeatures(
                f"{row.folder.name}: {metric} is {recorded:.4g} in the record and {found:.4g} from the kept features; "
                f"score the job again: research-score {row.folder} --again"
            )

    def _distance(self, job: ComparedJob, metric: str, vectors: Array, groups: Any) -> Distance:
        row = _row(job, metric)
        info = row.info(metric)
        which, reference = kind(info), self._reference(row, metric)
        if which == FRECHET:
            gaussian = reference.gaussian
            return Frechet(vectors, gaussian.mean.numpy(), gaussian.covariance.numpy())
        from research.metrics.mmd import gaussian as gaussian_kernel
        from research.metrics.mmd import polynomial

        if which == KID:
            kernel = polynomial(vectors.shape[1])
            return Discrepancy(vectors, self._real(reference, kernel, KID, unit=False), kernel, groups)
        told = _BANDWIDTH.search(str(info["definition"]))
        bandwidth = float(told[1]) if told else 10.0
        kernel = gaussian_kernel(bandwidth)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
        real = self._real(reference, kernel, f"{CMMD} {bandwidth}", unit=True)
        return Discrepancy(unit, real, kernel, groups, biased=info.get("estimator") == "biased", times=1000.0)

    def _real(self, reference: Any, kernel: Any, name: str, *, unit: bool) -> Real:
        key = reference.vectors_sha256, name
        if key not in self._references:
            import torch

            from research.metrics.mmd import within

            vectors = reference.all_vectors("metrics").double()
            if unit:
                vectors = torch.nn.functional.normalize(vectors, dim=1)
            self._references[key] = Real(vectors.numpy(), *within(vectors, kernel))
        found: Real = self._references[key]
        return found

    def _reference(self, row: Row, metric: str) -> Any:
        """What the record says that the images were compared with.

        Raises:
            NoFeatures: it is gone, or is another one by now.
        """
        info = row.info(metric)
        told = info.get("reference") or {}
        sha256 = told.get("sha256")
        # a folder's hash is that of its pictures, which are other vectors to another network
        features_of = {name: value for name, value in (info.get("features") or {}).items() if name != "name"}
        kept = sha256, repr(sorted(features_of.items(), key=str))
        if kept in self._references:
            return self._references[kept]
        from research.metrics.extractors.find import find_reference
        from research.metrics.reference import load_reference, read_reference

        node = _node(row, metric)
        name, key = str(node.get("reference") or told.get("name")), f"metrics.{metric}.reference"
        try:
            path = find_reference(name, key)
            if path.is_dir():
                from research.metrics.extractors.load import load_features

                features = load_features(str(node.get("features")), key=f"metrics.{metric}.features")
                reference = load_reference(name, features, key=key)
            else:
                reference = read_reference(path, key)
        except UserError as error:
            raise NoFeatures(f"{row.folder.name}: {' '.join(str(error).split())}") from error
        if reference.info.get("sha256") != sha256:
            raise NoFeatures(
                f"{row.folder.name}: reference {name!r} is another one than {metric} was computed with (SHA-256 "
                f"{str(reference.info.get('sha256'))[:12]}, the record says {str(sha256)[:12]}); "
                f"research-score {row.folder} --again"
            )
        self._references[kept] = reference
        return reference


def _row(job: ComparedJob, metric: str) -> Row:
    row = job.holder(metric)
    if row is None:
        raise NoFeatures(
            f"{job.id}: has no {metric}; research-score {job.row.folder} metrics=... computes it from the images."
        )
    return row


def _first(error: Exception) -> str:
    """What an error says is wrong, without what to do."""
    return str(error).partition(";")[0]


def _node(row: Row, metric: str) -> Mapping[str, Any]:
    """The config of a metric, by its key or by the name it gives its number."""
    nodes = row.result.config.get("metrics")
    nodes = nodes if isinstance(nodes, Mapping) else {}
    named = [node for node in nodes.values() if isinstance(node, Mapping) and node.get("name") == metric]
    found = named[0] if named else nodes.get(metric)
    return found if isinstance(found, Mapping) else {}


def _read(row: Row, metric: str, count: int) -> Array:
    from research.metrics.saved_features import read_features

    try:
        found = read_features(row.folder, row.info(metric))
    except UserError as error:
        raise NoFeatures(
            f"{row.folder.name}: features of {metric}: {_first(error)}; research-score {row.folder} --again makes them anew"
        ) from error
    if found is None:
        raise NoFeatures(
            f"{row.folder.name}: kept no features of {metric}; research-score {row.folder} --again keeps them, "
            "if keep_features is not false and they fit."
        )
    if len(found.vectors) != count:
        raise NoFeatures(
            f"{row.folder.name}: features of {len(found.vectors)} images for {count}; research-score {row.folder} --again"
        )
    return found.vectors.double().numpy()
