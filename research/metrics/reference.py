"""Reference statistics for set metrics: stored with what they were made from, verified on reading.

One safetensors file: ``feature_sum`` [D] and ``feature_outer_sum`` [D, D] in float64, ``num_samples``, and unless they were left
out the ``features`` [M, D] themselves, which KID, CMMD and precision and recall need. Its metadata says what made them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict, cast

import torch
from PIL import Image
from torch import Tensor

from research.caches import MIB, Cache
from research.errors import ConfigError
from research.files import stamp, write_atomic
from research.hashing import sha256_files
from research.metrics.extractors.base import Features, Provenance, extract
from research.metrics.extractors.find import find_reference
from research.metrics.frechet import Gaussian
from research.picture_files import SUFFIXES, errors_named, loaded
from research.picture_modes import Say, as_shown, quiet

# what makes feature vectors comparable; the name is not part of it, since a copy may lie elsewhere
_COMPARED = ("weights_sha256", "layer", "dimension", "preprocess")
_references = Cache("references", 512 * MIB)
FORMAT = 2
_METADATA = "reference"
VECTORS = 10_000  # images of which a reference keeps the features themselves, unless told otherwise


class ReferenceRecord(TypedDict, total=False):
    """A reference in the record of a metric.

    ``data`` says what the images are: plain JSON values, of `research.metrics.reference_build.ImagesRecord` or one's own.
    """

    name: str
    sha256: str
    num_samples: int
    data: Mapping[str, object] | str | None
    shown: Mapping[str, int]  # how pictures were shown that can be shown in several ways, and how many there were


class _FileRecord(TypedDict):
    """What a file of statistics says of itself; ``seal`` is a hash of the rest and of the tensors."""

    format: int
    num_samples: int
    num_vectors: int
    features: Provenance
    data: Mapping[str, object]
    seal: str


@dataclass(frozen=True, eq=False)
class Reference:
    """Sums over the features of N real images, from which mean and covariance follow.

    Attributes:
        feature_sum: float64 ``[D]``.
        feature_outer_sum: float64 ``[D, D]``, the sum of outer products.
        num_samples: N.
        features: of the extractor.
        info: for the record.
        vectors: the features of M of the images ``[M, D]``, or None.
    """

    feature_sum: Tensor
    feature_outer_sum: Tensor
    num_samples: int
    features: Provenance
    info: ReferenceRecord
    vectors: Tensor | None = None

    @property
    def nbytes(self) -> int:
        vectors = self.vectors.nbytes if self.vectors is not None else 0
        return self.feature_sum.nbytes + self.feature_outer_sum.nbytes + vectors

    @property
    def data(self) -> Mapping[str, object]:
        """What the images are, where the file says it (of `research.metrics.reference_build`)."""
        found = self.info.get("data")
        return found if isinstance(found, Mapping) else {}

    @property
    def sizes(self) -> list[str]:
        """Sizes of the images such as "64x64", the commonest first; empty where they are not known."""
        found = self.data.get("sizes")
        return list(found) if isinstance(found, Mapping) else []

    @cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance."""
        return Gaussian.of_sums(self.feature_sum, self.feature_outer_sum, self.num_samples)

    @cached_property
    def vectors_sha256(self) -> str:
        """Of the features themselves: what numbers that are worked out of them alone may be kept by. (``info`` has the hash of a
        folder's pictures, which are other vectors to another network.)"""
        vectors = torch.empty(0) if self.vectors is None else self.vectors.contiguous()
        return hashlib.sha256(f"{vectors.shape} {vectors.dtype} ".encode() + vectors.numpy().tobytes()).hexdigest()

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
        self.vector_parts: list[Tensor] = []
        self.size: tuple[int, int] | None = None  # width and height of the images, where that is known
        self.is_spread = False

    def spread(self, rows: Sequence[int], total: int) -> None:
        """Put the vectors kept to their rows among ``total``, zeros elsewhere: those of several processes add up to all."""
        room = torch.zeros(total, len(self.feature_sum))
        if self.vector_parts:
            room[list(rows)] = torch.cat(self.vector_parts)
        self.vector_parts, self.is_spread = [room], True

    def add(self, vectors: Tensor) -> None:
        """Vectors [n, D]."""
        wide = vectors.double()
        self.feature_sum += wide.sum(0)
        self.outer_sum += wide.T @ wide
        first = int(self.count)
        wanted = self._wanted[first : first + len(vectors)]
        if bool(wanted.any()):
            self.vector_parts.append(vectors[: len(wanted)][wanted].float())
        self.count += len(vectors)

    def state(self) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """A copy of what is summed, to go back to; see `restore`."""
        return self.feature_sum.clone(), self.outer_sum.clone(), self.count.clone(), list(self.vector_parts)

    def restore(self, feature_sum: Tensor, outer_sum: Tensor, count: Tensor, vector_parts: list[Tensor]) -> None:
        """Go back to a state."""
        self.feature_sum, self.outer_sum, self.count, self.vector_parts = feature_sum, outer_sum, count, vector_parts

    @property
    def vectors(self) -> Tensor | None:
        return torch.cat(self.vector_parts) if self.vector_parts else None

    def reference(self, features: Provenance, info: ReferenceRecord) -> Reference:
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
    info: ReferenceRecord | None = None,
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
    return sums.reference(features.provenance, info or {})


def save_reference(
    path: Path, reference: Reference, provenance: Mapping[str, object], *, sidecar: bool = False
) -> None:
    """Writes the statistics with what they were made of; `load_reference` verifies them.

    Args:
        path: ends in ``.safetensors``.
        reference: what to store.
        provenance: what the images are and how they were made; plain JSON values without local paths.
        sidecar: write what the file says of itself into a ``.json`` beside it too, for people to read.
    """
    content, record = _encode(reference, provenance)
    write_atomic(path, content)
    if sidecar:
        beside = {"sha256": sha256_files([path]), **record}
        write_atomic(path.with_suffix(".json"), json.dumps(beside, indent=2, ensure_ascii=False) + "\n")


def load_reference(
    name_or_path: str, features: Features, *, batch_size: int = 64, key: str = "metrics.fid.reference"
) -> Reference:
    """Reference statistics by zoo name or file, or accumulated (once a process) from a directory of images.

    Raises:
        ConfigError: not found, damaged, or made with other features than `features`.
    """
    path = find_reference(name_or_path, key)
    if path.is_dir():
        folder = path.resolve(), features, batch_size
        return _references.get((*folder, stamp(path)), lambda: _from_images(*folder, key), lambda made: made.nbytes)
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
    return _references.get(place, lambda: _loaded(path, key), lambda made: made.nbytes)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:12]


def _loaded(path: Path, key: str) -> Reference:
    tensors, record, sha256 = _read_file(path, key)
    info: ReferenceRecord = {
        "name": path.stem,
        "sha256": sha256,
        "num_samples": int(tensors["num_samples"]),
        "data": record.get("data"),
    }
    return Reference(
        tensors["feature_sum"].double(),
        tensors["feature_outer_sum"].double(),
        int(tensors["num_samples"]),
        record["features"],
        info,
        tensors.get("features"),
    )


def _from_images(directory: Path, features: Features, batch_size: int, key: str) -> Reference:
    files = image_files(directory)
    info: ReferenceRecord = {
        "name": directory.name,
        "sha256": sha256_files(files, directory),
        "num_samples": len(files),
        "data": "a directory of images",
    }
    wanted = chosen(len(files), VECTORS)
    shown: Counter[str] = Counter()
    images = open_all(files, key, say=lambda message: shown.update([message]))
    made = accumulate_reference(images, features, batch_size=batch_size, info=info, wanted=wanted)
    if shown:
        info["shown"] = dict(shown)
    return made


def image_files(directory: Path) -> list[Path]:
    """The images of a directory and of those in it, by name."""
    return sorted(p for p in directory.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def open_all(files: Iterable[Path], key: str, *, say: Say = quiet) -> Iterator[Image.Image]:
    """Images one after the other, as a viewer shows them.

    Args:
        files: theirs.
        key: how messages call them.
        say: told of each how it is shown, where that is not certain to be what was meant.

    Raises:
        ConfigError: one is broken, or too large.
    """
    for file in files:
        with errors_named(key, file.name):
            with file.open("rb") as stream:
                image = loaded(stream, say=say)
            shown = as_shown(image, say=say)
        yield shown


# -- the file: safetensors whose metadata says what made them, sealed by a hash of both


def _encode(reference: Reference, data: Mapping[str, object]) -> tuple[bytes, _FileRecord]:
    """The file's content, and what it says of itself: ``num_samples``, ``features``, ``data``, ``seal``."""
    from safetensors.torch import save

    tensors = {
        "feature_sum": reference.feature_sum.contiguous(),
        "feature_outer_sum": reference.feature_outer_sum.contiguous(),
        "num_samples": torch.tensor([reference.num_samples], dtype=torch.int64),
    }
    if reference.vectors is not None:
        tensors["features"] = reference.vectors.to(torch.float16).contiguous()
    record: _FileRecord = {
        "format": FORMAT,
        "num_samples": reference.num_samples,
        "num_vectors": 0 if reference.vectors is None else len(reference.vectors),
        "features": reference.features,
        "data": data,
        "seal": "",
    }
    record["seal"] = _seal(tensors, record)
    return save(tensors, {_METADATA: json.dumps(record, ensure_ascii=False)}), record


def _read_file(path: Path, key: str) -> tuple[dict[str, Tensor], _FileRecord, str]:
    """Tensors, what the file says of itself, and the SHA-256 of the file.

    Raises:
        ConfigError: it cannot be read, holds no statistics, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path.name} is damaged, or no file of statistics: {error}") from error
    sha256 = sha256_files([path])
    try:
        record = json.loads(metadata[_METADATA]) if _METADATA in metadata else _sidecar(path, sha256, key)
        if not isinstance(record, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise ConfigError(f"{key}: {path.name} is damaged: what it says of itself cannot be read.") from error
    if missing := {"feature_sum", "feature_outer_sum", "num_samples"} - tensors.keys():
        raise ConfigError(f"{key}: {path.name} holds no reference statistics: {sorted(missing)[0]} is missing.")
    if _METADATA in metadata and (found := _seal(tensors, record)) != record.get("seal"):
        raise ConfigError(
            f"{key}: {path.name} is damaged: the sha256 of what it holds is {found[:12]}, it says {str(record.get('seal'))[:12]}."
        )
    if not isinstance(record.get("features"), dict):
        raise ConfigError(f"{key}: {path.name} does not say which features it is of.")
    return tensors, cast("_FileRecord", record), sha256


def _seal(tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> str:
    """SHA-256 over what the file says of itself, and over names and contents of its tensors."""
    rest = {name: value for name, value in record.items() if name != "seal"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=True).encode())
    for name, tensor in sorted(tensors.items()):
        shape = f"{tensor.dtype}{list(tensor.shape)}"
        digest.update(f"{name}\0{shape}\0".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sidecar(path: Path, sha256: str, key: str) -> object:
    """What a file of the first format has beside it."""
    beside = path.with_suffix(".json")
    try:
        record = json.loads(beside.read_text(encoding="utf-8"))
        claimed, _ = record["sha256"], dict(record["features"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{key}: {path.name} says nothing of what it was made from, and {beside.name} beside it does not either; "
            "build it with research-reference."
        ) from error
    if sha256 != claimed:
        raise ConfigError(
            f"{key}: {path.name} is damaged or was replaced: its sha256 is {sha256[:12]}, "
            f"{beside.name} says {str(claimed)[:12]}."
        )
    return dict(record)
