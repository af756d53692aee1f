"""Kernel distances between the features of generated and of real images: KID and CMMD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from research.caches import MIB, Cache
from research.checks import check_choice, check_number, check_whole_number
from research.errors import ConfigError
from research.metrics.base import MetricResult
from research.metrics.set_metric import SetMetric

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from research.metrics.reference import Reference

_within = Cache("kernel sums", MIB)  # of references, which many jobs are compared with


class KID(SetMetric):
    """Kernel inception distance (arXiv:1801.01401) in any feature space: the unbiased MMD^2 with the kernel ``(x.y/D + 1)^3``.

    By default it is the estimate over all images at once, with its standard error ``kid_se`` over the generated images: as
    unbiased as the mean over subsets that papers report, and less noisy. It may come out below 0. It is not scaled.

    Args:
        features, reference, batch_size, name, keep_features: see `SetMetric`.
        subset_size: as papers do it: the mean over random subsets of so many of both sets, with their deviation ``kid_std``.
        subsets: how many.
        seed: of the subsets.
    """

    name = "kid"

    def __init__(
        self,
        features: str = "emoji-eval",
        reference: str = "emoji",
        batch_size: int = 64,
        subset_size: int | None = None,
        subsets: int = 100,
        seed: int = 0,
        name: str = "kid",
        keep_features: bool = True,
    ) -> None:
        super().__init__(features, reference, batch_size, name, keep_features)
        self.subset_size, self.subsets, self.seed = subset_size, subsets, seed

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for a bad setting, too few images, or fewer of them than a subset has."""
        super().check(n_images=n_images)
        check_whole_number(f"{self.key}.subsets", self.subsets, least=1)
        check_whole_number(f"{self.key}.seed", self.seed, least=0)
        if self.subset_size is not None:
            check_whole_number(f"{self.key}.subset_size", self.subset_size, least=2)
            self._fits(n_images, "images")

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str] = (), *, device: str | torch.device = "cpu"
    ) -> MetricResult:
        """Scores images as a set; prompts play no part."""
        self.check(n_images=len(images))
        features, reference = self.load(device)
        real = reference.all_vectors(f"{self.key}.reference")
        vectors = self.vectors(images, features)
        if self.subset_size is None:
            values, settings = self._over_all(vectors, reference), {"estimator": "unbiased, all images"}
        else:
            self._fits(len(real), "reference images")
            values = self._subsets(vectors, real, self.subset_size)
            settings = {
                "estimator": f"unbiased, mean over {self.subsets} subsets of {self.subset_size}, seed {self.seed}"
            }
        definition = "KID (arXiv:1801.01401): MMD^2, kernel (x.y/D + 1)^3, not scaled"
        warnings = self.other_size(images[0].size, reference)
        info = self.info(definition, features, reference, len(images), warnings, **settings)
        return MetricResult(values, info, self.saved_features(vectors, features))

    def _fits(self, count: int, what: str) -> None:
        if self.subset_size is not None and self.subset_size > count:
            raise ConfigError(
                f"{self.key}.subset_size: found {self.subset_size} with {count} {what}; accepted is at most as many, "
                "or null for the estimate over all."
            )

    def _over_all(self, vectors: Tensor, reference: Reference) -> dict[str, float]:
        from research.metrics.mmd import discrepancy, polynomial, within

        real, kernel = reference.all_vectors(f"{self.key}.reference"), polynomial(vectors.shape[1])
        known = _within.get((reference.vectors_sha256, "kid"), lambda: within(real, kernel), 16)
        found = discrepancy(vectors, real, kernel, known)
        return _with_error(self.name, found.unbiased, found.se)

    def _subsets(self, vectors: Tensor, real: Tensor, size: int) -> dict[str, float]:
        import torch

        from research.metrics.mmd import discrepancy, polynomial

        generator = torch.Generator().manual_seed(self.seed)
        kernel = polynomial(vectors.shape[1])
        found = []
        for _ in range(self.subsets):
            ours = vectors[torch.randperm(len(vectors), generator=generator)[:size]]
            theirs = real[torch.randperm(len(real), generator=generator)[:size]]
            found.append(discrepancy(ours, theirs, kernel).unbiased)
        spread = torch.tensor(found, dtype=torch.float64)
        return {self.name: float(spread.mean()), f"{self.name}_std": float(spread.std(unbiased=False))}


class CMMD(SetMetric):
    """CLIP maximum mean discrepancy (arXiv:2401.09603): MMD^2 of normalised CLIP embeddings with a Gaussian kernel, times 1000.

    The paper's code computes the biased estimate, which at small counts is mostly bias; the unbiased one is the default here.

    Args:
        features, reference, batch_size, name, keep_features: see `SetMetric`; papers use ``openai/clip-vit-large-patch14-336``.
        estimator: ``unbiased``, or ``biased`` as in the paper's code.
        bandwidth: of the kernel.
    """

    name = "cmmd"

    def __init__(
        self,
        features: str = "emoji-eval",
        reference: str = "emoji",
        batch_size: int = 64,
        estimator: str = "unbiased",
        bandwidth: float = 10.0,
        name: str = "cmmd",
        keep_features: bool = True,
    ) -> None:
        super().__init__(features, reference, batch_size, name, keep_features)
        self.estimator, self.bandwidth = estimator, bandwidth

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for a bad setting, unknown features or reference, or too few images."""
        super().check(n_images=n_images)
        check_choice(f"{self.key}.estimator", self.estimator, ("unbiased", "biased"))
        check_number(f"{self.key}.bandwidth", self.bandwidth, above=0)

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str] = (), *, device: str | torch.device = "cpu"
    ) -> MetricResult:
        """Scores images as a set; prompts play no part."""
        from torch.nn.functional import normalize

        from research.metrics.mmd import discrepancy, gaussian, within

        self.check(n_images=len(images))
        features, reference = self.load(device)
        real = normalize(reference.all_vectors(f"{self.key}.reference").double(), dim=1)
        vectors = self.vectors(images, features)
        kernel = gaussian(self.bandwidth)
        known = _within.get((reference.vectors_sha256, "cmmd", self.bandwidth), lambda: within(real, kernel), 16)
        found = discrepancy(normalize(vectors.double(), dim=1), real, kernel, known)
        definition = (
            f"CMMD (arXiv:2401.09603): 1000 x MMD^2 of normalised features, Gaussian kernel of {self.bandwidth:g}"
        )
        warnings = self.other_size(images[0].size, reference)
        info = self.info(definition, features, reference, len(images), warnings, estimator=self.estimator)
        values = (
            {self.name: 1000 * found.biased}
            if self.estimator == "biased"
            else _with_error(self.name, 1000 * found.unbiased, 1000 * found.se)
        )
        return MetricResult(values, info, self.saved_features(vectors, features))


def _with_error(name: str, value: float, se: float) -> dict[str, float]:
    return {name: value} if math.isnan(se) else {name: value, f"{name}_se": se}
