"""Fréchet distance between the features of generated and of real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from research.errors import ConfigError
from research.metrics.base import AdditiveMetric, MetricResult
from research.metrics.saved_features import are_saved
from research.metrics.set_metric import SetMetric

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from research.metrics.reference import Sums

DEFINITION = "Frechet distance of Gaussians (arXiv:1706.08500), unbiased covariances"
_LEAST_FOR_BIAS = 8


class FID(SetMetric, AdditiveMetric["Sums"]):
    """Fréchet distance (``fid``) in any feature space: torchmetrics' number, in float64 to the end.

    It is biased upward at small counts: compare only numbers of equal counts, features and reference. Where the images are fewer
    than ten times the features, the record says by about how much (``bias_estimate``, from the distances at n and n / 2), and
    ``<name>_se`` stands beside the number: how far it would move with other images, by the jackknife.

    Args:
        features: whose features: a zoo name, a directory or a hub id of a CLIPModel or a vision transformer (DINOv2),
            ``inception`` (as FID is in papers), ``inception-antialiased`` or ``efficientnet``.
        reference: statistics that ship with the zoo by name, a file of ``research-reference``, or a directory of images.
        batch_size: images at a time; values agree across batch sizes to a relative 1e-3.
        name: how the number is called, for distances in several feature spaces: ``fd_dinov2``.
        extrapolate: also give ``<name>_infinity``, the distance extrapolated to unlimited images (arXiv:1911.07023). Wants more
            images than features, twice as many at least; all their features are held in memory.
        keep_features: leave the images' features in the job's folder, for comparisons that resample them; up to 64 MiB.
    """

    name = "fid"

    def __init__(
        self,
        features: str = "emoji-eval",
        reference: str = "emoji",
        batch_size: int = 64,
        name: str = "fid",
        extrapolate: bool = False,
        keep_features: bool = True,
    ) -> None:
        super().__init__(features, reference, batch_size, name, keep_features)
        self.extrapolate = extrapolate

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for unknown features or reference, a missing extra, or fewer than 2 images."""
        if not isinstance(self.extrapolate, bool):
            raise ConfigError(f"{self.key}.extrapolate: found {self.extrapolate!r}; accepted is true or false.")
        if n_images >= 2:
            super().check(n_images=n_images)
            return
        super().check(n_images=2)
        raise ConfigError(
            f"{self.key}: found {n_images} image{'s' * (n_images != 1)}; accepted is at least 2 "
            "(more prompts, or a larger images_per_prompt; metrics=clip_score scores single images)."
        )

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str] = (), *, device: str | torch.device = "cpu"
    ) -> MetricResult:
        """Scores images as a set; prompts play no part."""
        self.check(n_images=len(images))
        return self.conclude(self.add_up(images, device=device), device=device)

    def add_up(
        self,
        images: Sequence[Image.Image],
        *,
        device: str | torch.device = "cpu",
        rows: Sequence[int] | None = None,
        total: int | None = None,
    ) -> Sums:
        """Sums over images, of which several processes may take a part each; see `parts` and `conclude`.

        Args:
            rows, total: of a part: where its images stand among how many.
        """
        from research.metrics.extractors.base import extract
        from research.metrics.extractors.load import load_features
        from research.metrics.reference import Sums, chosen

        features = load_features(self.features, device=device, key=f"{self.key}.features")
        count = len(images) if total is None else total
        all_vectors = self.extrapolate or are_saved(count, features.num_features)
        # fresh sums each time: one job's images never enter the next job's score
        sums = Sums(features.num_features, chosen(len(images), len(images) if all_vectors else 0))
        sums.size = images[0].size if len(images) else None
        for vectors in extract(images, features, self.batch_size):
            sums.add(vectors)
        if rows is not None and all_vectors:
            sums.spread(rows, count)
        return sums

    def parts(self, sums: Sums) -> tuple[torch.Tensor, ...]:
        """What of the sums of several processes is to be added, in place: of the features ``[D]`` and of their outer products
        ``[D, D]``, in float64, the number of images, and the features of all images ``[N, D]`` where they are kept."""
        return sums.feature_sum, sums.outer_sum, sums.count, *(sums.vector_parts if sums.is_spread else ())

    @staticmethod
    def _quick(n_images: int, dimension: int) -> bool:
        """Whether the bias matters, and can be estimated within seconds."""
        small = n_images <= dimension or dimension <= 1024
        return small and _LEAST_FOR_BIAS <= n_images < 10 * dimension

    def conclude(self, sums: Sums, *, device: str | torch.device = "cpu") -> MetricResult:
        """The distance, from the sums of one image or more."""
        from research.metrics.frechet import Gaussian, bias_at, extrapolated, frechet_distance, standard_error

        features, reference = self.load(device)
        n_images, dimension = int(sums.count), features.num_features
        ours = Gaussian.of_sums(sums.feature_sum, sums.outer_sum, n_images)
        values = {self.name: frechet_distance(ours, reference.gaussian)}
        vectors = sums.vectors if sums.vectors is not None and len(sums.vectors) == n_images else None
        bias = None
        if vectors is not None and self._quick(n_images, dimension):
            bias = bias_at(vectors, reference.gaussian)
        if vectors is not None and n_images >= _LEAST_FOR_BIAS and dimension <= 1024:
            values[f"{self.name}_se"] = standard_error(vectors, reference.gaussian)
        warnings = [
            f"{self.name}: {count} {what} for {dimension} features: covariance not of full rank, value biased upward{more}"
            for count, what, more in (
                (n_images, "images", "" if bias is None else f", by roughly {bias:.3g} of {values[self.name]:.3g}"),
                (reference.num_samples, "reference images", ""),
            )
            if count <= dimension
        ]
        if self.extrapolate:
            if vectors is None:
                warnings.append(f"{self.name}_infinity: left out, as not all features were kept")
            elif n_images < 2 * dimension:
                warnings.append(
                    f"{self.name}_infinity: left out, {n_images} images for {dimension} features; it wants at least twice as many"
                )
            else:
                values[f"{self.name}_infinity"] = extrapolated(vectors, reference.gaussian)
        warnings += self.other_size(sums.size, reference)
        info = self.info(DEFINITION, features, reference, n_images, warnings)
        if bias is not None:
            info["bias_estimate"] = float(f"{bias:.4g}")
            info["bias_method"] = "distance at n/2 less distance at n, 4 random halvings"
        return MetricResult(values, info, self.saved_features(vectors, features))
