"""Classes that older versions kept in another module: a ``_target_`` that names one by its old path means the class it is now.

The config keeps what it was written with, so the ids of jobs, which are hashes of it, stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# by the old dotted path of a class or of its module; the longest that fits counts
MOVED = {
    # 0.1.0
    "research.metrics.clip": "research.metrics.extractors.clip",
    "research.metrics.clip.Clip": "research.clip.Clip",
    "research.metrics.efficientnet": "research.metrics.extractors.efficientnet",
    "research.metrics.efficientnet_features": "research.metrics.extractors.efficientnet",
    "research.metrics.features": "research.metrics.extractors.base",
    "research.metrics.features.ClipFeatures": "research.metrics.extractors.clip.ClipFeatures",
    "research.metrics.features.InceptionFeatures": "research.metrics.extractors.inception.InceptionFeatures",
    "research.metrics.images.Preprocess": "research.image_tensors.Preprocess",
    "research.metrics.inception": "research.metrics.extractors.inception",
    "research.metrics.vision": "research.metrics.extractors.vision",
    "research.models.gaussian": "research.testing.gaussian",
    "research.models.gaussian_conditional": "research.testing.gaussian_conditional",
    "research.models.gaussian_error": "research.testing.gaussian_error",
    "research.sampling.hooks": "research.sampling.interfaces",
    "research.sampling.plugs": "research.sampling.interfaces",
    "research.sampling.run": "research.sampling.interfaces",
    "research.sampling.sampler": "research.sampling.result",
    "research.schedulers": "research.solvers",
    "research.tracking.base.Tracker": "research.tracking.Tracker",
}


def current_name(name: str) -> str:
    """The dotted path of a class today; one that has not moved, or is none of the project's, as it is."""
    if not name.startswith("research."):
        return name
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        if (now := MOVED.get(".".join(parts[:end]))) is not None:
            return ".".join([now, *parts[end:]])
    return name


def with_current_names(value: Any) -> Any:
    """A config, or a part of one, in which each ``_target_`` has its path of today. The argument stays as it is."""
    if isinstance(value, Mapping):
        return {
            key: current_name(inner) if key == "_target_" and isinstance(inner, str) else with_current_names(inner)
            for key, inner in value.items()
        }
    return [with_current_names(inner) for inner in value] if isinstance(value, list) else value
