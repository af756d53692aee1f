"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import socket
import stat
import tempfile
import threading
import zlib
from pathlib import Path

_asking = threading.Lock()
_SCRATCH = re.compile(r"^\..+\.([0-9a-f]{8})-(\d+)-(\d+)\.[^.]+$")


def write_atomic(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Replaces `path` by a complete file with `content` (text as UTF-8), or leaves it as it was.

    With `durable` it is on the disk before this returns, and outlives a power cut too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.{_writer(os.getpid())}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.chmod(scratch, 0o666 & ~umask())  # mkstemp makes private files, and results are there to be read
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def plain_file(folder: Path, name: str) -> Path:
    """A file below a folder that may come from anywhere: one that is a file, and no link out of the folder.

    To open a pipe waits for ever, and a link may lead to what is nobody else's.

    Args:
        folder: of a job.
        name: relative to it.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is a folder, a pipe, a device, or leads out of the folder; its ``strerror`` says which.
    """
    path = folder / name
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    above = [path, *(parent for parent in path.parents if parent.is_relative_to(folder) and parent != folder)]
    if any(part.is_symlink() for part in above) and not path.resolve().is_relative_to(folder.resolve()):
        raise PermissionError(errno.EPERM, "is a link out of its folder", str(path))
    return path


def read_plain(folder: Path, name: str) -> bytes:
    """The content of `plain_file`, with its errors."""
    return plain_file(folder, name).read_bytes()


def remove_leftovers(folder: Path) -> None:
    """Removes what processes of this machine that were killed have left of files they were writing in a folder."""
    for file in folder.glob(".*"):
        found = _SCRATCH.match(file.name)
        if found and found[1] == _machine_word() and (started(int(found[2])) or "0") != found[3]:
            with contextlib.suppress(OSError):
                file.unlink()


def machine() -> str:
    """Where process ids mean the same: this boot of this machine, in this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def started(pid: int) -> str | None:
    """When a process started, in the kernel's own ticks, which no clock moves; None without such a process, or without /proc."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state[0] in "ZX" else state[19]


@functools.cache
def _machine_word() -> str:
    return f"{zlib.crc32(machine().encode()):08x}"


@functools.cache
def _writer(pid: int) -> str:
    return f"{_machine_word()}-{pid}-{started(pid) or 0}"


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times (ns) of a file, or of all files of a folder: another one once anything in it was written. For the
    keys of what is kept in memory; a time is no identity for a record."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    found = []
    for file in files:
        status = file.stat()
        found.append((file.relative_to(path).as_posix(), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _sync_folder(folder: Path) -> None:
    """Sees the renaming to the disk, where folders can be synced at all."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """The bits that files made here lack."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    with _asking:  # elsewhere it is only told by who sets it, and another thread must not see that
        mask = os.umask(0)
        os.umask(mask)
    return mask
