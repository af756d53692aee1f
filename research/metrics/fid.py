"""Fréchet distance between the features of generated and of real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError
from research.lazy import uncollected
from research.metrics.base import MetricResult, check_whole, library_versions
from research.metrics.inception import INCEPTION, check_inception
from research.metrics.locate import locate_clip, locate_reference

if TYPE_CHECKING:
    import torch
    from PIL import Image


class FID:
    """Fréchet distance (``fid``) with torchmetrics' arithmetic, in any feature space.

    It is biased upward at small counts: compare only numbers of equal counts, features and reference.

    Args:
        features: whose features: a zoo name, a directory or a hub id of a CLIPModel, or ``inception``.
        reference: statistics that ship with the zoo by name, a file of statistics, or a directory of images.
        batch_size: images at a time; values agree across batch sizes to a relative 1e-3.
    """

    name = "fid"

    def __init__(self, features: str = "emoji-eval", reference: str = "emoji", batch_size: int = 64) -> None:
        self.features = features
        self.reference = reference
        self.batch_size = batch_size

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for unknown features or reference, a missing extra, or fewer than 2 images."""
        check_whole("metrics.fid.batch_size", self.batch_size)
        if self.features == INCEPTION:
            check_inception("metrics.fid.features")
        else:
            locate_clip(self.features, "metrics.fid.features")
        locate_reference(self.reference, "metrics.fid.reference")
        if n_images < 2:
            raise ConfigError(
                f"metrics.fid: found {n_images} image{'s' * (n_images != 1)}; accepted is at least 2 "
                "(more prompts, or a larger images_per_prompt; metrics=clip_score scores single images)."
            )

    def compute(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str] = (),
        *,
        device: str | torch.device = "cpu",
    ) -> MetricResult:
        """Scores images as a set; prompts play no part."""
        self.check(n_images=len(images))
        return self.conclude(self.add_up(images, device=device), device=device)

    def add_up(self, images: Sequence[Image.Image], *, device: str | torch.device = "cpu") -> Any:
        """Sums over images, of which several processes may take a part each; see `parts` and `conclude`."""
        with uncollected():
            from torchmetrics.image.fid import FrechetInceptionDistance

        from research.metrics.features import load_features
        from research.metrics.images import batches

        # a fresh accumulator each time: one job's images never enter the next job's score
        distance = FrechetInceptionDistance(feature=load_features(self.features, device=device))
        for batch in batches(images, self.batch_size):
            distance.update(batch, real=False)
        return distance

    def parts(self, sums: Any) -> tuple[torch.Tensor, ...]:
        """What of the sums of several processes is to be added, in place: of the features ``[D]`` and of their outer products
        ``[D, D]``, in float64, and the number of images."""
        return sums.fake_features_sum, sums.fake_features_cov_sum, sums.fake_features_num_samples

    def conclude(self, sums: Any, *, device: str | torch.device = "cpu") -> MetricResult:
        """The distance, from the sums of one image or more."""
        import torch

        from research.metrics.features import load_features
        from research.metrics.reference import load_reference

        features = load_features(self.features, device=device)
        reference = load_reference(self.reference, features, batch_size=self.batch_size)
        distance, n_images = sums, int(sums.fake_features_num_samples)
        distance.real_features_sum = reference.feature_sum.clone()
        distance.real_features_cov_sum = reference.feature_outer_sum.clone()
        distance.real_features_num_samples = torch.tensor(reference.num_samples)
        dimension = features.num_features
        warnings = [
            f"fid: {count} {what} for {dimension} features: covariance not of full rank, value biased upward"
            for count, what in ((n_images, "images"), (reference.num_samples, "reference images"))
            if count <= dimension
        ]
        info = {
            "features": features.provenance,
            "reference": reference.info,
            "n_images": n_images,
            "versions": library_versions("torch", "torchmetrics", "transformers", "pillow"),
            "warnings": warnings,
        }
        return MetricResult({"fid": float(distance.compute())}, info)
