"""Which direction of a metric is better, by its name, so that a metric added tomorrow is ranked, drawn and marked right; and the
jobs that no other beats in every direction (the Pareto front)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LABELS = {
    "clip_score": "CLIP score",
    "fid": "FID",
    "kid": "KID",
    "cmmd": "CMMD",
    "fid_infinity": "FID∞",
    "fid_inf": "FID∞",
    "inception_score": "Inception Score",
    "precision": "precision",
    "recall": "recall",
    "lpips": "LPIPS",
    "prdc": "precision, recall, density, coverage",
    "ssim": "SSIM",
    "psnr": "PSNR",
    "clip_directional": "CLIP directional",
}
# by words of the name, the first that is found: a distance to something is a distance, whatever it is measured with
_LOWER = (
    "distance",
    "wasserstein",
    "error",
    "mse",
    "rmse",
    "mae",
    "fid",
    "fd",
    "kid",
    "cmmd",
    "mmd",
    "lpips",
    "dists",
    "frechet",
    "perceptual",
)
_HIGHER = (
    *("clip", "ssim", "psnr", "precision", "recall", "density", "coverage", "inception", "aesthetic", "preference"),
    *("similarity", "accuracy", "score", "pick", "reward", "hps", "dino", "order"),
)
_NEITHER = ("std", "bias", "seconds", "count", "samples")
# numbers that say how sure another one is: <metric>_se and its kin are no metrics of their own
_COMPANIONS = re.compile(
    r"_(se|std|sd|sem|lo|hi|low|high|lower|upper|ci|ci_low|ci_high|ci_lo|ci_hi|ci95_low|ci95_high)$"
)


def direction(key: str, info: Mapping[str, Any] | None = None) -> int:
    """+1 if higher is better, -1 if lower is, 0 if neither can be said.

    What the metric says of itself (``better: higher | lower`` or ``higher_is_better`` in its info) counts more than its name.
    """
    said = (info or {}).get("better", (info or {}).get("higher_is_better"))
    if isinstance(said, bool):
        return 1 if said else -1
    if said in ("higher", "lower"):
        return 1 if said == "higher" else -1
    words = re.split(r"[^a-z]+", key.lower())
    for direction_, names in ((0, _NEITHER), (-1, _LOWER), (1, _HIGHER)):
        if any(name in words for name in names):
            return direction_
    return 0


def is_companion(key: str, keys: object) -> bool:
    """Whether a number belongs to another of `keys`: its standard error, or an end of its interval."""
    base = _COMPANIONS.sub("", key)
    return base != key and base in keys  # type: ignore[operator]


def label(key: str) -> str:
    """A metric's name in words."""
    if key in LABELS:
        return LABELS[key]
    words = key.split("_")
    known = {
        "fid": "FID",
        "kid": "KID",
        "fd": "FD",
        "cmmd": "CMMD",
        "clip": "CLIP",
        "dinov2": "DINOv2",
        "lpips": "LPIPS",
    }
    return " ".join(known.get(word, {"ssim": "SSIM", "psnr": "PSNR", "mse": "MSE"}.get(word, word)) for word in words)


def front(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Places of the points that no other is at least as good as in every coordinate and better in one; less is better.

    Equal points are on it together. O(n²) in the worst case, over points sorted so that most are met by a beater early.
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    kept: list[int] = []
    for i in order:
        if not any(_beats(points[j], points[i]) for j in kept):
            kept.append(i)
    return sorted(kept)


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
