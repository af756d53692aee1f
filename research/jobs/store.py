"""The folders of jobs on disk. A job counts as done when its ``result.json`` is there, says so, and its images are as it says."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from research.errors import ConfigError
from research.files import plain_file
from research.jobs import record
from research.jobs.record import CONFIG, PARTIAL, RESULT, TRACE, ImageRecord, JobResult, StoreError, write

IMAGES = "images"
PICTURES = "pictures"  # of all images together: strips, before and after
TENSORS = "tensors"  # what recorders were asked to keep whole
TRACEBACK = "traceback.txt"
CLAIM = ".claim."  # beginning of the names of claims
_SYNCED_AT_ONCE = 16  # a disk takes many files together in about the time of one

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # in C it takes a tenth of the time


class JobFolder:
    """The files of one job, ``<output_dir>/<sweep_name>/<job_id>``."""

    def __init__(self, path: Path):
        self.path = path
        self.images, self.pictures, self.tensors = path / IMAGES, path / PICTURES, path / TENSORS

    def finished(self) -> JobResult | None:
        """The result of a job that is done and whole, or None: never run, cut short, failed, or images gone."""
        result = record.find_result(self.path)
        reusable = result and self.is_done(result) and not result.altered
        return result if result and reusable and not self.flaw(result.images, result.files) else None

    def is_done(self, result: JobResult) -> bool:
        """Whether a result says that this folder's job is done."""
        return result.done and result.job_id == self.path.name

    def flaw(self, images: Sequence[ImageRecord], files: Mapping[str, tuple[int, int]] | None = None) -> str | None:
        """What of the images on disk is not as a record says, or None.

        The hash of a file is taken only if its size or time of modification is not what it was when the record was written.

        Args:
            images: as the record lists them.
            files: bytes and time of modification (ns) of their files when it was written.
        """
        for image in images:
            try:
                status = plain_file(self.path, image.file).stat()
                if not status.st_size:
                    return f"{image.file} is empty"
                if (files or {}).get(image.file) == (status.st_size, status.st_mtime_ns) or image.sha256 is None:
                    continue
                content = (self.path / image.file).read_bytes()
            except FileNotFoundError:
                return f"{image.file} is gone"
            except OSError as error:
                return f"{image.file} cannot be read ({error.strerror or error})"
            if hashlib.sha256(content).hexdigest() != image.sha256:
                return f"{image.file} is not the file that was written"
        return None

    def clear(self, keep: Collection[str] = ()) -> None:
        """Make an empty folder of it: what a job that was cut short has left is removed, and nothing else.

        Args:
            keep: files that stay, relative to the folder: images of batches that were complete.
        """
        self.images.mkdir(parents=True, exist_ok=True)
        # the result first: should this be cut short too, a result without its images must not remain
        own = [self.path / name for name in (RESULT, PARTIAL, TRACEBACK, TRACE, CONFIG)]
        unfinished = [
            file
            for folder in (self.path, self.images, self.pictures, self.tensors)
            for file in folder.glob(".*")
            if file.is_file() and not file.name.startswith(CLAIM)
        ]
        made = [*self.images.glob("*.png"), *self.pictures.glob("*.png"), *self.pictures.glob("*.gif")]
        made += self.tensors.glob("*.safetensors")
        kept = {self.path / name for name in keep}
        for file in [*own, *made, *unfinished]:
            if file not in kept:
                file.unlink(missing_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        write(self.path / CONFIG, yaml.dump(dict(config), Dumper=_DUMPER, sort_keys=False, allow_unicode=True).encode())

    def write_traceback(self, text: str) -> None:
        write(self.path / TRACEBACK, text.encode("utf-8", "backslashreplace"))

    def write_tensors(self, name: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Write tensors by name as ``tensors/NAME.safetensors`` and return what the trace says of them: file and shapes."""
        from safetensors.torch import save

        file = self.tensors / f"{name}.safetensors"
        write(file, save({key: tensor.contiguous() for key, tensor in tensors.items()}))
        shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
        return {"file": file.relative_to(self.path).as_posix(), "shapes": shapes}

    def write_result(self, result: JobResult) -> None:
        """The last write of a job: from here on it counts.

        The images are seen to the disk first, and their sizes and times noted: a result never vouches for what is not there.

        Raises:
            StoreError: the disk does not take it.
        """
        files = [image.file for image in result.images]
        try:
            _sync([self.path / name for name in files])
            stats = {name: (self.path / name).stat() for name in files}
            (self.path / PARTIAL).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"output_dir: {self.path} cannot be written: {error.strerror or error}.") from error
        noted = {name: (status.st_size, status.st_mtime_ns) for name, status in stats.items()}
        record.write_result(self.path, record.replaced(result, files=noted))


def _sync(files: Sequence[Path]) -> None:
    if len(files) < 2:
        for file in files:
            _sync_one(file)
        return
    with ThreadPoolExecutor(min(len(files), _SYNCED_AT_ONCE)) as pool:
        list(pool.map(_sync_one, files))


def _sync_one(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_writable(sweep_dir: Path) -> None:
    """Make the folder of a sweep and see that it takes a file; leave nothing behind if it does not.

    Raises:
        ConfigError: it cannot be made or written.
    """
    made = [folder for folder in (sweep_dir, *sweep_dir.parents) if not folder.exists()]
    try:
        sweep_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=sweep_dir):  # without a name where that can be, so that no kill leaves it
            pass
    except OSError as error:
        for folder in made:
            if folder.is_dir():
                folder.rmdir()
        raise ConfigError(
            f"output_dir: {sweep_dir} cannot be written ({error.strerror or error}); accepted is a folder that can."
        ) from error
