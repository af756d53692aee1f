"""What metrics of a set of images share: features of the images, those of a reference, and the record of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from research.checks import check_whole_number
from research.metrics.base import Metric, check_count, check_name, comparable, library_versions
from research.metrics.extractors.find import find_features, find_reference
from research.metrics.saved_features import SavedFeatures, are_saved

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from research.metrics.extractors.base import Features
    from research.metrics.reference import Reference


class SetMetric(Metric):
    """Compares features of a job's images with those of real ones.

    Args:
        features: whose features: a zoo name, a directory or a hub id of a CLIPModel or a vision transformer (DINOv2),
            ``inception`` (as FID is in papers), ``inception-antialiased`` or ``efficientnet``.
        reference: statistics that ship with the zoo by name, a file of ``research-reference``, or a directory of images.
        batch_size: images at a time.
        name: how the number is called, where a job has several of a kind.
        keep_features: leave the images' features in the job's folder, for comparisons that resample them.
    """

    least = 2

    def __init__(self, features: str, reference: str, batch_size: int, name: str, keep_features: bool) -> None:
        self.features, self.reference, self.batch_size = features, reference, batch_size
        self.name, self.keep_features = name, keep_features

    @property
    def key(self) -> str:
        return f"metrics.{self.name}"

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for a bad setting, unknown features or reference, a missing extra, or too few images."""
        check_name(f"{self.key}.name", self.name)
        check_whole_number(f"{self.key}.batch_size", self.batch_size, least=1)
        find_features(self.features, f"{self.key}.features")
        find_reference(self.reference, f"{self.key}.reference")
        check_count(self.key, n_images, self.least)

    def load(self, device: str | torch.device) -> tuple[Features, Reference]:
        """The extractor and the reference.

        Raises:
            ConfigError: one cannot be read, or they do not belong together.
        """
        from research.metrics.extractors.load import load_features
        from research.metrics.reference import load_reference

        features = load_features(self.features, device=device, key=f"{self.key}.features")
        reference = load_reference(self.reference, features, batch_size=self.batch_size, key=f"{self.key}.reference")
        return features, reference

    def vectors(self, images: Sequence[Image.Image], features: Features) -> Tensor:
        """Features [N, D] of all images, float32 on the CPU."""
        import torch

        from research.metrics.extractors.base import extract

        return torch.cat(list(extract(images, features, self.batch_size)))

    def saved_features(self, vectors: Tensor | None, features: Features) -> SavedFeatures | None:
        """What the runner is given to save."""
        if vectors is None or not self.keep_features or not are_saved(*vectors.shape):
            return None
        return SavedFeatures(vectors, features.provenance, features.config_sha256)

    def other_size(self, size: tuple[int, int] | None, reference: Reference) -> list[str]:
        """A warning for images of a size that none of the reference's has, where it says its sizes."""
        sizes = reference.sizes
        if size is None or not sizes or f"{size[0]}x{size[1]}" in sizes:
            return []
        return [
            f"{self.name}: images of {size[0]}x{size[1]} against a reference of {', '.join(sizes[:3])}: "
            "both are resized for the features, and what that blurs counts as difference"
        ]

    def info(
        self,
        definition: str,
        features: Features,
        reference: Reference,
        n_images: int,
        warnings: list[str],
        **settings: object,
    ) -> dict[str, object]:
        """The record of a number; the count is part of what makes two numbers comparable."""
        return {
            "definition": definition,
            **settings,
            "features": features.provenance,
            "reference": reference.info,
            "n_images": n_images,
            "comparable": comparable(definition, settings, features.provenance, reference.info.get("sha256"), n_images),
            "versions": library_versions("torch", "torchmetrics", "transformers", "pillow"),
            "warnings": warnings,
        }
