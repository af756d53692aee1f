"""Slots on this machine: how many processes of one sweep are at work at a time, and who gets which device.

More processes than there are CPUs for only get in each other's way: those that come later wait, without loading torch, until all
jobs have ended or a slot becomes free. They share the sweep all the same: should a process die, the next one goes on.

A slot is a lock on a file in a folder of this user's below the machine's folder for temporary files. The system gives it back
when the process ends, however it ends. The empty files stay, for whoever comes next. Processes of other users, and of containers
with temporary folders of their own, do not see it: they are not waited for, and claims (`research.jobs.claims`) see to it that no
job is done twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from research.jobs.job import Job
from research.jobs.job_status import JobStatus, job_status, stamp_of

VISIBLE = "CUDA_VISIBLE_DEVICES"
_PAUSE = (0.2, 1.0)  # seconds between two looks, at first and at most
_LONGEST = 60.0  # seconds
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def machine_slot(jobs: Sequence[Job]) -> Iterator[None]:
    """Wait until this process has a slot at the jobs' sweep, or all of them have ended; the slot is free again at the end.

    There is no limit where GPUs do the work, and none for jobs that are to be run again whoever has run them (``resume=false``,
    ``retry=failed``).
    """
    limit = _limit(jobs)
    taken = None if limit is None else _wait(jobs, limit)
    try:
        yield
    finally:
        if taken is not None:
            taken.release()


def _wait(jobs: Sequence[Job], limit: int) -> FileLock | None:
    paths = sorted(str(job.folder.path.absolute()) for job in jobs)
    sweep = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:16]
    left: dict[Path, JobStatus] | None = None
    pause = _PAUSE[0]
    while (taken := next(filter(None, (take_slot(f"{sweep}-{k}") for k in range(limit))), None)) is None:
        if left is None:
            left = {job.folder.path: one for job in jobs if (one := job_status(job)).result is None}
            if left:
                here = "another process" if limit == 1 else f"{limit} other processes"
                _log.info(
                    "waiting: %s of this machine %s at work on this sweep, as many as its %d CPUs serve%s",
                    *(here, "is" if limit == 1 else "are", cpus()),
                    "" if limit > 1 or cpus() == 1 else "; runtime.threads=1 lets one a CPU work",
                )
        left = {path: one for path, one in left.items() if stamp_of(path) == one.stamp}
        if not left:
            return None
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE[1])
    return taken


@contextlib.contextmanager
def only_process(what: str) -> Iterator[None]:
    """While it is open, no other process of this machine does the same; one that comes later waits, for a minute at most."""
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    until = time.monotonic() + _LONGEST
    while (taken := take_slot(name)) is None and time.monotonic() < until:
        time.sleep(_PAUSE[0])
    try:
        yield
    finally:
        if taken is not None:
            taken.release()


def visible_devices() -> list[str]:
    """The GPUs that processes of this machine may use, as ``CUDA_VISIBLE_DEVICES`` names them. Torch is not imported."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    gpus = Path("/proc/driver/nvidia/gpus")
    return [str(k) for k in range(len(list(gpus.iterdir())))] if gpus.is_dir() else []


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def take_slot(name: str) -> FileLock | None:
    """A slot on this machine, until it is released or the process ends; None where another has it, this process included.

    Where the folder for temporary files takes no locks, everyone gets the slot: there is no limit then.
    """
    folder = Path(tempfile.gettempdir(), f"research-{os.getuid() if hasattr(os, 'getuid') else 'user'}")
    lock = FileLock(folder / f"{name}.lock")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        _log.debug("%s takes no locks: %s", folder, error)
    return lock


def _limit(jobs: Sequence[Job]) -> int | None:
    """How many processes work at a time; None without a limit."""
    again = any(not job.config["resume"] or job.config.get("retry") == "failed" for job in jobs)
    on_gpu = any(job.config["model"].get("device") != "cpu" for job in jobs) and bool(visible_devices())
    if again or on_gpu:
        return None
    # without a number torch takes all
    threads = max(job.config["runtime"].get("threads") or cpus() for job in jobs)
    return max(1, cpus() // threads)
