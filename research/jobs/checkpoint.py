"""A job that was interrupted between two batches goes on with the next one: ``partial.json`` says what is complete."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from research.jobs import environment
from research.jobs.faults import check
from research.jobs.job import Job
from research.jobs.signals import Interrupted
from research.jobs.store import PARTIAL

# of a result: what grows with the batches, and what it must have been made with
GROWN = ("images", "nfe", "nfe_by_branch", "truncated", "warnings", "out_of_memory", "together")
_SAME = ("device", "weights_sha256")
_SECONDS_BETWEEN = 60.0
_log = logging.getLogger(__name__)


class Checkpoint:
    """What is complete of one job, on disk: written when the job is interrupted, and now and then while it runs."""

    def __init__(self, job: Job):
        self._job, self._folder = job, job.folder
        self._noted = time.monotonic()
        self._found: dict[str, Any] | None = None

    def begin(self) -> None:
        """Make the job's folder ready: empty, or with the batches that are complete."""
        self._found = self._read()
        files = [entry["file"] for entry in self._found["images"]] if self._found else []
        self._folder.clear(keep=[*files, PARTIAL] if files else ())
        self._folder.write_config(self._job.config)

    def go_on(self, record: Any) -> None:
        """Take over what is complete, if it was made with this model on such a device.

        Args:
            record: of the job on its way: its result, trace, watch and saved images.
        """
        found, self._found = self._found, None
        if found is None:
            return
        if any(found[key] != record.result[key] for key in _SAME):
            self._folder.clear()
            self._folder.write_config(self._job.config)
            return
        record.result.update({key: found[key] for key in GROWN})
        record.trace = found["trace"]
        record.watch.add(found["seconds"])
        for entry in found["images"]:
            record.saved.take(self._folder.path / entry["file"])
        _log.info("    %d of %d images were made before", len(record.saved), len(record.seeds))

    def between_batches(self, record: Any) -> None:
        """See whether the job may go on.

        Raises:
            Interrupted: someone asked to stop; what is complete has been noted.
            ClaimLost: another process took the job over.
        """
        try:
            check(self._folder.path)
        except Interrupted:
            self.note(record)
            raise
        # after the last batch too: scoring many images may take long, and be interrupted
        if time.monotonic() - self._noted >= _SECONDS_BETWEEN:
            self.note(record)

    def note(self, record: Any) -> None:
        """Write down what is complete."""
        if self._job.config["hooks"]:
            return
        kept = {key: record.result[key] for key in (*GROWN, *_SAME, "identity", "versions")}
        self._folder.write_partial({**kept, "trace": record.trace, "seconds": record.watch.seconds})
        self._noted = time.monotonic()

    def _read(self) -> dict[str, Any] | None:
        """What is complete, if it is of the same job and versions and every image is as it was written.

        Hooks may keep something of all batches, in ways of their own: a job with hooks starts anew.
        """
        if self._job.config["hooks"] or not self._job.config["resume"]:
            return None
        keys = {*GROWN, *_SAME, "trace", "seconds"}
        try:
            found = json.loads((self._folder.path / PARTIAL).read_text(encoding="utf-8"))
            fits = found["identity"] == self._job.digest and found["versions"] == environment.versions()
            whole = fits and found["images"] and keys <= found.keys() and not self._folder.flaw(found)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if whole else None
