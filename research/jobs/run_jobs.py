"""The one loop over jobs: those that are not done yet are claimed and run, those of other processes are waited for."""

from __future__ import annotations

import logging
import textwrap
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.jobs import claims, process_cache, shared_batches, signals
from research.jobs.job import Job
from research.jobs.job_status import Standing, standing, survey, to_run
from research.jobs.progress import Progress
from research.package import VERSION

_log = logging.getLogger(__name__)
_LOOK_AGAIN = (0.1, 2.0)  # seconds between two looks at jobs of other processes, at first and at most


@dataclass
class Outcome:
    """What became of the jobs of a sweep."""

    results: list[dict[str, Any]] = field(default_factory=list)  # in the order in which they ran
    reused: int = 0  # done or failed before, and not run again
    left_out: int = 0  # not run, because on_failure=stop and another job had failed

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [result for result in self.results if result.get("status") != "done"]


def run_jobs(jobs: Sequence[Job], progress: Progress | None = None) -> Outcome:
    """Run jobs in this process, beside any number of others that were given jobs of the same folders.

    Done jobs are not run again (unless ``resume=false``), nor are failed ones (unless ``retry=failed``). A failing job stops no
    other (unless ``on_failure=stop``). What another process is at work on is waited for, and taken over should that process die.

    Raises:
        StoreError: the output folder cannot be written any more.
        KeyboardInterrupt: asked to stop, by Ctrl-C or SIGTERM; done jobs stay done, and the images under way were finished.
    """
    runtime = jobs[0].config["runtime"] if jobs else {}
    with signals.listening(runtime.get("grace", signals.GRACE)):
        try:
            return _Work(jobs, progress).run()
        except KeyboardInterrupt:
            _close_trackers(signals.seconds_left(5.0))
            raise


def waiting(jobs: Sequence[Job]) -> tuple[list[Job], list[dict[str, Any]], dict[Path, Standing]]:
    """The jobs that are to be run, the results of the others, and how each stands, by folder. The log says what is reused, and
    what is damaged."""
    found = survey(jobs)
    open_jobs: list[Job] = []
    closed: list[dict[str, Any]] = []
    for job in jobs:
        one = found[job.folder.path]
        if one.result is None or to_run(job, one):
            open_jobs.append(job)
        else:
            closed.append(one.result)
            claims.tidy(job.folder.path, _timeout(job))
    if closed:
        _log.info("%s", reused_line(closed, len(jobs)))
    return open_jobs, closed, found


def reused_line(closed: Sequence[dict[str, Any]], total: int) -> str:
    """What is said of jobs that are not run again."""
    failed = sum(result.get("status") != "done" for result in closed)
    done = len(closed) - failed
    strange = {str(result.get("versions", {}).get("research")) for result in closed} - {VERSION}
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

    def __init__(self, jobs: Sequence[Job], progress: Progress | None):
        self.jobs = jobs
        self.before: dict[Path, Standing] = {}
        self.outcome = Outcome()
        self.progress = progress
        self.stopped = False
        self.splits = False  # whether what can be claimed of a unit is run without the rest

    def run(self) -> Outcome:
        left, closed, self.before = waiting(self.jobs)
        self.outcome.results.extend(closed)
        self.outcome.reused = len(closed)
        if not left:
            return self.outcome
        self.common = set.intersection(*(set(job.overrides) for job in self.jobs)) if len(self.jobs) > 1 else set()
        self.progress = self.progress or Progress(left[0].config["runtime"]["progress"], len(left))
        with self.progress.sweep():
            left = self._round(left)
            self.splits = True
            if left and not self.stopped:
                _log.info(
                    "waiting for %d job%s of %s", len(left), "s" * (len(left) > 1), claims.holder(left[0].folder.path)
                )
            pause = _LOOK_AGAIN[0]
            while left and not self.stopped:
                signals.wait(pause)
                still = self._round(left)
                pause = min(2 * pause, _LOOK_AGAIN[1]) if len(still) == len(left) else _LOOK_AGAIN[0]
                left = still
        self.outcome.left_out = len(left)
        return self.outcome

    def _before(self, job: Job) -> Standing:
        return self.before[job.folder.path]

    def _round(self, jobs: Sequence[Job]) -> list[Job]:
        """Run of the jobs what nobody else is at work on; return the others, and what ``on_failure=stop`` leaves."""
        left: list[Job] = []
        for unit in shared_batches.units(jobs):
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
            with self.progress.job(self._label(jobs)) as observer:
                results = shared_batches.run_unit(jobs, observer)
        except claims.ClaimLost as error:
            _log.warning("%s; its result is waited for", error)
            return list(jobs)
        for job, result in zip(jobs, results, strict=True):
            self._ended(job, result)
        return []

    def _done_elsewhere(self, job: Job) -> bool:
        """Whether another process has ended the job since this one looked at it first."""
        path = job.folder.path
        found = standing(job)
        if found.result is None or found.stamp == self._before(job).stamp:
            return False
        assert self.progress is not None
        self.progress.elsewhere(self._label([job]))
        self._ended(job, found.result)
        claims.tidy(path, _timeout(job))
        return True

    def _ended(self, job: Job, result: dict[str, Any]) -> None:
        assert self.progress is not None
        self.outcome.results.append(result)
        failed = result["status"] != "done"
        self.progress.ended(_ending(result), failed=failed)
        self.stopped = self.stopped or (failed and job.config["on_failure"] == "stop")

    def _label(self, jobs: Sequence[Job]) -> str:
        """Jobs by what tells them from the others of their sweep."""
        own = [line for line in jobs[0].overrides if line not in self.common]
        more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        return f"{textwrap.shorten(' '.join(own) or 'defaults', 120, placeholder=' ...')} ({jobs[0].id}{more})"


def _timeout(job: Job) -> float:
    return float(job.config["runtime"].get("claim_timeout", claims.TIMEOUT))


def _ending(result: dict[str, Any]) -> str:
    if result["status"] != "done":
        return f"failed: {result['error']}"
    scores = [f"{name} {value:.4g}" for name, value in result["metrics"].items() if value is not None]
    return ", ".join([f"{result['timings']['total']:.1f} s", f"{result['nfe']} NFE", *scores])


def _close_trackers(seconds: float) -> None:
    """Let trackers finish, for so long and no longer."""
    thread = threading.Thread(target=process_cache.close_trackers, name="trackers", daemon=True)
    thread.start()
    thread.join(seconds)
