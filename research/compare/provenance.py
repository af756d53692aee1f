"""Whether two numbers were computed with the same things, and what differs if they were not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from research.compare.sides import Side
from research.results import comparable
from research.results.read import Row
from research.results.set_scores import kind

_SHOWN = 2


def fingerprints(side: Side, metric: str) -> dict[str, Row]:
    """What a side's number was computed with, as a word, each with a job that has it; more than one where its jobs differ."""
    found: dict[str, Row] = {}
    for job in side.jobs:
        if (row := job.holder(metric)) is not None:
            found.setdefault(fingerprint(row, metric), row)
    return found


def fingerprint(row: Row, metric: str) -> str:
    """Equal for numbers of one provenance.

    Of a distance of features the number of images is left out: it is computed anew over as many images of both sides.
    """
    info = info_of(row, metric)
    if metric not in row.result.metrics_info or kind(info) is None:
        return comparable.fingerprint(row, metric) or hashlib.sha256(_told(info)).hexdigest()[:16]
    features, reference = info.get("features") or {}, info.get("reference") or {}
    told = [
        info.get("definition"),
        info.get("estimator"),
        {key: value for key, value in features.items() if key != "name"},
        reference.get("sha256"),
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def info_of(row: Row, metric: str) -> Mapping[str, Any]:
    """What a number was computed with; of one of several that a metric gives (precision, recall), what that metric was."""
    if found := row.info(metric):
        return found
    infos = row.result.metrics_info
    shared = {name: info for name, info in infos.items() if name not in row.metrics and isinstance(info, Mapping)}
    return next(iter(shared.values())) if len(shared) == 1 else shared


def _told(info: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(_flat(info)), sort_keys=True, default=str).encode()


def differs(a: Side, b: Side, metric: str) -> str:
    """How the provenance of a metric differs between two sides, in a few words; empty where it does not."""
    first, *others = {**fingerprints(a, metric), **fingerprints(b, metric)}.values()
    for other in others:
        if difference := what_differs(info_of(first, metric), info_of(other, metric)):
            return difference
    return ""


def what_differs(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The first entries in which two records differ; empty where only one says how it compares, and all else is equal."""
    if not a or not b:
        return "one record does not say what it was computed with"
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    keys = [key for key in dict.fromkeys([*flat_a, *flat_b]) if flat_a.get(key) != flat_b.get(key)]
    # neither numbers of single images depend on their count, nor distances that are computed anew
    if kind(a) is not None or not {"features", "reference", "classifier"} & a.keys():
        keys = [key for key in keys if key not in ("n_images", "mean over images")]
    if not keys or (keys == ["comparable"] and not ("comparable" in a and "comparable" in b)):
        return ""  # another count, or an older record
    # hashes say least: they are shown where nothing else differs
    keys.sort(key=lambda key: ("sha256" in key, key == "comparable"))
    plain = [key for key in keys if key != "comparable"] or keys
    shown = [f"{key} {_short(flat_a.get(key))} and {_short(flat_b.get(key))}" for key in plain[:_SHOWN]]
    return "; ".join(shown)


_RESULTS = (
    "per_image",
    "warnings",
    "versions",
    "bias_",
    "features_",
    "data.",
    "n_prompts",
    "truncated",
    "latent_std",
    "git",
)


def _flat(info: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in info.items():
        key = f"{prefix}{name}"
        if key.startswith(_RESULTS) or ".data" in key or name in ("versions", "command"):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if len(text) == 64 else text if len(text) <= 40 else text[:39] + "…"
