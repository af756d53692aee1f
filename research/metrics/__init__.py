"""Metrics of a set of generated images, and of each image; with what they are computed with.

Names are imported on first use: naming a metric in a config costs no torch import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.metrics.aesthetic import AestheticScore as AestheticScore
    from research.metrics.aesthetic import PreferenceScore as PreferenceScore
    from research.metrics.base import AdditiveMetric as AdditiveMetric
    from research.metrics.base import JobMetric as JobMetric
    from research.metrics.base import Metric as Metric
    from research.metrics.base import MetricResult as MetricResult
    from research.metrics.clip_score import CLIPScore as CLIPScore
    from research.metrics.directional import DirectionalSimilarity as DirectionalSimilarity
    from research.metrics.extractors.load import load_features as load_features
    from research.metrics.fid import FID as FID
    from research.metrics.inception_score import InceptionScore as InceptionScore
    from research.metrics.job import ScoredJob as ScoredJob
    from research.metrics.kid import CMMD as CMMD
    from research.metrics.kid import KID as KID
    from research.metrics.order import fit_order as fit_order
    from research.metrics.perceptual import PerceptualDistance as PerceptualDistance
    from research.metrics.points import PointDistances as PointDistances
    from research.metrics.prdc import PRDC as PRDC
    from research.metrics.score import check_metric as check_metric
    from research.metrics.score import measure as measure
    from research.metrics.score import per_image as per_image
    from research.metrics.similarity import PSNR as PSNR
    from research.metrics.similarity import SSIM as SSIM
    from research.metrics.solver_error import SolverError as SolverError

_LAZY = {
    "AdditiveMetric": "research.metrics.base",
    "AestheticScore": "research.metrics.aesthetic",
    "CLIPScore": "research.metrics.clip_score",
    "CMMD": "research.metrics.kid",
    "DirectionalSimilarity": "research.metrics.directional",
    "FID": "research.metrics.fid",
    "InceptionScore": "research.metrics.inception_score",
    "JobMetric": "research.metrics.base",
    "KID": "research.metrics.kid",
    "Metric": "research.metrics.base",
    "MetricResult": "research.metrics.base",
    "PRDC": "research.metrics.prdc",
    "PSNR": "research.metrics.similarity",
    "PerceptualDistance": "research.metrics.perceptual",
    "PointDistances": "research.metrics.points",
    "PreferenceScore": "research.metrics.aesthetic",
    "SSIM": "research.metrics.similarity",
    "ScoredJob": "research.metrics.job",
    "SolverError": "research.metrics.solver_error",
    "check_metric": "research.metrics.score",
    "fit_order": "research.metrics.order",
    "load_features": "research.metrics.extractors.load",
    "measure": "research.metrics.score",
    "per_image": "research.metrics.score",
}

__all__ = [
    "CMMD",
    "FID",
    "KID",
    "PRDC",
    "PSNR",
    "SSIM",
    "AdditiveMetric",
    "AestheticScore",
    "CLIPScore",
    "DirectionalSimilarity",
    "InceptionScore",
    "JobMetric",
    "Metric",
    "MetricResult",
    "PerceptualDistance",
    "PointDistances",
    "PreferenceScore",
    "ScoredJob",
    "SolverError",
    "check_metric",
    "fit_order",
    "load_features",
    "measure",
    "per_image",
]

__getattr__ = lazy_names(__name__, _LAZY)
