"""A sweep: every job composed and checked before the first one runs, then run one after the other, each on its own feet."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from research.errors import UserError, nearest
from research.jobs import process_cache
from research.jobs.changed_plugs import changed_lines, changed_since
from research.jobs.job import Job
from research.jobs.lint import lint_jobs
from research.jobs.planning import plan as plan
from research.jobs.preflight import check_fit
from research.jobs.progress import Progress, configure_logging
from research.jobs.record import JobResult
from research.jobs.run_job import OneByOne
from research.jobs.run_jobs import Outcome as Outcome
from research.jobs.run_jobs import run_jobs as run_jobs
from research.jobs.store import make_writable
from research.jobs.sweep_file import AS_DEFAULT, ReportSettings, take_sweep_folder
from research.jobs.sweep_settings import settings_of
from research.jobs.validate import validate
from research.lazy import gc_paused

_log = logging.getLogger(__name__)


def run_in_worker(config: DictConfig) -> float | list[float] | dict[str, Any]:
    """The task function for Hydra's sweepers that search: run one composed job and return what ``sweep.optimise`` names, a number
    or several; without it all metrics.

    Raises:
        UserError: the job failed; a search goes on with other points.
        SystemExit: it has no such number, nor will the other points.
    """
    configure_logging()
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    extra = [str(key) for key in plain]  # the keys were checked where the sweep was planned
    point = [str(line) for line in HydraConfig.get().overrides.task]
    job = Job(validate({str(key): value for key, value in plain.items()}, extra_keys=extra), point)
    lint_jobs([job])
    try:
        (result,) = run_jobs([job], Progress("none", 1), OneByOne()).results
    finally:
        if "BasicLauncher" not in HydraConfig.get().launcher._target_:
            process_cache.close_trackers()  # the worker may end without a word after any job
    names = settings_of(config).optimise
    if not names:
        return {"job_id": job.id, "status": result.status, **result.metrics}
    found = [_number(result, name) for name in names]
    return found[0] if len(found) == 1 else found


def _number(result: JobResult, name: str) -> float:
    """A metric of a job, its NFE, or its seconds an image."""
    if not result.done:
        raise UserError(f"job {result.job_id} failed: {result.error}")
    numbers = {key: value for key, value in result.metrics.items() if value is not None}
    numbers["nfe"] = float(result.nfe or 0)
    if result.images_per_second:
        numbers["seconds"] = 1 / result.images_per_second
    if name not in numbers:
        print(
            f"error: sweep.optimise: found '{name}', which job {result.job_id} has not measured."
            f"{nearest(name, numbers)} Accepted: {', '.join(numbers)}.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return float(numbers[name])


def prepare(jobs: Sequence[Job], report: ReportSettings = AS_DEFAULT, *, here: bool = True) -> None:
    """Make the folders that the jobs are kept in, once it is known that all of them can run.

    Args:
        report: kept for the report.
        here: whether the jobs run on this machine.

    Raises:
        ConfigError: a job's scheduler cannot work, or a folder cannot be written, or it is of a later version of the project.
    """
    with gc_paused(keep=True):
        check_fit(jobs, here=here)
        lint_jobs(jobs)
    for line in changed_lines(changed_since(jobs)):
        _log.info("%s; they stay where they are, and the report leaves them out", line)
    for folder in folders(jobs):
        make_writable(folder)
        take_sweep_folder(folder, [job.id for job in jobs if job.folder.path.parent == folder], report)


def folders(jobs: Sequence[Job]) -> list[Path]:
    """The folders of the sweeps that the jobs belong to."""
    return list(dict.fromkeys(job.folder.path.parent for job in jobs))
