"""How the pipelines of flow models have their schedulers set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def linear_mu(tokens: int, config: Mapping[str, Any], *, max_shift: float = 1.15) -> float:
    """The shift of flow times for a picture of so many tokens, as the logarithm that ``set_timesteps`` takes as ``mu``: linear
    between ``base_shift`` and ``max_shift`` of the scheduler's config (``calculate_shift`` of diffusers)."""
    base, top = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    slope = (high - low) / (top - base)
    return float(tokens * slope + (low - slope * base))


def even_sigmas(steps: int) -> Any:
    """Flow times from 1 to ``1 / steps``."""
    return np.linspace(1.0, 1 / steps, steps)
