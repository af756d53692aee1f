"""Fidelity and diversity apart: precision, recall, density and coverage of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from research.checks import check_whole_number
from research.errors import ConfigError
from research.metrics.base import MetricResult, check_count
from research.metrics.set_metric import SetMetric

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

DEFINITION = (
    "improved precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797), k-th neighbours"
)
_BLOCK = 1024
_EXACT = 2_000_000_000  # differences to take one by one; more are taken by matrix products


class PRDC(SetMetric):
    """``precision`` and ``recall`` (arXiv:1904.06991, eq. 1 and 2), ``density`` and ``coverage`` (arXiv:2002.09797, eq. 3 and 4).

    A ball around each real image reaches to its k-th nearest real neighbour; its edge belongs to it for precision and recall,
    and not for density and coverage, as in the authors' codes (it matters where images are there twice). Precision: part of the
    generated images in any ball. Density: the same, counted by how many balls, over k. Coverage: part of the balls with a
    generated image in them. Recall: part of the real images in a ball of a generated one. Recall needs as many generated images
    as real ones to mean much, so the larger set is cut to the size of the smaller (drawn by ``seed``), unless ``balance`` is
    false.

    Args:
        features, reference, batch_size, name, keep_features: see `SetMetric`; another ``name`` than prdc stands before the
            numbers' own.
        k: neighbours; 5 as in the second paper, the first has 3.
        balance: compare equally many images.
        seed: of the draw of the larger set.
    """

    name = "prdc"

    def __init__(
        self,
        features: str = "emoji-eval",
        reference: str = "emoji",
        batch_size: int = 64,
        k: int = 5,
        balance: bool = True,
        seed: int = 0,
        name: str = "prdc",
        keep_features: bool = True,
    ) -> None:
        super().__init__(features, reference, batch_size, name, keep_features)
        self.k, self.balance, self.seed = k, balance, seed

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for a bad setting, or fewer images than have k neighbours."""
        super().check(n_images=max(n_images, 2))
        check_whole_number(f"{self.key}.k", self.k, least=1)
        check_whole_number(f"{self.key}.seed", self.seed, least=0)
        check_count(self.key, n_images, self.k + 1)

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str] = (), *, device: str | torch.device = "cpu"
    ) -> MetricResult:
        """Scores images as a set; prompts play no part."""
        self.check(n_images=len(images))
        features, reference = self.load(device)
        real = reference.all_vectors(f"{self.key}.reference")
        vectors = self.vectors(images, features)
        if len(real) <= self.k:
            raise ConfigError(
                f"{self.key}.k: found {self.k} with {len(real)} reference images; accepted is fewer than there are."
            )
        ours, real = self._balanced(vectors, real)
        warnings = self.other_size(images[0].size, reference)
        if len(ours) < 10 * self.k:
            warnings.append(
                f"{self.name}: {len(ours)} images for neighbourhoods of {self.k}: all four numbers are rough"
            )
        info = self.info(
            DEFINITION,
            features,
            reference,
            len(images),
            warnings,
            k=self.k,
            real=len(real),
            generated=len(ours),
            seed=self.seed,
        )
        values = prdc(ours, real, self.k)
        if self.name != "prdc":
            values = {f"{self.name}_{key}": value for key, value in values.items()}
        return MetricResult(values, info, self.saved_features(vectors, features))

    def _balanced(self, ours: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        if not self.balance or len(ours) == len(real):
            return ours, real
        generator, count = torch.Generator().manual_seed(self.seed), min(len(ours), len(real))
        drawn = [v if len(v) == count else v[torch.randperm(len(v), generator=generator)[:count]] for v in (ours, real)]
        return drawn[0], drawn[1]


def prdc(generated: Tensor, real: Tensor, k: int) -> dict[str, float]:
    """The four numbers of vectors [N, D] and [M, D], each set with more than k; blocks of distances, never all at once."""
    import torch

    # about the middle, where products of vectors lose least
    middle = real.double().mean(0)
    generated, real = generated.double() - middle, real.double() - middle
    exact = max(len(generated), len(real)) ** 2 * real.shape[1] <= _EXACT
    reach_real, reach_generated = _kth(real, k, exact), _kth(generated, k, exact)
    open_reach = reach_real * (1 - 2 * _hair(exact))  # without the edge
    inside = balls = 0
    recalled = torch.zeros(len(real), dtype=torch.bool)
    nearest = torch.full((len(real),), torch.inf, dtype=torch.float64)
    for start in range(0, len(generated), _BLOCK):
        distances = _distances(generated[start : start + _BLOCK], real, exact)
        within = distances <= reach_real[None]
        inside += int(within.any(1).sum())
        balls += int((distances < open_reach[None]).sum())
        recalled |= (distances <= reach_generated[start : start + _BLOCK, None]).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
    return {
        "precision": inside / len(generated),
        "recall": float(recalled.double().mean()),
        "density": balls / (k * len(generated)),
        "coverage": float((nearest < open_reach).double().mean()),
    }


def _distances(x: Tensor, y: Tensor, exact: bool) -> Tensor:
    import torch

    # by products it is many times faster, but a vector then lies at a little distance from itself
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
    return torch.cdist(x, y, compute_mode=mode)


def _kth(vectors: Tensor, k: int, exact: bool) -> Tensor:
    """The distance of each vector to its k-th nearest other one, and a hair more, so that the edge is inside."""
    import torch

    found = []
    for block in vectors.split(_BLOCK):
        # the nearest is the vector itself
        found.append(_distances(block, vectors, exact).kthvalue(k + 1, dim=1).values)
    return torch.cat(found) * (1 + _hair(exact))


def _hair(exact: bool) -> float:
    """How far distances that are equal may lie apart by rounding, relatively."""
    return 1e-12 if exact else 1e-7
