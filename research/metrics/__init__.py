"""Metrics of a set of generated images: CLIP score, FID, and what they are computed with.

Names are imported on first use: naming a metric in a config costs no torch import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.metrics.base import Metric as Metric
    from research.metrics.base import MetricResult as MetricResult
    from research.metrics.clip_score import CLIPScore as CLIPScore
    from research.metrics.features import load_features as load_features
    from research.metrics.fid import FID as FID

_LAZY = {
    "Metric": "research.metrics.base",
    "MetricResult": "research.metrics.base",
    "CLIPScore": "research.metrics.clip_score",
    "FID": "research.metrics.fid",
    "load_features": "research.metrics.features",
}

__all__ = ["FID", "CLIPScore", "Metric", "MetricResult", "load_features"]


__getattr__ = lazy_names(__name__, _LAZY)
