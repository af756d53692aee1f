"""How often the project's intervals hold the truth: `python benchmarks/coverage.py [--cases 4000]`.

Means of numbers of several shapes, of units by themselves and of units with several images each (equal or unequal in number),
where images of a unit are alike (intra-class correlation 0.6, as CLIP scores of one prompt are). Prints a Markdown table.

`python benchmarks/coverage.py --sets [--cases 400]`: the same of FID at 8 prompts with 16 images, whose features are alike within
prompts, for the units `research.statistics.unit_of` knows: one number, and the paired difference of two settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from research.results.resampling import Frechet, replicate_over
from research.statistics import IMAGES, PROMPTS, SEEDS, mean

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


ALIKE_FEATURES = (0.1, 0.3, 0.5, 0.7)


def covered_sets(
    over: str, alike: float, cases: int, seed: int = 0, prompts: int = 8, images: int = 16
) -> tuple[float, float]:
    """The share of intervals of an FID with the truth in them, and of those of a paired difference.

    Features have 8 dimensions; the two settings share a part of what a prompt and of what a seed gives, and the second is shifted
    and wider. The truth is that of other prompts, or, over seeds, of these prompts with any number of images; of one FID, which
    has the bias of its count, that and the mean bias.

    Args:
        over: `PROMPTS`, `SEEDS`, or `IMAGES`, which takes images of a prompt for independent.
        alike: intra-class correlation of each feature.
    """
    rng = np.random.default_rng([seed, cases])
    size, shift, scale = 8, np.eye(8)[0] / 2, 1.3
    own, drawn = np.sqrt(alike), np.sqrt(1 - alike)
    of = np.repeat(np.arange(prompts), images)
    rows = of if over == PROMPTS else np.arange(len(of))
    names = [f"{place:03d}" for place in (range(prompts) if over == PROMPTS else of)]
    reference = np.zeros(size), np.eye(size)
    hits, values, ends, truths = 0, [], [], []
    for _ in range(cases):
        centres, noises = (_two_alike(rng, (n, size)) for n in (prompts, len(of)))
        first, second = (own * c[of] + drawn * e for c, e in zip(centres, noises, strict=True))
        second = shift + scale * second
        true = []
        for place, (move, factor) in enumerate(((np.zeros(size), 1.0), (shift, scale))):
            mean_of, between = np.zeros(size), alike * np.eye(size)
            if over == SEEDS:
                mean_of, between = own * centres[place].mean(0), alike * np.cov(centres[place].T, bias=True)
            true.append(_distance(move + factor * mean_of, factor**2 * (between + (1 - alike) * np.eye(size))))
        x, y = (
            replicate_over(over, names, [Frechet(v, *reference)], [rows.astype(np.intp)], size=size)
            for v in (first, second)
        )
        gap, one = y.less(x), x.estimate()
        assert gap is not None, "fewer than three groups"
        assert one is not None, "fewer than three groups"
        hits += gap.low <= true[1] - true[0] <= gap.high
        values.append(x.full)
        ends.append((one.low - one.value, one.high - one.value))
        truths.append(true[0])
    away = np.array(values) - np.array(truths)
    low, high = np.array(ends).T
    return float(np.mean((away + low <= away.mean()) & (away.mean() <= away + high))), hits / cases


def _two_alike(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Array, Array]:
    first = rng.standard_normal(shape)
    return first, 0.8 * first + 0.6 * rng.standard_normal(shape)


def _distance(mean_of: Array, covariance: Array) -> float:
    """The Frechet distance to the standard normal distribution."""
    roots = np.sqrt(np.linalg.eigvalsh(covariance))
    return float(mean_of @ mean_of + ((roots - 1) ** 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=4000, help="samples a cell; 4000 are off by 0.34 % at 95")
    parser.add_argument("--sets", action="store_true", help="of FID, by unit and how alike images of a prompt are")
    args = parser.parse_args()
    cases = args.cases
    if args.sets:
        print("| intervals over | of | " + " | ".join(f"alike {a:g}" for a in ALIKE_FEATURES) + " |")
        print("|---|---|" + "---|" * len(ALIKE_FEATURES))
        for over in (PROMPTS, SEEDS, IMAGES):
            found = [covered_sets(over, alike, min(cases, 400)) for alike in ALIKE_FEATURES]
            for what, place in (("one FID", 0), ("the difference of two", 1)):
                print(f"| {over} | {what} | " + " | ".join(f"{100 * f[place]:.1f}" for f in found) + " |", flush=True)
        return
    print("| numbers | images | " + " | ".join(f"n = {n}" for n in UNITS) + " |")
    print("|---|---|" + "---|" * len(UNITS))
    for shape in SHAPES:
        for clusters in CLUSTERS:
            cells = [f"{100 * covered(shape, clusters, n, cases):.1f}" for n in UNITS]
            print(f"| {shape} | {clusters} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
