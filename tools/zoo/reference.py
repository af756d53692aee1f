"""Reference statistics for FID, from the real pictures: `python -m tools.zoo.reference --out FILE`.

All subjects on all backgrounds in both sets, unshifted, composited at 32x32, in the features of the evaluation model. With
`--faces` those that `emoji-pixel` was trained on, with all its shifts of up to a pixel.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from research.metrics.extractors.load import load_features
from research.metrics.reference import accumulate_reference, chosen, save_reference
from research.zoo import ZOO_DIR
from tools.zoo.data import COLOURS, PACKAGES, RESOLUTION, SETS, SUBJECTS, Emoji, load_emoji, pairs, to_uint8
from tools.zoo.pixel import FACES

SHIFTS = tuple(product((-1, 0, 1), repeat=2))  # rows and columns
REFERENCES = ZOO_DIR / "references"
VECTORS, FACE_VECTORS = 500, 100  # sums are over all pictures


def pictures(emoji: Emoji) -> Iterator[Tensor]:
    """Every real picture as uint8 [3, 32, 32], held-out pairs included."""
    colours = torch.arange(len(COLOURS))
    for subject in range(len(SUBJECTS)):
        for style in range(len(SETS)):
            index = torch.full_like(colours, subject)
            yield from to_uint8(emoji.picture(index, torch.full_like(colours, style), colours))


def faces(emoji: Emoji) -> Iterator[Tensor]:
    """Every picture that the pixel model may have seen, as uint8 [3, 32, 32]."""
    for pair, style in product(face_pairs(), range(len(SETS))):
        subject, colour = (torch.full((len(SHIFTS),), index) for index in pair)
        yield from to_uint8(emoji.picture(subject, torch.full_like(subject, style), colour, torch.tensor(SHIFTS)))


def face_pairs() -> list[tuple[int, int]]:
    """The (subject, background) pairs that the pixel model was trained on."""
    subjects = {SUBJECTS.index(name) for name in FACES}
    return [pair for pair in pairs(held_out=False) if pair[0] in subjects]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.zoo.reference", description=__doc__)
    parser.add_argument("--data", type=Path, help="cache of the artwork packages (default: ~/.cache/research)")
    parser.add_argument("--features", default="emoji-eval", help="evaluation model: zoo name, directory or hub id")
    parser.add_argument(
        "--vectors", type=int, help="features kept for KID, CMMD and PRDC; few by default, as weights in git are few"
    )
    parser.add_argument("--faces", action="store_true", help="the pictures of emoji-pixel: emoji-faces")
    parser.add_argument("--out", type=Path, help="by default the file that ships")
    arguments = parser.parse_args(argv)
    emoji = load_emoji(arguments.data)
    features = load_features(arguments.features)
    out = arguments.out or REFERENCES / f"emoji{'-faces' * arguments.faces}.safetensors"
    if arguments.faces:
        count = len(face_pairs()) * len(SETS) * len(SHIFTS)
        found, told, wanted = (
            faces(emoji),
            "trained-on faces x sets x backgrounds x shifts of a pixel",
            chosen(count, arguments.vectors or FACE_VECTORS),
        )
    else:
        count = len(SUBJECTS) * len(SETS) * len(COLOURS)
        found, told, wanted = (
            pictures(emoji),
            "all subjects x sets x backgrounds, unshifted",
            chosen(count, arguments.vectors or VECTORS),
        )
    reference = accumulate_reference(found, features, batch_size=256, wanted=wanted)
    provenance = {
        "name": out.stem,
        "pictures": told,
        "subjects": len(FACES) if arguments.faces else len(SUBJECTS),
        "sets": list(SETS),
        "backgrounds": list(COLOURS),
        "resolution": RESOLUTION,
        "resize": "area average of the 64x64 artwork, premultiplied alpha",
        "packages": {p["package"]: {"version": p["version"], "integrity": p["integrity"]} for p in PACKAGES.values()},
        "command": f"python -m tools.zoo.reference{' --faces' * arguments.faces} --features {arguments.features}",
        "versions": {name: version(name) for name in ("torch", "transformers", "pillow")},
    }
    save_reference(out, reference, provenance, sidecar=True)
    print(f"{reference.num_samples} pictures, {len(reference.feature_sum)} features: {out}")


if __name__ == "__main__":
    main()
