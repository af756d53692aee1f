"""A job that was interrupted between two batches goes on with the next one: ``partial.json`` says what is complete."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from research.jobs import environment, job_images, record
from research.jobs.faults import check
from research.jobs.images import SavedImages
from research.jobs.job import Job
from research.jobs.record import PARTIAL, Checkpoint, DamagedRecord, JobResult, NoRecord, Trace
from research.jobs.signals import Interrupted
from research.jobs.timing import Stopwatch

_SECONDS_BETWEEN = 60.0
_log = logging.getLogger(__name__)


class Resumable(Protocol):
    """A job on its way, as far as a checkpoint holds it."""

    result: JobResult
    trace: Trace
    watch: Stopwatch
    saved: SavedImages
    seeds: list[int]


class CheckpointFile:
    """What is complete of one job, on disk: written when the job is interrupted, and now and then while it runs.

    A job with hooks, which may keep something of all batches in ways of their own, has no checkpoint and starts anew; see
    `job_images.keeps_batches`.
    """

    def __init__(self, job: Job):
        self._job, self._folder = job, job.folder
        self._written = time.monotonic()
        self._found: Checkpoint | None = None

    def prepare_folder(self) -> None:
        """Make the job's folder ready: empty, or with the batches that are complete."""
        self._found = self.read()
        files = [image.file for image in self._found.images] if self._found else []
        self._folder.clear(keep=[*files, PARTIAL] if files else ())
        self._folder.write_config(self._job.config)

    def read(self) -> Checkpoint | None:
        """What is complete, if it is of the same job and versions and every image is as it was written."""
        if job_images.keeps_batches(self._job.config) or not self._job.settings.resume:
            return None
        try:
            found = record.read_checkpoint(self._folder.path / PARTIAL)
        except (NoRecord, DamagedRecord):
            return None
        fits = not found.altered and found.identity == self._job.digest and found.versions == environment.versions()
        return found if fits and found.images and not self._folder.flaw(found.images) else None

    def resume(self, run: Resumable) -> None:
        """Have a job go on after what is complete, if that was made with its model on such a device; else empty its folder."""
        found, self._found = self._found, None
        if found is None:
            return
        if (found.device, found.weights_sha256) != (run.result.device, run.result.weights_sha256):
            self._folder.clear()
            self._folder.write_config(self._job.config)
            return
        for name, value in found.made_so_far().items():
            setattr(run.result, name, value)
        run.trace = Trace.of(found.trace)
        run.watch.add(found.seconds)
        for image in found.images:
            run.saved.add_saved(self._folder.path / image.file)
        _log.info("    %d of %d images were made before", len(run.saved), len(run.seeds))

    def between_batches(self, run: Resumable) -> None:
        """See whether the job may go on.

        Raises:
            Interrupted: someone asked to stop; what is complete has been written down.
            ClaimLost: another process took the job over.
        """
        try:
            check(self._folder.path)
        except Interrupted:
            self.write(run)
            raise
        # after the last batch too: scoring many images may take long, and be interrupted
        if time.monotonic() - self._written >= _SECONDS_BETWEEN:
            self.write(run)

    def write(self, run: Resumable) -> None:
        """Write down what is complete."""
        if job_images.keeps_batches(self._job.config):
            return
        record.write_checkpoint(self._folder.path / PARTIAL, checkpoint_of(self._job, run))
        self._written = time.monotonic()


def checkpoint_of(job: Job, run: Resumable) -> Checkpoint:
    """What is complete of a job, and what it was made with."""
    return Checkpoint(
        identity=job.digest,
        versions=run.result.versions,
        device=run.result.device,
        weights_sha256=run.result.weights_sha256,
        trace=run.trace.content(),
        seconds=dict(run.watch.seconds),
        **run.result.made_so_far(),
    )
