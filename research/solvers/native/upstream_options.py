"""What native solvers read from the config of their counterpart in diffusers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def only_defaults(config: Mapping[str, Any], **expected: Any) -> bool:
    """Whether a config has these values, or says nothing of their keys."""
    return all(config.get(key, value) == value for key, value in expected.items())


def clip_of(config: Mapping[str, Any]) -> float | None:
    """The range that a config cuts data predictions to, as `LinearSolver.clip`: infinite where it says that it does not, None
    where it says nothing."""
    said = config.get("clip_sample")
    if said is None:
        return None
    return float(config.get("clip_sample_range") or 1.0) if said else math.inf
