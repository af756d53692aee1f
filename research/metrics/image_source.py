"""Images to build reference statistics from: a directory, a zip archive or an .npz, with names and a hash of the content."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from research.errors import ConfigError
from research.picture_files import SUFFIXES, errors_named, loaded
from research.picture_modes import Say, as_shown, quiet

_MOST_BYTES = 1 << 30  # of a file in an archive, unpacked
_ACCEPTED = "a directory of images, a .zip of images, or an .npz with uint8 pixels [N, H, W, 3] as its first array"


@dataclass(frozen=True)
class Piece:
    """An image as it was read: its name, the SHA-256 of its content, and itself in RGB; how it is shown, where there are several
    ways to show it."""

    name: str
    sha256: bytes
    image: Image.Image
    shown: tuple[str, ...] = ()


class ImageSource:
    """Named images in a fixed order, read when they are asked for.

    Attributes:
        kind: what it is, for the record.
        names: of the images, sorted as `research.hashing.sha256_files` sorts them.
        stamp: changes when files are added, taken away or written again; cheap, and no hash of their content.
    """

    kind: str
    names: Sequence[str]
    stamp: str

    def content(self, place: int) -> bytes:
        """The bytes that stand for the image of a place."""
        raise NotImplementedError

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """The images of some places.

        Raises:
            ConfigError: one is no whole image, or cannot be read.
        """
        for place in range(start, min(stop, len(self.names))):
            name = self.names[place]
            said: list[str] = []
            with errors_named("PATH", name):
                content = self.content(place)
                image = self.decoded(content, said.append)
            yield Piece(name, hashlib.sha256(content).digest(), image, tuple(said))

    def decoded(self, content: bytes, say: Say = quiet) -> Image.Image:
        return as_shown(loaded(content, say=say), say=say)


def combined(names: Sequence[str], digests: Sequence[bytes]) -> str:
    """One hash of many images: that of `research.hashing.sha256_files` over the same files."""
    digest = hashlib.sha256()
    for name, found in sorted(zip(names, digests, strict=True)):
        digest.update(name.encode() + b"\0" + found)
    return digest.hexdigest()


def content_sha256(source: ImageSource) -> str:
    """The hash of what is in a source, read from beginning to end."""
    digests = [hashlib.sha256(source.content(place)).digest() for place in range(len(source.names))]
    return combined(source.names, digests)


def open_source(path: Path) -> ImageSource:
    """The images at a path.

    Raises:
        ConfigError: nothing is there, it is of another kind, or it holds fewer than two images.
    """
    if not path.exists():
        raise ConfigError(f"PATH: {str(path)!r} does not exist; accepted is {_ACCEPTED}.")
    source: ImageSource
    try:
        if path.is_dir():
            source = _Folder(path)
        elif path.suffix.lower() == ".zip":
            source = _Zip(path)
        elif path.suffix.lower() == ".npz":
            source = _Array(path)
        else:
            raise ConfigError(f"PATH: found the file {path.name!r}; accepted is {_ACCEPTED}.")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"PATH: {path.name} cannot be read: {error}; accepted is {_ACCEPTED}.") from error
    if len(source.names) < 2:
        raise ConfigError(f"PATH: {path.name} holds {len(source.names)} images; accepted is at least 2.")
    return source


class _Folder(ImageSource):
    kind = "directory"

    def __init__(self, path: Path) -> None:
        files = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        found = sorted((p.relative_to(path).as_posix(), p) for p in files)
        self.names, self._files = [name for name, _ in found], [file for _, file in found]
        stats = [(name, s.st_size, s.st_mtime_ns) for name, s in ((n, f.stat()) for n, f in found)]
        self.stamp = _hash(stats)

    def content(self, place: int) -> bytes:
        return self._files[place].read_bytes()


class _Zip(ImageSource):
    kind = "zip archive"

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path)
        entries = [e for e in self._archive.infolist() if Path(e.filename).suffix.lower() in SUFFIXES]
        entries = [e for e in entries if not e.filename.startswith("__MACOSX/")]
        if large := next((entry for entry in entries if entry.file_size > _MOST_BYTES), None):
            raise ValueError(f"{large.filename} has {large.file_size} bytes unpacked, more than {_MOST_BYTES}")
        self.names = sorted(entry.filename for entry in entries)
        self.stamp = _hash(sorted((e.filename, e.file_size, e.CRC) for e in entries))

    def content(self, place: int) -> bytes:
        return self._archive.read(self.names[place])


class _Array(ImageSource):
    kind = "npz of pixels"

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            if not arrays.files:
                raise ValueError("it holds no array")
            self._pixels = arrays[arrays.files[0]]
        shape = self._pixels.shape
        if self._pixels.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise ValueError(f"its first array is {self._pixels.dtype} {list(shape)}")
        self.names = [f"{place:08d}" for place in range(len(self._pixels))]
        status = path.stat()
        self.stamp = _hash([status.st_size, status.st_mtime_ns, list(shape)])

    def content(self, place: int) -> bytes:
        return self._pixels[place].tobytes()

    def decoded(self, content: bytes, say: Say = quiet) -> Image.Image:
        height, width = self._pixels.shape[1:3]
        return Image.frombytes("RGB", (width, height), content)


def _hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
