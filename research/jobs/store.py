"""The folders of jobs on disk. A job counts as done when its ``result.json`` is there, says so, and its images are as it says."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from research.errors import ConfigError, UserError
from research.files import write_atomic

RESULT, CONFIG, TRACE, TRACEBACK, IMAGES, PICTURES, TENSORS = (
    "result.json",
    "config.yaml",
    "trace.json",
    "traceback.txt",
    "images",
    "pictures",  # of all images together: strips, before and after
    "tensors",  # what recorders were asked to keep whole
)
PARTIAL = "partial.json"  # of a job that was interrupted between two batches
CLAIM = ".claim."  # beginning of the names of claims
_SYNCED_AT_ONCE = 16  # a disk takes many files together in about the time of one

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # in C it takes a tenth of the time


class StoreError(UserError):
    """The output folder cannot be written any more (disk full, taken away). No further job can be kept."""


class JobFolder:
    """The record of one job, ``<output_dir>/<sweep_name>/<job_id>``."""

    def __init__(self, path: Path):
        self.path = path
        self.images, self.pictures, self.tensors = path / IMAGES, path / PICTURES, path / TENSORS

    def finished(self) -> dict[str, Any] | None:
        """The result of a job that is done and whole, or None: never run, cut short, failed, or images gone."""
        result = read_result(self.path)
        return result if result is not None and self.is_done(result) and not self.flaw(result) else None

    def is_done(self, result: Mapping[str, Any]) -> bool:
        """Whether a result says that this folder's job is done."""
        return result.get("status") == "done" and result.get("job_id") == self.path.name

    def flaw(self, result: Mapping[str, Any]) -> str | None:
        """What of the images is not as a result says, or None.

        The hash of a file is taken only if its size or time of modification is not what it was when the result was written.
        """
        noted = result.get("files") or {}
        for entry in result.get("images") or []:
            try:
                status = (self.path / entry["file"]).stat()
                if not status.st_size:
                    return f"{entry['file']} is empty"
                if noted.get(entry["file"]) == [status.st_size, status.st_mtime_ns] or "sha256" not in entry:
                    continue
                content = (self.path / entry["file"]).read_bytes()
            except FileNotFoundError:
                return f"{entry['file']} is gone"
            except OSError as error:
                return f"{entry['file']} cannot be read ({error.strerror or error})"
            except (KeyError, TypeError):
                return "its list of images is damaged"
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                return f"{entry['file']} is not the file that was written"
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

    def write_trace(self, trace: Mapping[str, Any]) -> None:
        write(self.path / TRACE, _json(trace))

    def write_tensors(self, name: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Write tensors by name as ``tensors/NAME.safetensors`` and return what the trace says of them: file and shapes."""
        from safetensors.torch import save

        file = self.tensors / f"{name}.safetensors"
        write(file, save({key: tensor.contiguous() for key, tensor in tensors.items()}))
        shapes = {key: list(tensor.shape) for key, tensor in tensors.items()}
        return {"file": file.relative_to(self.path).as_posix(), "shapes": shapes}

    def write_partial(self, partial: Mapping[str, Any]) -> None:
        """Note what is complete of a job, so that it goes on from there; see `research.jobs.checkpoint`."""
        write(self.path / PARTIAL, _json(partial))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """The last write of a job: from here on it counts.

        The images are seen to the disk first, and their sizes and times noted: a result never vouches for what is not there.

        Raises:
            StoreError: the disk does not take it.
        """
        files = [entry["file"] for entry in result.get("images", [])]
        try:
            _sync([self.path / name for name in files])
            stats = {name: (self.path / name).stat() for name in files}
            (self.path / PARTIAL).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"output_dir: {self.path} cannot be written: {error.strerror or error}.") from error
        noted = {name: [status.st_size, status.st_mtime_ns] for name, status in stats.items()}
        write(self.path / RESULT, _json({**result, **({"files": noted} if noted else {})}), durable=True)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The ``result.json`` of a job's folder; None if there is none that can be read."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def write(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a whole file or none: after a kill the old content or the new is there, never a part.

    Args:
        path: the file.
        content: all of it.
        durable: see it to the disk before going on, so that it outlives a power cut too.

    Raises:
        StoreError: the disk does not take it.
    """
    try:
        write_atomic(path, content, durable=durable)
    except OSError as error:
        raise StoreError(f"output_dir: {path} cannot be written: {error.strerror or error}.") from error


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


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(_strict(content), indent=1, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")


def _strict(value: Any) -> Any:
    """What JSON can hold: tensors and arrays as lists, and null for NaN and infinity, which are no JSON."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
