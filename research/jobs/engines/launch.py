"""Jobs given to workers through a Hydra launcher, in chunks that share a model, until every job has a result."""

from __future__ import annotations

import copy
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence

from omegaconf import DictConfig, open_dict

from research.errors import UserError
from research.jobs.engines import chunks, engines, workers
from research.jobs.hydra_internals import callbacks
from research.jobs.job import Job
from research.jobs.job_status import job_status, stamp_of, with_ids_of_their_own
from research.jobs.machine_slots import visible_devices
from research.jobs.record import CONFIG, JobResult, find_result
from research.jobs.run_jobs import Outcome, waiting

_log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 15.0
_LIVES = 3  # workers that a job may take with it before it is given up


def launch(jobs: Sequence[Job], master: DictConfig) -> Outcome:
    """Run jobs through a Hydra launcher (joblib, submitit, Ray).

    A worker that dies loses what it was at; the rest of its chunk goes to another. A job at which three workers died is given up.

    Raises:
        UserError: the engine cannot be used, or its workers cannot write.
        KeyboardInterrupt: asked to stop; workers that submitit started are told to.
    """
    jobs = with_ids_of_their_own(jobs)
    left, closed, _ = waiting(jobs)
    left_out = {job.folder.path for job in (_Launch(left, master).run() if left else [])}
    asked = [job for job in jobs if job.folder.path not in left_out]
    found = [find_result(job.folder.path) or _lost(job) for job in asked]
    return Outcome(results=found, reused=len(closed), left_out=len(left_out))


class _Launch:
    """One call of `launch`."""

    def __init__(self, jobs: Sequence[Job], master: DictConfig):
        from hydra.core.plugins import Plugins
        from hydra.types import HydraContext

        self.jobs = list(jobs)
        self.before = {job.folder.path: job_status(job) for job in jobs}
        self.open, self.told, self.told_at = self.jobs, len(jobs), 0.0  # for the log
        self.barren = 0  # workers in a row that ended before they began a job
        self.deaths: Counter[str] = Counter()
        self.master = copy.deepcopy(master)
        with open_dict(self.master):
            # workers may start in another folder
            self.master.hydra.sweep.dir = os.path.abspath(self.master.hydra.sweep.dir)
        settings = self.master.hydra.launcher
        self.name = engines.name_of(settings._target_)
        self.devices = visible_devices() if self.name in engines.SAME_MACHINE else []
        asked = jobs[0].settings.runtime.workers
        self.count = engines.workers(self.name, settings, asked, len(jobs), self.devices)
        if self.name == "joblib":
            settings.n_jobs = self.count
            settings.batch_size = 1  # of chunks
        context = HydraContext(config_loader=_Planned(), callbacks=callbacks(self.master))  # type: ignore[arg-type]
        self.launcher = Plugins.instance().instantiate_launcher(context, workers.run_chunk, self.master)

    def run(self) -> list[Job]:
        """Run the jobs; return those that ``on_failure=stop`` leaves."""
        dealt = chunks.chunks(self.jobs, self.count)
        _log.info(
            "%s: %d jobs in %d chunk%s for %d worker%s",
            *(self.name, len(self.jobs), len(dealt), "s" * (len(dealt) != 1), self.count, "s" * (self.count != 1)),
        )
        while dealt:
            current = dealt

            def redo(place: int, current: list[list[Job]] = current) -> Sequence[str] | None:
                chunk, left = current[place], self._unfinished(current[place])
                if left:
                    _log.info("a worker ended with %d of its %d jobs left; they go to another", len(left), len(chunk))
                current[place] = self._again(left, chunk)
                return self._point(current[place]) if current[place] else None

            points = [self._point(chunk) for chunk in dealt]
            said = engines.run(self.name, self.launcher, points, self.count, redo, self._look)
            left = self._unfinished(self.jobs)
            for line in dict.fromkeys(said):
                _log.warning("%s", line)
            if left and self._stops():
                return left
            dealt = self._dealt_again(left, [job for chunk in dealt for job in chunk]) if left else []
            if self.barren >= _LIVES:
                why = said[-1] if said else "they said nothing"
                raise UserError(f"{self.name}: workers end before they begin a job: {why}")
        for folder in {job.folder.path.parent for job in self.jobs}:
            chunks.tidy(folder)
        return []

    def _look(self) -> None:
        """Say how far the sweep is, now and then; a glance at each job that is not known to have ended."""
        self.open = [job for job in self.open if stamp_of(job.folder.path) == self.before[job.folder.path].stamp]
        now = time.monotonic()
        if len(self.open) < self.told and (not self.open or now - self.told_at >= _SECONDS_BETWEEN_LINES):
            self.told, self.told_at = len(self.open), now
            _log.info("[%d/%d] jobs have ended", len(self.jobs) - self.told, len(self.jobs))

    def _point(self, jobs: Sequence[Job]) -> list[str]:
        chunk = chunks.make(self.name, jobs, self.before, sys.path, devices=self.devices)
        return [f"chunk={chunk.save()}"]

    def _unfinished(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs without a result of this launch."""
        found = []
        for job in jobs:
            now = job_status(job)
            if now.result is None or now.stamp == self.before[job.folder.path].stamp:
                found.append(job)
        return found

    def _again(self, left: Sequence[Job], given: Sequence[Job]) -> list[Job]:
        """What is to be run again of what dead workers left: what they were at comes last, so that it harms no other."""
        begun = [job for job in left if (job.folder.path / CONFIG).is_file()]
        self.deaths.update(job.id for job in begun)
        self.barren = self.barren + 1 if left and not begun and len(left) >= len(given) else 0
        if self.barren >= _LIVES or (left and self._stops()):
            return []
        return [job for job in [*(j for j in left if j not in begun), *begun] if self.deaths[job.id] < _LIVES]

    def _dealt_again(self, left: Sequence[Job], given: Sequence[Job]) -> list[list[Job]]:
        """Chunks of what is left where an engine gave up: a job at which two workers died gets one of its own."""
        _log.info("workers ended with %d of %d jobs left; they go to others", len(left), len(self.jobs))
        again = self._again(left, given)
        deadly = [job for job in again if self.deaths[job.id] > 1]
        others = [job for job in again if self.deaths[job.id] <= 1]
        return [*(chunks.chunks(others, self.count) if others else []), *([job] for job in deadly)]

    def _stops(self) -> bool:
        """Whether a job of this launch has failed and is to stop the sweep; workers end the chunks they have begun."""
        for job in self.jobs:
            if job.settings.on_failure == "stop" and stamp_of(job.folder.path) != self.before[job.folder.path].stamp:
                result = find_result(job.folder.path)
                if result is not None and not result.done:
                    return True
        return False


class _Planned:
    """Stands for Hydra's config loader where a worker is started: a chunk holds its jobs composed."""

    def load_sweep_config(self, master: DictConfig, overrides: Sequence[str]) -> DictConfig:
        config = copy.deepcopy(master)
        with open_dict(config):
            config.chunk = overrides[0].partition("=")[2]
            config.hydra.overrides.task = list(overrides)
        return config


def _lost(job: Job) -> JobResult:
    error = "no result: its worker ended before the job did"
    return JobResult(job_id=job.id, status="failed", error=error, overrides=job.overrides)
