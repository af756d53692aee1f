"""Scores of several jobs together, with intervals that hold what other seeds would change.

The prompts are the study's own and stay. For each prompt its pictures, one a group of seeds, are drawn with replacement (a
stratified bootstrap), and the same draws serve every method: one seed is one start noise, so that differences between methods are
paired. A drawn set repeats pictures, which biases its FID upward and narrows it: the spread of the drawn FIDs is used, times
sqrt(G / (G - 1)) for G groups, around the FID of the pictures as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from research.image_tensors import batches
from research.metrics.extractors.load import load_features
from research.metrics.reference import load_reference
from research.results.read import Row

EVALUATION_MODEL, REFERENCE = "emoji-eval", "emoji"
DRAWS = 100
Z = 1.96


@dataclass(frozen=True)
class Scored:
    """Pooled jobs: CLIP score and FID, and both again for every draw of seeds."""

    clip_score: float
    fid: float
    drawn_clip_scores: NDArray[np.float64]
    drawn_fids: NDArray[np.float64]
    groups: int

    @property
    def clip_interval(self) -> float:
        """Half the width of the 95 % interval."""
        return self._half(self.drawn_clip_scores)

    @property
    def fid_interval(self) -> float:
        return self._half(self.drawn_fids)

    def fid_against(self, other: Scored) -> tuple[float, float]:
        """The difference of the FIDs, and half its 95 % interval."""
        return self.fid - other.fid, self._half(self.drawn_fids - other.drawn_fids)

    def _half(self, drawn: NDArray[np.float64]) -> float:
        if self.groups < 2:
            return float("nan")
        return Z * float(drawn.std(ddof=1)) * (self.groups / (self.groups - 1)) ** 0.5


def score(rows: list[Row]) -> Scored:
    """Score jobs that differ in their seeds alone."""
    features = np.stack([_features(row) for row in rows])  # groups, prompts, dimensions
    clip = np.stack([np.array(row.result.metrics_info["clip_score"]["per_image"]) for row in rows])
    groups, prompts = clip.shape
    drawn = np.random.default_rng(0).integers(groups, size=(DRAWS, groups, prompts))
    place = np.arange(prompts)
    return Scored(
        float(clip.mean()),
        _frechet(features.reshape(-1, features.shape[-1])),
        np.array([clip[take, place].mean() for take in drawn]),
        np.array([_frechet(features[take, place].reshape(-1, features.shape[-1])) for take in drawn]),
        groups,
    )


def _features(row: Row) -> NDArray[np.float64]:
    pictures = []
    for image in row.result.images:
        with Image.open(row.image_path(image)) as picture:
            pictures.append(picture.convert("RGB"))
    network = load_features(EVALUATION_MODEL)
    with torch.no_grad():
        found = torch.cat([network(batch) for batch in batches(pictures, 64)])
    return found.double().numpy()


@cache
def _reference() -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Mean, root of the covariance, and its trace."""
    held = load_reference(REFERENCE, load_features(EVALUATION_MODEL), batch_size=64)
    n = int(held.num_samples)
    mean = held.feature_sum.double().numpy() / n
    covariance = (held.feature_outer_sum.double().numpy() - n * np.outer(mean, mean)) / (n - 1)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return mean, root, float(np.trace(covariance))


def _frechet(features: NDArray[np.float64]) -> float:
    mean, root, trace = _reference()
    covariance = np.cov(features, rowvar=False)
    crossed = np.sqrt(np.linalg.eigvalsh(root @ covariance @ root).clip(min=0)).sum()
    return float(((features.mean(axis=0) - mean) ** 2).sum() + np.trace(covariance) + trace - 2 * crossed)
