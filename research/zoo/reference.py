"""Reference statistics for FID, from the real pictures: `python -m research.zoo.reference --out FILE`.

All subjects on all backgrounds in both sets, unshifted, composited at 32x32, in the features of the evaluation model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from research.metrics.features import load_features
from research.metrics.reference import accumulate_reference, chosen, save_reference
from research.zoo import ZOO_DIR
from research.zoo.data import COLOURS, PACKAGES, RESOLUTION, SETS, SUBJECTS, Emoji, load_emoji, to_uint8

DEFAULT = ZOO_DIR / "references" / "emoji.safetensors"


def pictures(emoji: Emoji) -> Iterator[Tensor]:
    """Every real picture as uint8 [3, 32, 32], held-out pairs included."""
    colours = torch.arange(len(COLOURS))
    for subject in range(len(SUBJECTS)):
        for style in range(len(SETS)):
            index = torch.full_like(colours, subject)
            yield from to_uint8(emoji.picture(index, torch.full_like(colours, style), colours))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m research.zoo.reference", description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="cache of the artwork packages (default: ~/.cache/research)"
    )
    parser.add_argument(
        "--features", default="emoji-eval", help="evaluation model: zoo name, directory or hub id"
    )
    parser.add_argument(
        "--vectors",
        type=int,
        default=1000,
        help="features kept for KID, CMMD and PRDC: weights in git are few",
    )
    parser.add_argument("--out", type=Path, default=DEFAULT)
    arguments = parser.parse_args(argv)
    emoji = load_emoji(arguments.data)
    features = load_features(arguments.features)
    count = len(SUBJECTS) * len(SETS) * len(COLOURS)
    wanted = chosen(count, arguments.vectors)
    reference = accumulate_reference(pictures(emoji), features, batch_size=256, wanted=wanted)
    provenance = {
        "name": arguments.out.stem,
        "pictures": "all subjects x sets x backgrounds, unshifted",
        "subjects": len(SUBJECTS),
        "sets": list(SETS),
        "backgrounds": list(COLOURS),
        "resolution": RESOLUTION,
        "resize": "area average of the 64x64 artwork, premultiplied alpha",
        "packages": {
            p["package"]: {"version": p["version"], "integrity": p["integrity"]} for p in PACKAGES.values()
        },
        "command": f"python -m research.zoo.reference --features {arguments.features}",
        "versions": {name: version(name) for name in ("torch", "transformers", "pillow")},
    }
    save_reference(arguments.out, reference, provenance, sidecar=True)
    print(f"{reference.num_samples} pictures, {len(reference.feature_sum)} features: {arguments.out}")


if __name__ == "__main__":
    main()
