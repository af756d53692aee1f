"""Building reference statistics: image by image, noted on disk now and then, so that an interrupted build goes on."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from research.errors import ConfigError
from research.files import write_atomic
from research.metrics.base import library_versions
from research.metrics.extractors.base import Features, extract
from research.metrics.image_source import ImageSource, combined
from research.metrics.reference import Reference, Sums, chosen, save_reference

CHUNK = 256  # images between two looks at the clock; part of the numbers' last bits, and so fixed
SECONDS_BETWEEN_NOTES = 20.0
SIZES = 8  # image sizes listed in the record, the commonest first


class ImagesRecord(TypedDict):
    """What the images of a reference are, without paths of this machine."""

    name: str
    kind: str
    images: int
    content_sha256: str
    sizes: dict[str, int]
    resize: str
    batch_size: int
    versions: dict[str, str]
    shown: NotRequired[
        dict[str, int]
    ]  # how pictures were shown that can be shown in several ways, and how many there were


class Build:
    """One file of statistics on its way.

    Args:
        source: the images.
        features: from `load_features`.
        out: the file to write; ``OUT.partial`` beside it notes what is done.
        batch_size: images at a time.
        vectors: of how many images to keep the features themselves; of more, so many drawn at random.
        name: what the images are called in records.
    """

    def __init__(
        self, source: ImageSource, features: Features, out: Path, *, batch_size: int, vectors: int, name: str
    ) -> None:
        self.source, self.features, self.out, self.batch_size = source, features, out, batch_size
        self.vectors, self.name = vectors, name
        self.partial = out.with_name(f"{out.name}.partial")
        self.sums = Sums(features.num_features, chosen(len(source.names), vectors))
        self.digests: list[bytes] = []
        self.sizes: Counter[str] = Counter()
        self.shown: Counter[str] = Counter()

    @property
    def done(self) -> int:
        """Images that are summed."""
        return len(self.digests)

    def go_on(self) -> int:
        """Take over what an interrupted build of the same images and features has left; returns how many images that were."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.partial, "pt") as file:
                note = json.loads((file.metadata() or {})["partial"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        except (OSError, SafetensorError, ValueError, KeyError):
            return 0
        if note["of"] != self._of():
            return 0
        self.sums.feature_sum, self.sums.outer_sum = tensors["feature_sum"], tensors["outer_sum"]
        self.sums.count = tensors["count"]
        self.sums.vector_parts = [tensors["vectors"]] if "vectors" in tensors else []
        self.digests = [bytes.fromhex(found) for found in note["digests"]]
        self.sizes = Counter(note["sizes"])
        self.shown = Counter(note.get("shown", {}))
        return self.done

    def run(self, progress: Callable[[int], object] = lambda done: None) -> Reference:
        """Sum the rest, write the file, and return what it holds.

        Raises:
            ConfigError: an image is broken, or the disk does not take the file.
            KeyboardInterrupt: what is done has been noted.
        """
        noted = time.monotonic()
        try:
            while self.done < len(self.source.names):
                self._chunk()
                progress(self.done)
                if time.monotonic() - noted > SECONDS_BETWEEN_NOTES:
                    self.note()
                    noted = time.monotonic()
        except KeyboardInterrupt:
            self.note()
            raise
        data = self.provenance()
        reference = self.sums.reference(self.features.provenance, {"name": self.out.stem, "data": data})
        try:
            save_reference(self.out, reference, data)
        except OSError as error:
            raise ConfigError(f"--out: {self.out} cannot be written: {error.strerror or error}.") from error
        self.partial.unlink(missing_ok=True)
        return reference

    def provenance(self) -> ImagesRecord:
        """What the images are."""
        preprocess = self.features.provenance["preprocess"]
        found: ImagesRecord = {
            "name": self.name,
            "kind": self.source.kind,
            "images": len(self.source.names),
            "content_sha256": combined(self.source.names, self.digests),
            "sizes": dict(self.sizes.most_common(SIZES)),
            "resize": preprocess["resample"] if isinstance(preprocess, dict) else preprocess,
            "batch_size": self.batch_size,
            "versions": library_versions("torch", "transformers", "pillow", "torch-fidelity"),
        }
        if self.shown:
            found["shown"] = dict(self.shown)
        return found

    def note(self) -> None:
        """Write down what is done."""
        from safetensors.torch import save

        if int(self.sums.count) != self.done:  # interrupted between two lines; the note before is good
            return
        tensors = {"feature_sum": self.sums.feature_sum, "outer_sum": self.sums.outer_sum, "count": self.sums.count}
        if (vectors := self.sums.vectors) is not None:
            tensors["vectors"] = vectors
        note = {"of": self._of(), "digests": [d.hex() for d in self.digests], "sizes": dict(self.sizes)}
        note["shown"] = dict(self.shown)
        try:
            write_atomic(self.partial, save(tensors, {"partial": json.dumps(note)}))
        except OSError as error:
            raise ConfigError(f"--out: {self.partial} cannot be written: {error.strerror or error}.") from error

    def _chunk(self) -> None:
        pieces = list(self.source.pieces(self.done, self.done + CHUNK))
        found = list(extract((piece.image for piece in pieces), self.features, self.batch_size))
        # one after the other and quickly, so that an interruption leaves a whole number of chunks
        before = self.sums.state()
        try:
            for vectors in found:
                self.sums.add(vectors)
        except BaseException:
            self.sums.restore(*before)
            raise
        self.sizes.update(f"{piece.image.width}x{piece.image.height}" for piece in pieces)
        self.shown.update(line for piece in pieces for line in piece.shown)
        self.digests += [piece.sha256 for piece in pieces]

    def _of(self) -> dict[str, object]:
        """What a note must be of for this build to go on from it."""
        provenance = {key: value for key, value in self.features.provenance.items() if key != "name"}
        return {
            "stamp": self.source.stamp,
            "features": json.loads(json.dumps(provenance)),
            "batch_size": self.batch_size,
            "vectors": self.vectors,
            "torch": torch.__version__,
        }
