"""How a job stands before it is run: not done, done, failed, or damaged and to be done again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.jobs.identity import ID_LENGTH
from research.jobs.run_job import Job
from research.jobs.store import RESULT, read_result

_log = logging.getLogger(__name__)
_LONG = 2 * ID_LENGTH


@dataclass
class Standing:
    """What is on disk of a job.

    Attributes:
        result: ``result.json`` of a job that is done and whole, or that failed; None if there is none that counts.
        stamp: tells one ``result.json`` from a later one; None without one.
        problem: what is wrong with a record that does not count, in a few words.
        collides: whether the record is of another job, whose short id is the same by chance.
    """

    result: dict[str, Any] | None = None
    stamp: tuple[int, int] | None = None
    problem: str | None = None
    collides: bool = False

    @property
    def done(self) -> bool:
        return self.result is not None and self.result.get("status") == "done"


def stamp_of(folder: Path) -> tuple[int, int] | None:
    """The stamp of a job's folder (see `Standing`), without reading what is in it."""
    try:
        status = (folder / RESULT).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def standing(job: Job) -> Standing:
    """Look at a job's folder."""
    folder = job.folder
    stamp = stamp_of(folder.path)
    if stamp is None:
        return Standing()
    result = read_result(folder.path)
    if result is None:
        return Standing(stamp=stamp, problem=f"{RESULT} cannot be read")
    if result.get("job_id") != job.id:
        return Standing(stamp=stamp, problem=f"{RESULT} is of another job, {result.get('job_id')}")
    if result.get("identity", job.digest) != job.digest:
        return Standing(stamp=stamp, problem=f"{RESULT} is of another job of the same id", collides=True)
    if result.get("status") == "failed":
        return Standing(result, stamp)
    if not folder.is_done(result):
        return Standing(stamp=stamp, problem=f"{RESULT} has the status {result.get('status')!r}")
    flaw = folder.flaw(result)
    return Standing(None if flaw else result, stamp, flaw)


def to_run(job: Job, found: Standing) -> bool:
    """Whether a job is to be run as it stands: done ones are not unless ``resume=false``, failed ones not unless
    ``retry=failed``."""
    if found.result is None or not job.config["resume"]:
        return True
    return not found.done and job.config.get("retry") == "failed"


def survey(jobs: Sequence[Job]) -> dict[Path, Standing]:
    """How all jobs of a sweep stand, by folder; damaged records are said in the log.

    Jobs whose short ids are the same by chance get longer ones, also where the other job is one on disk.
    """
    count = Counter(job.folder.path for job in jobs)
    for job in jobs:
        if count[job.folder.path] > 1:
            job.id = job.digest[:_LONG]
    found = {}
    for job in jobs:
        one = standing(job)
        if one.collides:
            job.id = job.digest[:_LONG]
            one = standing(job)
        if one.problem:
            _log.warning("job %s: %s; the job is done again", job.id, one.problem)
        found[job.folder.path] = one
    return found
