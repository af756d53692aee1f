"""Which numbers may stand beside each other: those that were computed with the same things."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from research.results.read import Row

# results and circumstances, which differ from job to job and make no other quantity of a number
_RESULTS = {
    *("features_file", "features_sha256", "bias_estimate", "bias_method"),
    *(
        "per_image",
        "per_image_of",
        "warnings",
        "versions",
        "truncated_prompts",
        "n_prompts",
        "interval",
        "ci",
        "ci95",
        "bootstrap",
        "bias",
    ),
    *(
        "confidence_interval",
        "command",
        "seconds",
        "better",
        "higher_is_better",
        "bounds",
        "margin",
        "curve",
        "points",
        "path",
        "scores",
        "data",
    ),
}
_CONSTANTS = {"sigma", "bandwidth", "gamma", "degree", "coef", "coef0", "eps", "alpha", "data_range"}


def fingerprint(row: Row, key: str) -> str:
    """A short word for what a metric was computed with: equal for numbers of one provenance, empty where nothing is said.

    Features, weights, reference, preprocessing and definition count; library versions do not (the page lists them). For a metric
    over a set of images their number counts too, since its bias depends on it.
    """
    if ("fingerprint", key) not in row.derived:
        row.derived["fingerprint", key] = _fingerprint(row.info(key))
    return str(row.derived["fingerprint", key])


def _fingerprint(info: Mapping[str, Any]) -> str:
    if not info:
        return ""
    given = info.get("comparable")  # by the metric itself, which knows best
    if isinstance(given, str):
        return given
    definition = _definition(info)
    if not ({"reference", "features"} & info.keys()):
        definition.pop("n_images", None)
    return hashlib.sha256(json.dumps(definition, sort_keys=True, default=str).encode()).hexdigest()[:10]


def device(row: Row) -> str:
    """Where seconds were measured."""
    return row.timing.device


def kinds(words: Sequence[str]) -> dict[str, str]:
    """A letter for each provenance that occurs, the commonest first: ``{fingerprint: "a"}``."""
    order = [word for word, _ in Counter(words).most_common()]
    return {word: chr(ord("a") + min(place, 25)) for place, word in enumerate(order)}


def _definition(info: Mapping[str, Any]) -> dict[str, Any]:
    """What a metric's record says less its results and circumstances."""
    found: dict[str, Any] = {}
    for name, value in info.items():
        if name in _RESULTS or (isinstance(value, float) and name not in _CONSTANTS):
            continue
        found[name] = _definition(value) if isinstance(value, Mapping) else value
    return found
