"""How a job stands before it is run: not done, done, failed, or damaged and to be done again. Looking changes nothing."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from research.jobs.identity import ID_LENGTH
from research.jobs.job import Job
from research.jobs.record import RESULT, DamagedRecord, JobResult, NoRecord, read_result

_log = logging.getLogger(__name__)
_LONG = 2 * ID_LENGTH


@dataclass(frozen=True)
class JobStatus:
    """What is on disk of a job.

    Attributes:
        result: of a job that is done and whole, or that failed; None if there is none that counts.
        stamp: tells one ``result.json`` from a later one; None without one.
        problem: what is wrong with a record that does not count, in a few words.
        collides: whether the record is of another job, whose short id is the same by chance.
    """

    result: JobResult | None = None
    stamp: tuple[int, int] | None = None
    problem: str | None = None
    collides: bool = False

    @property
    def done(self) -> bool:
        return self.result is not None and self.result.done


def stamp_of(folder: Path) -> tuple[int, int] | None:
    """The stamp of a job's folder (see `JobStatus`), without reading what is in it."""
    try:
        status = (folder / RESULT).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def job_status(job: Job) -> JobStatus:
    """Look at a job's folder."""
    folder = job.folder
    stamp = stamp_of(folder.path)
    if stamp is None:
        return JobStatus()
    try:
        result = read_result(folder.path)
    except NoRecord:
        return JobStatus(stamp=stamp, problem=f"{RESULT} is no file")
    except DamagedRecord as error:
        what = str(error).removeprefix(f"{folder.path / RESULT}: ").rstrip(".")
        return JobStatus(stamp=stamp, problem=f"{RESULT} cannot be read ({what})")
    if result.job_id != job.id:
        return JobStatus(stamp=stamp, problem=f"{RESULT} is of another job, {result.job_id}")
    if (result.identity or job.digest) != job.digest:
        return JobStatus(stamp=stamp, problem=f"{RESULT} is of another job of the same id", collides=True)
    if result.altered:
        return JobStatus(stamp=stamp, problem=f"{RESULT} was altered after it was written")
    if not result.done:
        return JobStatus(result, stamp)
    flaw = folder.flaw(result.images, result.files)
    return JobStatus(None if flaw else result, stamp, flaw)


def needs_run(job: Job, status: JobStatus) -> bool:
    """Whether a job is to be run as it stands: done ones are not unless ``resume=false``, failed ones not unless
    ``retry=failed``."""
    if status.result is None or not job.config["resume"]:
        return True
    return not status.done and job.config.get("retry") == "failed"


def with_ids_of_their_own(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, those with longer ids whose short ones are the same by chance, be the other one among them or on disk."""
    count = Counter(job.folder.path for job in jobs)

    def collides(job: Job) -> bool:
        return count[job.folder.path] > 1 or job_status(job).collides

    return [dataclasses.replace(job, id=job.digest[:_LONG]) if collides(job) else job for job in jobs]


def statuses(jobs: Sequence[Job]) -> dict[Path, JobStatus]:
    """How all jobs of a sweep stand, by folder."""
    return {job.folder.path: job_status(job) for job in jobs}


def warn_of_damage(jobs: Sequence[Job], found: Mapping[Path, JobStatus]) -> None:
    """Say in the log which records do not count, and why."""
    for job in jobs:
        if problem := found[job.folder.path].problem:
            _log.warning("job %s: %s; the job is done again", job.id, problem)
