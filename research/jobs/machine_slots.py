"""Places on this machine: how many processes of one sweep are at work at a time, and who gets which device.

More processes than there are CPUs for only get in each other's way: those that come later wait, without loading torch, until all
jobs have ended or a place becomes free. They share the sweep all the same: should a process die, the next one goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from research.jobs.job import Job
from research.jobs.job_status import JobStatus, job_status, stamp_of

VISIBLE = "CUDA_VISIBLE_DEVICES"
_PAUSE = (0.2, 1.0)  # seconds between two looks, at first and at most
_LONGEST = 60.0  # seconds
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def place(jobs: Sequence[Job]) -> Iterator[None]:
    """Wait until this process has a place at the jobs' sweep, or all of them have ended; the place is free again at the end.

    There is no limit where GPUs do the work, and none for jobs that are to be run again whoever has run them (``resume=false``,
    ``retry=failed``).
    """
    limit = _limit(jobs)
    taken = None if limit is None else _wait(jobs, limit)
    try:
        yield
    finally:
        if taken is not None:
            taken.close()


def _wait(jobs: Sequence[Job], limit: int) -> socket.socket | None:
    paths = sorted(str(job.folder.path.absolute()) for job in jobs)
    sweep = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:16]
    left: dict[Path, JobStatus] | None = None
    pause = _PAUSE[0]
    while (taken := next(filter(None, (take(f"{sweep}-{k}") for k in range(limit))), None)) is None:
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
def alone(what: str) -> Iterator[None]:
    """While it is open, no other process of this machine does the same; one that comes later waits, for a minute at most."""
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    until = time.monotonic() + _LONGEST
    while (taken := take(name)) is None and time.monotonic() < until:
        time.sleep(_PAUSE[0])
    try:
        yield
    finally:
        if taken is not None:
            taken.close()


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


def take(name: str) -> socket.socket | None:
    """A place on this machine, for as long as the socket is open; None where another process has it.

    It is a socket name without a file, which the kernel gives to one process and takes back when that ends, however it ends.
    """
    taken = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        taken.bind(f"\0research-{name}")
    except OSError:
        taken.close()
        return None
    return taken


def _limit(jobs: Sequence[Job]) -> int | None:
    """How many processes work at a time; None without a limit."""
    again = any(not job.config["resume"] or job.config.get("retry") == "failed" for job in jobs)
    on_gpu = any(job.config["model"].get("device") != "cpu" for job in jobs) and bool(visible_devices())
    if again or on_gpu or not Path("/proc/net/unix").exists():
        return None
    # without a number torch takes all
    threads = max(job.config["runtime"].get("threads") or cpus() for job in jobs)
    return max(1, cpus() // threads)
