"""A worker: a process that a launcher started, on this machine or another, and that runs the chunks it is given."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig

from research.errors import UserError
from research.jobs import environment, process_cache
from research.jobs.engines.chunks import Chunk
from research.jobs.job_status import job_status
from research.jobs.machine_slots import VISIBLE, take_slot
from research.jobs.progress import configure_logging
from research.jobs.run_jobs import run_jobs

_log = logging.getLogger(__name__)
_device: str | None = None  # the one that this process took
_held: list[FileLock] = []


def run_chunk(config: DictConfig) -> dict[str, Any]:
    """The task function for Hydra's launchers: run the jobs of a chunk that have no result yet.

    Returns:
        ``jobs``, how many were run here, and ``stopped``, a line on why others of the chunk were not, or None.
    """
    configure_logging()
    file = Path(str(config.chunk))
    chunk = Chunk.load(file)
    if chunk is None:
        _log.info("%s: nothing to do, the sweep has ended without it", file.name)
        return {"jobs": 0, "stopped": None}
    try:
        with _placed(chunk):
            # it may be the second time for this chunk, its first worker dead or requeued
            left = [
                job
                for job, before in zip(chunk.jobs, chunk.before, strict=True)
                if (now := job_status(job)).result is None or now.stamp == (before and tuple(before))
            ]
            if chunk.devices:
                take_device(chunk.devices, hashlib.sha256(str(file.parent).encode()).hexdigest()[:16])
            _describe(chunk, file)
            where = f" with {VISIBLE}={os.environ[VISIBLE]}" if VISIBLE in os.environ else ""
            _log.info(
                "worker %d on %s%s: %d job%s",
                *(os.getpid(), socket.gethostname(), where, len(left), "s" * (len(left) != 1)),
            )
            if left:
                run_jobs(left)
            return {"jobs": len(left), "stopped": None}
    except KeyboardInterrupt:
        return {"jobs": 0, "stopped": "a worker was asked to stop"}
    except UserError as error:
        return {"jobs": 0, "stopped": str(error)}
    finally:
        process_cache.close_trackers()  # the worker may end without a word after any chunk


def _describe(chunk: Chunk, file: Path) -> None:
    environment.worker = {
        "launcher": chunk.launcher,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "chunk": file.stem,
        "visible_devices": os.environ.get(VISIBLE),
    }
    # the engine's own names for it, by which its logs are found
    engine = {"slurm_job": "SLURM_JOB_ID", "slurm_task": "SLURM_ARRAY_TASK_ID", "restarts": "SLURM_RESTART_COUNT"}
    environment.worker.update({key: os.environ[name] for key, name in engine.items() if name in os.environ})


@contextlib.contextmanager
def _placed(chunk: Chunk) -> Iterator[None]:
    """In the folder in which the sweep was started, with its modules."""
    before = os.getcwd()
    try:
        os.chdir(chunk.folder)
    except OSError as error:
        raise UserError(
            f"worker on {socket.gethostname()}: the folder {chunk.folder} is not there ({error.strerror}); accepted is a "
            "folder on a disk that all machines share."
        ) from error
    sys.path.extend(place for place in chunk.sys_path if place not in sys.path)
    try:
        yield
    finally:
        os.chdir(before)


# -- one device for each worker of this machine


def take_device(devices: list[str], sweep: str) -> str:
    """Make one of the devices the only one that this process sees: no two live workers of a sweep have the same, unless there
    are more workers than devices on this machine.

    It is kept until the process ends, and must be taken before CUDA is set up.
    """
    global _device
    if _device is None:
        free = ((k, taken) for k in itertools.count() if (taken := take_slot(f"{sweep}-{k}")))
        place, held = next(free)
        _held.append(held)
        _device = devices[place % len(devices)]
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            _log.warning("worker %d: CUDA was set up before a device could be chosen", os.getpid())
    os.environ[VISIBLE] = _device
    return _device
