"""Set metrics of jobs, from the features that they kept: FID, KID and CMMD of any of their images, or with some left out.

What report and comparison judge such a metric by: the paired jackknife over the images that two jobs share."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from research.caches import MIB, Cache
from research.errors import UserError
from research.results.read import Row
from research.results.resampling import (
    Array,
    Discrepancy,
    Distance,
    Frechet,
    Real,
    Replicates,
    group_units,
    least_units,
    replicate_over,
)
from research.statistics import PROMPTS, unit_of

FRECHET, KID, CMMD = "frechet", "kid", "cmmd"
_KINDS = (("Frechet distance", FRECHET), ("KID (", KID), ("CMMD (", CMMD))
_BANDWIDTH = re.compile(r"Gaussian kernel of ([\d.eE+-]+)")


class NoFeatures(UserError):
    """Features, or what they are compared with, are not there."""


def kind(info: Mapping[str, Any]) -> str | None:
    """Which distance of features a metric is, by its record; None for one that is not resampled here."""
    definition = str(info.get("definition") or "")
    return next((name for start, name in _KINDS if definition.startswith(start)), None)


@dataclass
class KeptFeatures:
    """Features of jobs, and distances of them to what their records name as the reference."""

    _vectors: dict[tuple[Path, str], Array] = field(default_factory=dict)
    _references: dict[Any, Any] = field(default_factory=dict)
    _checked: set[tuple[Path, str]] = field(default_factory=set)

    def of_job(self, row: Row, metric: str) -> Array:
        """A job's features [N, D], after seeing that they give the number that the job's record has.

        Raises:
            NoFeatures: one line that says what is missing, and how to have it.
        """
        key = row.folder, str(row.info(metric).get("features_file"))
        if key not in self._vectors:
            self._vectors[key] = _read(row, metric, len(row.images))
        if (row.folder, metric) not in self._checked:
            self._check(row, metric, self._vectors[key])
            self._checked.add((row.folder, metric))
        return self._vectors[key]

    def _check(self, row: Row, metric: str, vectors: Array) -> None:
        info = row.info(metric)
        if "subsets" in str(info.get("estimator")):
            return  # the mean over random subsets: the same quantity, another estimate
        found = self.distance(row, metric, vectors).without(np.empty(0, dtype=np.intp))
        recorded = row.metrics[metric]
        slack = 0.02 * abs(recorded) + 0.1 * row.metrics.get(f"{metric}_se", 0.0) + 1e-3
        if not math.isfinite(found) or abs(found - recorded) > slack:
            raise NoFeatures(
                f"{row.folder.name}: {metric} is {recorded:.4g} in the record and {found:.4g} from the kept features; "
                f"score the job again: research-score {row.folder} --again"
            )

    def distance(self, row: Row, metric: str, vectors: Array) -> Distance:
        """Of some of a job's vectors [N, D]."""
        info = row.info(metric)
        which, reference = kind(info), self._reference(row, metric)
        if which == FRECHET:
            gaussian = reference.gaussian
            return Frechet(vectors, gaussian.mean.numpy(), gaussian.covariance.numpy())
        from research.metrics.mmd import gaussian as gaussian_kernel
        from research.metrics.mmd import polynomial

        if which == KID:
            kernel = polynomial(vectors.shape[1])
            return Discrepancy(vectors, self._real(reference, kernel, KID, unit=False), kernel)
        told = _BANDWIDTH.search(str(info["definition"]))
        bandwidth = float(told[1]) if told else 10.0
        kernel = gaussian_kernel(bandwidth)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
        real = self._real(reference, kernel, f"{CMMD} {bandwidth}", unit=True)
        return Discrepancy(unit, real, kernel, biased=info.get("estimator") == "biased", times=1000.0)

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


# -- of two jobs

Image = tuple[str, Any, int]  # prompt, seed, and which of those of the same prompt and seed
_made = Cache("set replicates", 64 * MIB)


def shared_images(a: Row, b: Row) -> list[Image]:
    """The images that both have, in one order for both."""
    return sorted(_places(a).keys() & _places(b).keys(), key=repr)


def replicates(row: Row, metric: str, images: Sequence[Image]) -> Replicates:
    """The distance over some of a job's images, and without each group of units, as `research.statistics.unit_of` says.

    Raises:
        NoFeatures: one line that says what is missing, and how to have it.
    """
    info, config = row.info(metric), _node(row, metric)
    by = [str(info.get(name)) for name in ("features_sha256", "definition", "estimator", "reference")]
    key: Hashable = (
        *by,
        str(config.get("features")),
        str(config.get("reference")),
        row.metrics.get(metric),
        row.unit,
        tuple(images),
    )
    return _made.get(
        key, lambda: _replicates(row, metric, images), lambda made: made.without.nbytes + 100 * len(images)
    )


def _replicates(row: Row, metric: str, images: Sequence[Image]) -> Replicates:
    kept, places = KeptFeatures(), _places(row)
    vectors = kept.of_job(row, metric)[[places[image] for image in images]]
    over = unit_of([image[0] for image in images], row.unit)
    units: list[Any] = [image[0] if over == PROMPTS else image for image in images]
    order = {unit: place for place, unit in enumerate(sorted(set(units), key=repr))}
    rows = np.array([order[unit] for unit in units], dtype=np.intp)
    size = min(vectors.shape) if kind(row.info(metric)) == FRECHET else 0
    prompts = [unit if over == PROMPTS else unit[0] for unit in order]
    found = replicate_over(over, prompts, [kept.distance(row, metric, vectors)], [rows], size=size)
    return replace(found, least=least_units(len(order), len(vectors), vectors.shape[1], frechet=size > 0))


def seconds(row: Row, metric: str) -> float:
    """About how long `replicates` takes of a job: the eigenvalues of a matrix for each group that is left out."""
    info = row.info(metric)
    dimension = int((info.get("features") or {}).get("dimension") or 0)
    size = min(len(row.images), dimension)
    if kind(info) != FRECHET or not size:
        return 0.01
    return (int(group_units(len(row.images), size, 0).max()) + 2) * 5e-10 * size**3


def _places(row: Row) -> dict[Image, int]:
    seen: Counter[Hashable] = Counter()
    found: dict[Image, int] = {}
    for place, image in enumerate(row.images):
        pair = image.prompt or "", image.seed
        found[*pair, seen[pair]] = place
        seen[pair] += 1
    return found
