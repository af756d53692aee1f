"""The Fréchet distance between Gaussians, and what a finite number of images adds to it.

Everything is float64: at 2048 dimensions the traces that cancel are a million times the distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A Gaussian in feature space: ``mean`` [D] and ``covariance`` [D, D] (unbiased, divided by N - 1), float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of_sums(cls, feature_sum: Tensor, outer_sum: Tensor, count: int) -> Gaussian:
        """From the sums of N vectors [D] and of their outer products [D, D].

        Raises:
            ValueError: fewer than two vectors.
        """
        if count < 2:
            raise ValueError(f"a covariance needs 2 vectors, found {count}")
        mean = feature_sum.double() / count
        return cls(mean, (outer_sum.double() - count * torch.outer(mean, mean)) / (count - 1))

    @classmethod
    def of_features(cls, features: Tensor) -> Gaussian:
        """From vectors [N, D]."""
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(mean, centred.T @ centred / (len(features) - 1))

    @cached_property
    def root(self) -> Tensor:
        """The symmetric root of the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    @property
    def trace(self) -> float:
        return float(self.covariance.trace())


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """``|m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2))`` (Dowson and Landau 1982; FID: arXiv:1706.08500, eq. 6).

    The trace of the root is the sum of the singular values of ``C_a^(1/2) C_b^(1/2)``, which stays real and accurate where
    covariances are not of full rank.
    """
    shift = a.mean - b.mean
    crossed = torch.linalg.svdvals(a.root @ b.root).sum()
    return float(shift @ shift) + a.trace + b.trace - 2 * float(crossed)


def distance_of_features(features: Tensor, reference: Gaussian) -> float:
    """The same between the Gaussian of vectors [N, D] and another; quick for few vectors, as it takes no root of theirs."""
    count, dimension = features.shape
    if count > dimension:
        features = features.double()
        mean = features.mean(0)
        shifted = (features - mean) @ reference.root
        inner = shifted.T @ shifted / (count - 1)
    else:
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        inner = centred @ reference.covariance @ centred.T / (count - 1)
    crossed = torch.linalg.eigvalsh(inner).clamp(min=0).sqrt().sum()
    shift = mean - reference.mean
    spread = float(((features - mean) ** 2).sum()) / (count - 1)
    return float(shift @ shift) + spread + reference.trace - 2 * float(crossed)


def bias_at(features: Tensor, reference: Gaussian, *, halvings: int = 4, seed: int = 0) -> float:
    """What of a distance comes from there being only N vectors, from the distances at N and at N / 2.

    The distance falls with the count as ``d + c / N`` (arXiv:1911.07023, section 3), so that halves lie ``c / N`` above
    the whole. From N = D upward the estimate is within a third of the truth; below, where the law does not hold, it may be off by
    a factor of three and more either way.

    Args:
        features: vectors [N, D], at least 4.
        reference: of the real images.
        halvings: random halvings to average over, each of which gives two halves.
        seed: of the halvings.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(features)
    of_all, found = distance_of_features(features, reference), []
    for _ in range(halvings):
        order = torch.randperm(count, generator=generator)
        for half in (order[: count // 2], order[count - count // 2 :]):
            found.append(distance_of_features(features[half], reference))
    # exactly c / N for an even count: c / (N // 2) - c / N
    return (sum(found) / len(found) - of_all) / (count / (count // 2) - 1)


def standard_error(features: Tensor, reference: Gaussian, *, groups: int = 20, seed: int = 0) -> float:
    """Of a distance over the choice of its images: the jackknife that leaves one random group out at a time.

    From N = D upward it is right within a third, below it is too large by up to two. It says how far the number would move with
    other images, and nothing of the bias. (Leaving out repeats no image, as a bootstrap does, whose distances lie higher.)

    Args:
        features: vectors [N, D], at least 4.
        reference: of the real images.
        groups: how many; a group an image where there are fewer images.
        seed: of the groups.
    """
    count = len(features)
    groups = min(groups, count)
    group = torch.randperm(count, generator=torch.Generator().manual_seed(seed)) % groups
    found = torch.tensor(
        [distance_of_features(features[group != k], reference) for k in range(groups)], dtype=torch.float64
    )
    return math.sqrt((groups - 1) / groups * float((found - found.mean()).square().sum()))


def extrapolated(features: Tensor, reference: Gaussian, *, sizes: int = 8, draws: int = 4, seed: int = 0) -> float:
    """The distance at an unlimited count (FID-infinity, arXiv:1911.07023): a straight line through distances of subsets over 1/N.

    Args:
        features: vectors [N, D], at least 8; N well above D, or the line is none.
        reference: of the real images.
        sizes: how many subset sizes, from N / 2 to N, evenly over 1/N.
        draws: random subsets a size.
        seed: of the subsets.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(features)
    rows, distances = [], []
    for inverse in torch.linspace(1 / count, 2 / count, sizes, dtype=torch.float64).tolist():
        size = min(count, max(2, round(1 / inverse)))
        for _ in range(1 if size == count else draws):
            subset = torch.randperm(count, generator=generator)[:size]
            rows.append([1.0, 1 / size])
            distances.append(distance_of_features(features[subset], reference))
    line = torch.linalg.lstsq(
        torch.tensor(rows, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64)[:, None]
    ).solution
    return float(line[0])
