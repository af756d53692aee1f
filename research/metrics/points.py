"""Distances of generated points to those of the data, for models of points."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.checks import check_whole_number
from research.errors import ConfigError
from research.metrics.base import Metric, MetricResult, check_count, comparable, library_versions

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

_KEY = "metrics.points"
_DEFINITION = (
    "Wasserstein-1 distance of projections on fixed directions, mean over them; energy distance as scipy defines it"
)


class PointDistances(Metric):
    """``sliced_wasserstein`` and ``energy_distance`` of generated points to reference points; 0 is the same distribution.

    The first (Rabin et al. 2011) is the mean over fixed random directions of `scipy.stats.wasserstein_distance` of the
    projections, in the unit of the points. The second (Szekely and Rizzo 2013) is ``sqrt(2 E|X-Y| - E|X-X'| - E|Y-Y'|)``, as
    `scipy.stats.energy_distance` in one dimension, with all pairs. Both are above 0 for finite samples of one distribution too:
    compare jobs of as many points.

    Args:
        reference: points [M, d]: an array, a tensor or a list, or a file: ``.npy``, or ``.csv`` without a header.
        projections: how many directions.
    """

    name = "points"

    def __init__(self, reference: Any, projections: int = 128) -> None:
        self.reference, self.projections = reference, projections
        self._points: Tensor | None = None

    def check(self, *, n_images: int) -> None:
        """Raises ConfigError for a bad setting, a reference that is none, or fewer than 2 points."""
        check_whole_number(f"{_KEY}.projections", self.projections, least=1)
        check_count(_KEY, n_images, 2)
        if isinstance(self.reference, str | Path) and not Path(self.reference).expanduser().is_file():
            raise ConfigError(
                f"{_KEY}.reference: no file {str(self.reference)!r}; accepted is a .npy or .csv file of points."
            )

    def compute(
        self, images: Sequence[Image.Image], prompts: Sequence[str] = (), *, device: str | torch.device = "cpu"
    ) -> MetricResult:
        """Scores the points that pictures hold.

        Raises:
            ConfigError: see `check`; or pictures hold no points, or points of another dimension than the reference's.
        """
        import torch
        from scipy.stats import wasserstein_distance

        from research.points import points_of

        self.check(n_images=len(images))
        points, reference = points_of(images, _KEY), self._reference()
        if points.shape[1] != reference.shape[1]:
            raise ConfigError(
                f"{_KEY}.reference: holds points in {reference.shape[1]} dimensions; accepted are the model's {points.shape[1]}."
            )
        directions = torch.randn(
            (self.projections, points.shape[1]), generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        directions = directions / directions.norm(dim=1, keepdim=True)
        pairs = zip((points @ directions.T).T.numpy(), (reference @ directions.T).T.numpy(), strict=True)
        sliced = sum(float(wasserstein_distance(mine, theirs)) for mine, theirs in pairs) / self.projections
        between = torch.cdist(points, reference).mean()
        squared = 2 * between - torch.cdist(points, points).mean() - torch.cdist(reference, reference).mean()
        content = hashlib.sha256(reference.contiguous().numpy().tobytes()).hexdigest()
        return MetricResult(
            {"sliced_wasserstein": sliced, "energy_distance": float(squared.clamp(min=0).sqrt())},
            {
                "definition": _DEFINITION,
                "n_images": len(points),
                "reference_sha256": content,
                "n_reference": len(reference),
                "projections": self.projections,
                "better": "lower",
                "bounds": [0, None],
                "comparable": comparable(_DEFINITION, content, self.projections, len(points)),
                "versions": library_versions("scipy", "torch"),
            },
        )

    def _reference(self) -> Tensor:
        if self._points is None:
            import numpy as np
            import torch

            given: Any = self.reference
            try:
                if isinstance(given, str | Path):
                    file = Path(given).expanduser()
                    given = np.load(file) if file.suffix == ".npy" else np.loadtxt(file, delimiter=",", ndmin=2)
                found = torch.as_tensor(given).detach().double().cpu()
            except (OSError, ValueError, TypeError, RuntimeError) as error:
                raise ConfigError(f"{_KEY}.reference: {self.reference!s:.80} cannot be read: {error}") from error
            if found.ndim != 2 or len(found) < 2 or not torch.isfinite(found).all():
                raise ConfigError(
                    f"{_KEY}.reference: found the shape {list(found.shape)}; accepted are finite points [M, d], 2 or more."
                )
            self._points = found
        return self._points
