"""Scores of several jobs together, with intervals that hold what other seeds would change.

The prompts are the study's own and stay: each has a picture a group of seeds, and it is these that are drawn. Intervals are the
project's own over seeds (`research.statistics`, stratified by prompts): of CLIP scores that of a stratified mean, of FID the
jackknife that leaves out as many pictures of every prompt, the same ones of every method: one seed is one start noise, so that
differences between methods are paired. A difference is corrected for the bias of FIDs of so few pictures, which is larger where
pictures spread more.
"""

from __future__ import annotations

import math
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
from research.results.resampling import Frechet, Replicates, replicate_over
from research.statistics import SEEDS, Estimate, mean

Array = NDArray[np.float64]
EVALUATION_MODEL, REFERENCE = "emoji-eval", "emoji"


@dataclass(frozen=True)
class Scored:
    """Pooled jobs: CLIP score and FID, with what they are without some of the seeds.

    Attributes:
        clip: the mean over pictures; None for one group of seeds.
        without: the FID of all pictures, and without each share of them; None for one group of seeds.
    """

    clip_score: float
    fid: float
    clip: Estimate | None
    without: Replicates | None

    @property
    def clip_interval(self) -> float:
        """Half the width of the 95 % interval; NaN for one group of seeds."""
        return _half(self.clip)

    @property
    def fid_interval(self) -> float:
        return _half(None if self.without is None else self.without.estimate())

    def fid_against(self, other: Scored) -> tuple[float, float]:
        """The difference of the FIDs, corrected for bias, and half its 95 % interval."""
        found = None if self.without is None or other.without is None else self.without.less(other.without)
        return (self.fid - other.fid, math.nan) if found is None else (found.value, _half(found))


def _half(found: Estimate | None) -> float:
    return math.nan if found is None else (found.high - found.low) / 2


def score(rows: list[Row]) -> Scored:
    """Score jobs of the same prompts that differ in their seeds alone."""
    rows = sorted(rows, key=lambda row: int(row.settings["seed"]))
    return pooled(
        np.stack([_features(row) for row in rows]),
        np.stack([np.array(row.result.metrics_info["clip_score"]["per_image"], dtype=np.float64) for row in rows]),
        _reference(),
    )


def pooled(features: Array, clip: Array, reference: tuple[Array, Array]) -> Scored:
    """Scores of pictures, one a group of seeds and prompt.

    Args:
        features: [groups, prompts, D].
        clip: [groups, prompts].
        reference: mean [D] and covariance [D, D].
    """
    groups, prompts = clip.shape
    names = [f"{place:05d}" for _ in range(groups) for place in range(prompts)]
    vectors = features.reshape(-1, features.shape[-1])
    distance = Frechet(vectors, *reference)
    whole = distance.without(np.empty(0, dtype=np.intp))
    if groups < 2:
        return Scored(float(clip.mean()), whole, None, None)
    found = replicate_over(SEEDS, names, [distance], [np.arange(len(names))], size=min(vectors.shape))
    return Scored(float(clip.mean()), whole, mean(clip.ravel(), strata=names), found)


def _features(row: Row) -> Array:
    pictures = []
    for image in row.result.images:
        with Image.open(row.image_path(image)) as picture:
            pictures.append(picture.convert("RGB"))
    network = load_features(EVALUATION_MODEL)
    with torch.no_grad():
        found = torch.cat([network(batch) for batch in batches(pictures, 64)])
    return found.double().numpy()


@cache
def _reference() -> tuple[Array, Array]:
    """Mean and covariance."""
    held = load_reference(REFERENCE, load_features(EVALUATION_MODEL), batch_size=64).gaussian
    return held.mean.numpy(), held.covariance.numpy()
