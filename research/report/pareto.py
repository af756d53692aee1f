"""The Pareto front: what nothing else beats on every count."""

from __future__ import annotations

from collections.abc import Sequence


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
