"""The one loop over jobs: those that are not done yet are claimed and run, those of other processes are waited for."""

from __future__ import annotations

import logging
import textwrap
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from research.jobs import claims, process_cache, signals
from research.jobs.job import Job
from research.jobs.job_status import (
    JobStatus,
    job_status,
    needs_run,
    stamp_of,
    statuses,
    warn_of_damage,
    with_ids_of_their_own,
)
from research.jobs.progress import Progress
from research.jobs.record import (
    RESULT,
    SWEEP,
    DamagedRecord,
    JobResult,
    NoRecord,
    StoreError,
    SweepRecord,
    read_sweep_record,
    write_sweep_record,
)
from research.jobs.run_job import JobRunner
from research.jobs.shared_batches import SharedBatches
from research.package import VERSION

_log = logging.getLogger(__name__)
_LIVES = 3  # times that a job is made before whoever takes its folder away is asked to stop
_LOOK_AGAIN = (0.1, 2.0)  # seconds between two looks at jobs of other processes, at first and at most


@dataclass
class Outcome:
    """What became of the jobs of a sweep."""

    results: list[JobResult] = field(default_factory=list)  # in the order in which they ran
    reused: int = 0  # done or failed before, and not run again
    left_out: int = 0  # not run, because on_failure=stop and another job had failed

    @property
    def failed(self) -> list[JobResult]:
        return [result for result in self.results if not result.done]


def run_jobs(jobs: Sequence[Job], progress: Progress | None = None, runner: JobRunner | None = None) -> Outcome:
    """Run jobs in this process, beside any number of others that were given jobs of the same folders.

    Done jobs are not run again (unless ``resume=false``), nor are failed ones (unless ``retry=failed``). A failing job stops no
    other (unless ``on_failure=stop``). What another process is at work on is waited for, and taken over should that process die.
    Jobs whose folders were taken away meanwhile are made again.

    Args:
        progress: what shows how far they are; by default as the first job's ``runtime.progress`` says.
        runner: how they are run; in batches that jobs share by default.

    Raises:
        StoreError: the output folder cannot be written any more, or what is written there is taken away again and again.
        KeyboardInterrupt: asked to stop, by Ctrl-C or SIGTERM; done jobs stay done, and the images under way were finished.
    """
    with signals.listening(jobs[0].settings.runtime.grace if jobs else signals.GRACE):
        try:
            return _Work(with_ids_of_their_own(jobs), progress, runner or SharedBatches()).run()
        except KeyboardInterrupt:
            _close_trackers(signals.seconds_left(5.0))
            raise


def waiting(jobs: Sequence[Job]) -> tuple[list[Job], list[JobResult], dict[Path, JobStatus]]:
    """The jobs that are to be run, the results of the others, and how each stands, by folder. The log says what is reused, and
    what is damaged."""
    found = statuses(jobs)
    warn_of_damage(jobs, found)
    open_jobs: list[Job] = []
    closed: list[JobResult] = []
    for job in jobs:
        one = found[job.folder.path]
        if one.result is None or needs_run(job, one):
            open_jobs.append(job)
        else:
            closed.append(one.result)
            claims.tidy(job.folder.path, _timeout(job))
    if closed:
        _log.info("%s", reused_line(closed, len(jobs)))
    return open_jobs, closed, found


def reused_line(closed: Sequence[JobResult], total: int) -> str:
    """What is said of jobs that are not run again."""
    failed = sum(not result.done for result in closed)
    done = len(closed) - failed
    strange = {str(result.versions.get("research")) for result in closed} - {VERSION}
    parts = []
    if done:
        parts.append(f"{done} of {total} job{'s' * (total != 1)} done before and reused (resume=false runs them again)")
    if failed:
        parts.append(f"{failed} failed before and left so (retry=failed runs them again)")
    if strange:
        parts.append(f"some are of research {', '.join(sorted(strange))}, and this is {VERSION}")
    return "; ".join(parts)


class _Work:
    """One call of `run_jobs`."""

    def __init__(self, jobs: Sequence[Job], progress: Progress | None, runner: JobRunner):
        self.jobs = jobs
        self.runner = runner
        self.before: dict[Path, JobStatus] = {}
        self.outcome = Outcome()
        self.progress = progress
        self.stopped = False
        self.taken: Counter[Path] = Counter()  # how often a job's folder was taken away
        self.records: dict[Path, SweepRecord] = {}
        self.splits = False  # whether what can be claimed of a unit is run without the rest

    def run(self) -> Outcome:
        left, closed, self.before = waiting(self.jobs)
        self.outcome.results.extend(closed)
        self.reused = {result.job_id for result in closed}
        self.outcome.reused = len(closed)
        if not left:
            return self.outcome
        self.records = _sweep_records(self.jobs)
        self.common = set.intersection(*(set(job.overrides) for job in self.jobs)) if len(self.jobs) > 1 else set()
        self.progress = self.progress or Progress(left[0].settings.runtime.progress, len(left))
        with self.progress.sweep():
            left = self._round(left)
            self.splits = True
            theirs = [job.folder.path for job in left if claims.is_claimed(job.folder.path)]
            if theirs and not self.stopped:
                _log.info("waiting for %d job%s of %s", len(theirs), "s" * (len(theirs) > 1), claims.holder(theirs[0]))
            pause = _LOOK_AGAIN[0]
            while (left := left or self._taken_away()) and not self.stopped:
                signals.wait(pause)
                still = self._round(left)
                pause = min(2 * pause, _LOOK_AGAIN[1]) if len(still) == len(left) else _LOOK_AGAIN[0]
                left = still
        self.outcome.left_out = len(left)
        if self.taken:
            _restore(self.records)
        return self.outcome

    def _taken_away(self) -> list[Job]:
        """Jobs that had ended and whose records are gone, as someone took their folders away; these are to be made again."""
        gone = [job for job in self.jobs if stamp_of(job.folder.path) is None]
        if not gone:
            return []
        ids = {job.id for job in gone}
        self.outcome.reused -= len(ids & self.reused)
        self.reused -= ids
        self.outcome.results = [result for result in self.outcome.results if result.job_id not in ids]
        if self.progress is not None:
            self.progress.more(len(gone))
        more = f" and those of {len(gone) - 1} more jobs" if len(gone) > 1 else ""
        self._note_taken(gone, f"{gone[0].folder.path / RESULT}{more}: taken away after the jobs had ended")
        return gone

    def _note_taken(self, jobs: Sequence[Job], what: str) -> None:
        self.taken.update(job.folder.path for job in jobs)
        if max(self.taken.values()) >= _LIVES:
            raise StoreError(f"output_dir: {what}, {_LIVES} times by now; the same command makes what is missing.")
        _log.warning("%s; made again", what)

    def _before(self, job: Job) -> JobStatus:
        return self.before[job.folder.path]

    def _round(self, jobs: Sequence[Job]) -> list[Job]:
        """Run of the jobs what nobody else is at work on; return the others, and what ``on_failure=stop`` leaves."""
        left: list[Job] = []
        for unit in self.runner.units(jobs):
            if self.stopped:
                left.extend(unit)
                continue
            signals.check()
            left.extend(self._unit(unit))
        return left

    def _unit(self, unit: Sequence[Job]) -> list[Job]:
        """Run what can be claimed of a unit; return what cannot."""
        held: list[Job] = []
        busy: list[Job] = []
        with ExitStack() as given_back:
            for job in unit:
                if self._done_elsewhere(job):
                    continue
                claim = claims.claim(job.folder.path, _timeout(job))
                if claim is None:
                    busy.append(job)
                    if self.splits:
                        continue
                    # whoever got here first takes the whole unit; should it not, the rest is free at the next round
                    return [*held, *busy, *unit[unit.index(job) + 1 :]]
                given_back.callback(claim.release)
                if not self._done_elsewhere(job):  # between the look and the claim
                    held.append(job)
            if held:
                busy.extend(self._run(held))
        return busy

    def _run(self, jobs: Sequence[Job]) -> list[Job]:
        assert self.progress is not None
        try:
            with self.progress.job(self._label(jobs), len(jobs)) as observer:
                results = self.runner.run(jobs, observer)
        except claims.FolderGone as error:
            left = [job for job in jobs if not self._ended_here(job)]
            self._note_taken([job for job in left if not claims.is_claimed(job.folder.path)] or left, str(error))
            return left
        except claims.ClaimLost as error:
            _log.warning("%s; its result is waited for", error)
            return list(jobs)
        for job, result in zip(jobs, results, strict=True):
            self._ended(job, result)
        return []

    def _done_elsewhere(self, job: Job) -> bool:
        """Whether another process has ended the job since this one looked at it first."""
        path = job.folder.path
        found = job_status(job)
        if found.result is None or found.stamp == self._before(job).stamp:
            return False
        assert self.progress is not None
        self.progress.elsewhere(self._label([job]))
        self._ended(job, found.result)
        claims.tidy(path, _timeout(job))
        return True

    def _ended_here(self, job: Job) -> bool:
        """Whether a job of a unit that was broken off has its result all the same."""
        found = job_status(job)
        if found.result is None or found.stamp == self._before(job).stamp:
            return False
        self._ended(job, found.result)
        return True

    def _ended(self, job: Job, result: JobResult) -> None:
        assert self.progress is not None
        self.outcome.results.append(result)
        self.progress.ended(_ending(result), failed=not result.done)
        self.stopped = self.stopped or (not result.done and job.settings.on_failure == "stop")

    def _label(self, jobs: Sequence[Job]) -> str:
        """Jobs by what tells them from the others of their sweep."""
        own = [line for line in jobs[0].overrides if line not in self.common]
        more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        return f"{textwrap.shorten(' '.join(own) or 'defaults', 120, placeholder=' ...')} ({jobs[0].id}{more})"


def _sweep_records(jobs: Sequence[Job]) -> dict[Path, SweepRecord]:
    """What stands in ``sweep.json``, by the folder of the sweep."""
    found = {}
    for folder in {job.folder.path.parent for job in jobs}:
        with suppress(NoRecord, DamagedRecord):
            found[folder] = read_sweep_record(folder)
    return found


def _restore(records: Mapping[Path, SweepRecord]) -> None:
    """Write again what was taken away together with the folders of jobs."""
    for folder, kept in records.items():
        if not (folder / SWEEP).exists():
            write_sweep_record(folder, kept, durable=True)


def _timeout(job: Job) -> float:
    return job.settings.runtime.claim_timeout


def _ending(result: JobResult) -> str:
    if not result.done:
        return f"failed: {result.error}"
    scores = [f"{name} {value:.4g}" for name, value in result.metrics.items() if value is not None]
    return ", ".join([f"{result.timings.get('total', 0):.1f} s", f"{result.nfe} NFE", *scores])


def _close_trackers(seconds: float) -> None:
    """Let trackers finish, for so long and no longer."""
    thread = threading.Thread(target=process_cache.close_trackers, name="trackers", daemon=True)
    thread.start()
    thread.join(seconds)
