"""How often the project's intervals hold the truth: `python benchmarks/coverage.py [--cases 4000]`.

Means of numbers of several shapes, of units by themselves and of units with several images each (equal or unequal in number),
where images of a unit are alike (intra-class correlation 0.6, as CLIP scores of one prompt are). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from research.statistics import mean

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Array]

# each draws n numbers; the true mean stands beside it
SHAPES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.standard_normal(n), 0.0),
    "heavy tails (t, 5)": (lambda rng, n: rng.standard_t(5, n), 0.0),
    "bounded, near its end (beta 5, 1)": (lambda rng, n: rng.beta(5, 1, n), 5 / 6),
    "skewed (exponential)": (lambda rng, n: rng.exponential(1.0, n), 1.0),
    "two peaks, one unit in five": (lambda rng, n: (rng.random(n) < 0.2) * 3 + rng.normal(0, 0.5, n), 0.6),
}
ALIKE = 0.6  # of an image's variance what its unit has
CLUSTERS: dict[str, Callable[[np.random.Generator, int], NDArray[np.intp]] | None] = {
    "one image a unit": None,
    "4 images a unit": lambda rng, n: np.full(n, 4),
    "1 to 8 images a unit": lambda rng, n: rng.integers(1, 9, n),
}
UNITS = (8, 16, 32, 128, 500)


def covered(shape: str, clusters: str, n: int, cases: int, seed: int = 0) -> float:
    """The share of intervals with the truth in them.

    Args:
        n: units.
        cases: samples that are drawn.
    """
    rng = np.random.default_rng([seed, n, cases])
    draw, truth = SHAPES[shape]
    sizes_of = CLUSTERS[clusters]
    deviation = float(np.std(draw(np.random.default_rng(1), 100_000)))
    spread = deviation * float(np.sqrt((1 - ALIKE) / ALIKE))
    hits = 0
    for _ in range(cases):
        values, units = draw(rng, n), None
        if sizes_of is not None:
            sizes = sizes_of(rng, n)
            units = np.repeat(np.arange(n), sizes)
            # a unit's own number, and what its images add: noise of the same kind of spread
            values = values[units] + rng.normal(0, spread, len(units))
        found = mean(values, None if units is None else units.tolist())
        hits += found is not None and found.low <= truth <= found.high
    return hits / cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=4000, help="samples a cell; 4000 are off by 0.34 % at 95")
    cases = parser.parse_args().cases
    print("| numbers | images | " + " | ".join(f"n = {n}" for n in UNITS) + " |")
    print("|---|---|" + "---|" * len(UNITS))
    for shape in SHAPES:
        for clusters in CLUSTERS:
            cells = [f"{100 * covered(shape, clusters, n, cases):.1f}" for n in UNITS]
            print(f"| {shape} | {clusters} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
