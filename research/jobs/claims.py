"""Claims: which process is at work on a job, so that several share a sweep and no job is done twice.

A claim is a hidden file in the job's folder, ``.claim.<n>``. What is relied on: that creating a file which must not
be there yet (``O_EXCL``) succeeds for one process only, and that a changed modification time shows to one who opens the file.
Local disks, NFS from version 3, Lustre and the like give both; file locks are not used. No clock is compared with another: a
claim is stale when its time of modification stood still for ``timeout`` seconds of the watcher's own, monotonic clock, or when
its process is known to have ended on this machine.

A stale claim is never removed or renamed to be taken over, as two could do that one after the other. The next number is created
instead, which one process can; the highest number holds the job. Who was thought dead and is not finds it out before it writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.files import machine, started
from research.jobs.record import RESULT, StoreError
from research.jobs.store import CLAIM

TIMEOUT = 60.0  # seconds
_BEATS = 5  # signs of life within a timeout
_held: dict[Path, Claim] = {}  # by the job's folder
_lock = threading.Lock()
_heart: threading.Thread | None = None
_seen: dict[Path, tuple[Any, float]] = {}  # claims of others: what was seen of them, and since when


class ClaimLost(Exception):
    """Another process took this job over, as this one gave no sign of life for too long. Nothing more is written to it."""


class FolderGone(ClaimLost):
    """The job's folder, or a part of it, was taken away while the job ran: removed or renamed, and nobody else is at work on it.
    What is there by now is no whole job, so that it is to be made anew."""


@dataclass
class Claim:
    """A job that this process holds until `release`."""

    folder: Path
    file: Path
    token: str
    timeout: float
    lost: bool = field(default=False)

    def check(self) -> None:
        """See that the claim still holds.

        Raises:
            ClaimLost: it does not.
            FolderGone: the claim is gone, and no other process has put one in its place, or a result.
            StoreError: the folder cannot be read.
        """
        if self.lost or not self._holds():
            self.lost = True
            if not _numbers(self.folder) and not (self.folder / RESULT).exists():
                raise FolderGone(f"{self.folder} was taken away while its job ran")
            raise ClaimLost(f"{self.folder.name}: another process took this job over")

    def _holds(self) -> bool:
        try:
            return _number(self.file) == max(_numbers(self.folder)) and _read(self.file)["token"] == self.token
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
            return False  # taken over, and even done, by another
        except OSError as error:
            raise _unreadable(self.folder, error) from error

    def beat(self) -> None:
        """Give a sign of life."""
        with contextlib.suppress(OSError):  # a full or stalled disk is told by what is written there
            os.utime(self.file)

    def release(self) -> None:
        """Give the job back; files that dead holders left go too."""
        with _lock:
            _held.pop(self.folder, None)
        own = _number(self.file)
        try:
            numbers = sorted(_numbers(self.folder))
        except StoreError:  # which is told by what is written there
            return
        for number in numbers:
            # the lowest first, so that the job is never without a claim before the last one goes
            if number < own or (number == own and not self.lost):
                with contextlib.suppress(OSError):
                    _file(self.folder, number).unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # of a job that was not begun


def claim(folder: Path, timeout: float = TIMEOUT) -> Claim | None:
    """Claim the job of a folder; None if another process is at work on it.

    Args:
        folder: of the job, ``<output_dir>/<sweep_name>/<job_id>``; it need not exist yet.
        timeout: seconds without a sign of life after which a claim is stale.

    Raises:
        StoreError: the folder of the sweep cannot be written.
    """
    folder = _absolute(folder)
    numbers = _numbers(folder)
    if numbers and not _stale(folder, _file(folder, max(numbers)), timeout):
        return None
    made = Claim(folder, _file(folder, max(numbers, default=-1) + 1), f"{os.getpid()}-{uuid.uuid4().hex}", timeout)
    if not _create(made.file, {**_me(), "token": made.token}):
        return None
    if max(_numbers(folder), default=-1) != _number(made.file):  # one more was faster, and took over what we did
        with contextlib.suppress(OSError, ValueError):
            if _read(made.file)["token"] == made.token:
                made.file.unlink()
        return None
    with _lock:
        _held[folder] = made
    _start_heart()
    return made


def held(folder: Path) -> Claim | None:
    """The claim that this process has on a job."""
    return _held.get(_absolute(folder))


def is_claimed(folder: Path) -> bool:
    """Whether a process is, or was until it died, at work on a job."""
    return bool(_numbers(_absolute(folder)))


def holder(folder: Path) -> str:
    """Who holds a job, in a word or two: host and process."""
    folder = _absolute(folder)
    try:
        found = _read(_file(folder, max(_numbers(folder))))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, StoreError):
        return "another process"


def tidy(folder: Path, timeout: float = TIMEOUT) -> None:
    """Remove what dead processes left of claims on a job that is done."""
    folder = _absolute(folder)
    for number in sorted(_numbers(folder)):
        file = _file(folder, number)
        with contextlib.suppress(OSError):
            # of other machines nothing is known but the time; the job is done, so that a wrong guess does no harm
            if _ended(file) or abs(time.time() - file.stat().st_mtime) > 10 * timeout:
                file.unlink()


# -- files


def _file(folder: Path, number: int) -> Path:
    return folder / f"{CLAIM}{number}"


def _number(file: Path) -> int:
    return int(file.name.rpartition(".")[2])


def _numbers(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(folder, error) from error
    ends = [name.removeprefix(CLAIM) for name in names if name.startswith(CLAIM)]
    return [int(end) for end in ends if end.isdigit()]


def _create(file: Path, content: dict[str, Any]) -> bool:
    """Whether the file was not there, and now is."""
    try:
        _make_folder(file.parent)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    except FileNotFoundError:
        return False  # the folder was removed this moment: the job is free at the next look
    except OSError as error:
        raise StoreError(f"output_dir: {file.parent} cannot be written: {error.strerror or error}.") from error
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(json.dumps(content))
    except OSError as error:
        file.unlink(missing_ok=True)
        raise StoreError(f"output_dir: {file.parent} cannot be written: {error.strerror or error}.") from error
    return True


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StoreError(f"output_dir: found a file at {folder}; accepted is a folder, or nothing.") from error


def _absolute(folder: Path) -> Path:
    try:
        return Path(os.path.abspath(folder))
    except FileNotFoundError as error:
        raise StoreError(
            f"output_dir: {folder} is gone with the folder that the command was started in, which was removed."
        ) from error


def _unreadable(folder: Path, error: OSError) -> StoreError:
    return StoreError(f"output_dir: {folder} cannot be read: {error.strerror or error}.")


def _read(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
        raise ValueError(found)
    return found


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


# -- life and death


def _me() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": machine(), "pid": pid, "started": started(pid)}


def _ended(file: Path) -> bool:
    """Whether the process of a claim is known to live no more."""
    try:
        found = _read(file)
        pid = int(found["pid"])
    except (OSError, ValueError, KeyError):
        return False
    if found.get("machine") != machine():
        return False
    if pid == os.getpid() and all(found.get("token") != own.token for own in list(_held.values())):
        return True  # of this very process, and forgotten
    if found.get("started") is not None:
        return found["started"] != started(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _stale(folder: Path, file: Path, timeout: float) -> bool:
    try:
        with file.open("rb") as stream:  # opening asks a file server for the state of today
            status = os.fstat(stream.fileno())
            now = (file.name, stream.read(), status.st_mtime_ns)
    except FileNotFoundError:
        return False  # released this moment: its job is done, or free at the next look
    except OSError:
        now = (file.name, b"", 0)
    if _ended(file):
        return True
    before, since = _seen.get(folder, (None, 0.0))
    if before != now:
        _seen[folder] = (now, time.monotonic())
        return False
    return time.monotonic() - since >= timeout


def _start_heart() -> None:
    global _heart
    with _lock:
        if _heart is None or not _heart.is_alive():
            _heart = threading.Thread(target=_beat, name="claims", daemon=True)
            _heart.start()


def _beat() -> None:
    global _heart
    while True:
        with _lock:
            mine = list(_held.values())
            if not mine:
                _heart = None
                return
        for own in mine:
            own.beat()
        time.sleep(min(own.timeout for own in mine) / _BEATS)
