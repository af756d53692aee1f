"""A checkpoint of scoring: features that took long to make are noted on disk, so that an interrupted scoring goes on.

They are keyed by the network and by the images themselves: what is found belongs to the very same pixels, or is not used.
Jobs that are scored within seconds write nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from research.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = ".scoring"
SECONDS_BETWEEN_NOTES = 20.0
_current: ContextVar[FeatureCheckpoint | None] = ContextVar("feature_checkpoint", default=None)


class FeatureCheckpoint:
    """Vectors by key, in files of a folder.

    Args:
        folder: the job's; the files go into ``.scoring`` in it, which is made when the first is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self._new: dict[str, Tensor] = {}
        self._noted = time.monotonic()
        self._file_of = self._keys_on_disk()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The vectors of a key, made if they are not there."""
        name = hashlib.sha256(repr(key).encode()).hexdigest()
        if (found := self._read(name)) is not None:
            return found
        made = make()
        self._new[name] = made.detach().cpu().contiguous()
        if time.monotonic() - self._noted >= SECONDS_BETWEEN_NOTES:
            self.note()
        return made

    def note(self) -> None:
        """Write down what is new."""
        from safetensors.torch import save

        self._noted = time.monotonic()
        if not self._new:
            return
        file = self.folder / f"{len(list(self.folder.glob('*.safetensors'))):06d}.safetensors"
        try:
            write_atomic(file, save(self._new))
        except OSError:  # a full disk costs no scores: they are made once more
            self._new = {}
            return
        self._file_of |= dict.fromkeys(self._new, file)
        self._new = {}

    def _keys_on_disk(self) -> dict[str, Path]:
        from safetensors import SafetensorError, safe_open

        found: dict[str, Path] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(file, "pt") as opened:
                    found |= dict.fromkeys(opened.keys(), file)
            except (OSError, SafetensorError):
                file.unlink(missing_ok=True)
        return found

    def _read(self, name: str) -> Tensor | None:
        if name in self._new:
            return self._new[name]
        if name not in self._file_of:
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file_of[name], "pt") as opened:
                return opened.get_tensor(name)
        except (OSError, SafetensorError):
            return None


@contextmanager
def checkpointing(folder: Path | None, *, last: bool = True) -> Iterator[None]:
    """While a job is scored: `from_checkpoint` notes in its folder. After the last of its metrics, the notes are removed.

    Args:
        folder: the job's; None notes nothing.
        last: no more metrics follow.
    """
    if folder is None:
        yield
        return
    checkpoint = FeatureCheckpoint(folder)
    token = _current.set(checkpoint)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):  # stopped: someone wants to go on later
            checkpoint.note()
        raise
    finally:
        _current.reset(token)
    if last:
        shutil.rmtree(checkpoint.folder, ignore_errors=True)
    elif checkpoint.folder.is_dir():  # it was worth the while once
        checkpoint.note()


def from_checkpoint(key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """The vectors of a key, from the notes of the job that is being scored, or made now."""
    checkpoint = _current.get()
    return make() if checkpoint is None else checkpoint.get(key, make)
