"""Reference statistics for set metrics: stored with what they were made from, verified on reading.

One safetensors file: ``feature_sum`` [D] and ``feature_outer_sum`` [D, D] in float64, ``num_samples``, and unless they were left
out the ``features`` [M, D] themselves, which KID, CMMD and precision and recall need. Its metadata says what made them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from research.caches import MIB, Cache
from research.errors import ConfigError
from research.files import write_atomic
from research.hashing import sha256_files
from research.metrics import reference_file
from research.metrics.extractors.base import Features, extract
from research.metrics.extractors.find import IMAGE_SUFFIXES, locate_reference
from research.metrics.frechet import Gaussian

# what makes feature vectors comparable; the name is not part of it, since a copy may lie elsewhere
_COMPARED = ("weights_sha256", "layer", "dimension", "preprocess")
_references = Cache("references", 512 * MIB)
VECTORS = 10_000  # images of which a reference keeps the features themselves, unless told otherwise


@dataclass(frozen=True, eq=False)
class Reference:
    """Sums over the features of N real images, from which mean and covariance follow.

    Attributes:
        feature_sum: float64 ``[D]``.
        feature_outer_sum: float64 ``[D, D]``, the sum of outer products.
        num_samples: N.
        features: provenance of the extractor (see `research.metrics.extractors.base`).
        info: ``name``, ``sha256`` and ``data`` for the record; plain JSON values.
        vectors: the features of M of the images ``[M, D]``, or None.
    """

    feature_sum: Tensor
    feature_outer_sum: Tensor
    num_samples: int
    features: dict[str, Any]
    info: dict[str, Any]
    vectors: Tensor | None = None

    @property
    def nbytes(self) -> int:
        kept = self.vectors.nbytes if self.vectors is not None else 0
        return self.feature_sum.nbytes + self.feature_outer_sum.nbytes + kept

    @cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance."""
        return Gaussian.of_sums(self.feature_sum, self.feature_outer_sum, self.num_samples)

    def all_vectors(self, key: str) -> Tensor:
        """The features themselves, float32 ``[M, D]``.

        Raises:
            ConfigError: the file holds their sums only.
        """
        if self.vectors is None:
            raise ConfigError(
                f"{key}: {self.info.get('name')!r} holds sums of features only, which is enough for FID alone; build it anew "
                "with research-reference, or name a directory of images."
            )
        return self.vectors.float()


def chosen(count: int, vectors: int, seed: int = 0) -> Tensor:
    """Of which images to keep the features themselves: all of them, or so many drawn at random. Booleans [N]."""
    wanted = torch.zeros(count, dtype=torch.bool)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    wanted[order[:vectors]] = True
    return wanted


class Sums:
    """Sums of features as they stream by, in float64; vectors themselves are kept as asked.

    Args:
        dimension: D.
        wanted: of which images to keep the vectors, booleans [N]; none by default.
    """

    def __init__(self, dimension: int, wanted: Tensor | None = None) -> None:
        self.feature_sum = torch.zeros(dimension, dtype=torch.float64)
        self.outer_sum = torch.zeros(dimension, dimension, dtype=torch.float64)
        self.count = torch.zeros(1, dtype=torch.int64)
        self._wanted = torch.zeros(0, dtype=torch.bool) if wanted is None else wanted
        self.kept: list[Tensor] = []
        self.size: tuple[int, int] | None = None  # width and height of the images, where that is known
        self.is_spread = False

    def spread(self, rows: Sequence[int], total: int) -> None:
        """Put the vectors kept to their rows among ``total``, zeros elsewhere: those of several processes add up to all."""
        room = torch.zeros(total, len(self.feature_sum))
        if self.kept:
            room[list(rows)] = torch.cat(self.kept)
        self.kept, self.is_spread = [room], True

    def add(self, vectors: Tensor) -> None:
        """Vectors [n, D]."""
        wide = vectors.double()
        self.feature_sum += wide.sum(0)
        self.outer_sum += wide.T @ wide
        first = int(self.count)
        wanted = self._wanted[first : first + len(vectors)]
        if bool(wanted.any()):
            self.kept.append(vectors[: len(wanted)][wanted].float())
        self.count += len(vectors)

    def state(self) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """A copy of what is summed, to go back to; see `restore`."""
        return self.feature_sum.clone(), self.outer_sum.clone(), self.count.clone(), list(self.kept)

    def restore(self, feature_sum: Tensor, outer_sum: Tensor, count: Tensor, kept: list[Tensor]) -> None:
        """Go back to a state."""
        self.feature_sum, self.outer_sum, self.count, self.kept = feature_sum, outer_sum, count, kept

    @property
    def vectors(self) -> Tensor | None:
        return torch.cat(self.kept) if self.kept else None

    def reference(self, features: dict[str, Any], info: dict[str, Any]) -> Reference:
        """Raises ConfigError for fewer than 2 images."""
        count = int(self.count)
        if count < 2:
            raise ConfigError(f"reference: found {count} images; accepted is at least 2.")
        return Reference(self.feature_sum, self.outer_sum, count, features, info, self.vectors)


def accumulate_reference(
    images: Iterable[Image.Image | Tensor],
    features: Features,
    *,
    batch_size: int = 64,
    info: dict[str, Any] | None = None,
    wanted: Tensor | None = None,
) -> Reference:
    """Streams images through an extractor and sums in float64; memory does not grow with their number.

    Args:
        images: PIL images, or tensors ``[3, H, W]`` in uint8 or float [0, 1]; sizes may differ.
        features: from `load_features`.
        batch_size: images at a time.
        info: kept with the result.
        wanted: of which images to keep the features themselves, booleans [N] (see `chosen`); none by default.

    Raises:
        ConfigError: fewer than 2 images, or images of another range.
    """
    sums = Sums(features.num_features, wanted)
    for found in extract(images, features, batch_size):
        sums.add(found)
    return sums.reference(dict(features.provenance), info or {})


def save_reference(path: Path, reference: Reference, provenance: dict[str, Any], *, sidecar: bool = False) -> None:
    """Writes the statistics with what they were made of; `load_reference` verifies them.

    Args:
        path: ends in ``.safetensors``.
        reference: what to store.
        provenance: what the images are and how they were made; plain JSON values without local paths.
        sidecar: write what the file says of itself into a ``.json`` beside it too, for people to read.
    """
    content, told = reference_file.encode(reference, provenance)
    write_atomic(path, content)
    if sidecar:
        told = {"sha256": sha256_files([path]), **told}
        write_atomic(path.with_suffix(".json"), json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def load_reference(
    name_or_path: str, features: Features, *, batch_size: int = 64, key: str = "metrics.fid.reference"
) -> Reference:
    """Reference statistics by zoo name or file, or accumulated (once a process) from a directory of images.

    Raises:
        ConfigError: not found, damaged, or made with other features than `features`.
    """
    path = locate_reference(name_or_path, key)
    if path.is_dir():
        folder = path.resolve(), features, batch_size
        return _references.get(folder, lambda: _from_images(*folder, key), lambda made: made.nbytes)
    reference = read_reference(path, key)
    expected = features.provenance
    for field in _COMPARED:
        found, wanted = reference.features.get(field), expected.get(field)
        if found != wanted:
            raise ConfigError(
                f"{key}: {name_or_path!r} was made with features {reference.features.get('name')!r} "
                f"({field} {_short(found)}), but the images are scored with {expected.get('name')!r} "
                f"({field} {_short(wanted)}); the two must be the same."
            )
    return reference


def read_reference(path: Path, key: str) -> Reference:
    """A file of statistics, whichever features it is of, read once a process.

    Raises:
        ConfigError: it cannot be read, or is damaged.
    """
    status = path.stat()
    place = path.resolve(), status.st_mtime_ns, status.st_size
    return _references.get(place, lambda: _read(path, key), lambda made: made.nbytes)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:12]


def _read(path: Path, key: str) -> Reference:
    tensors, told, sha256 = reference_file.read(path, key)
    info = {"name": path.stem, "sha256": sha256, "num_samples": int(tensors["num_samples"]), "data": told.get("data")}
    return Reference(
        tensors["feature_sum"].double(),
        tensors["feature_outer_sum"].double(),
        int(tensors["num_samples"]),
        told["features"],
        info,
        tensors.get("features"),
    )


def _from_images(directory: Path, features: Features, batch_size: int, key: str) -> Reference:
    files = image_files(directory)
    info = {
        "name": directory.name,
        "sha256": sha256_files(files, directory),
        "num_samples": len(files),
        "data": "a directory of images",
    }
    wanted = chosen(len(files), VECTORS)
    return accumulate_reference(open_all(files, key), features, batch_size=batch_size, info=info, wanted=wanted)


def image_files(directory: Path) -> list[Path]:
    """The images of a directory and of those in it, by name."""
    return sorted(p for p in directory.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def open_all(files: Iterable[Path], key: str) -> Iterator[Image.Image]:
    """Images one after the other.

    Raises:
        ConfigError: one is broken.
    """
    for file in files:
        try:
            with Image.open(file) as image:
                yield image.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise ConfigError(f"{key}: {file.name} is not a whole image: {error}") from error
