"""A sweep: every job composed and checked before the first one runs, then run one after the other, each on its own feet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from research.lazy import uncollected
from research.runs import cache
from research.runs.fitting import check_fit
from research.runs.job import Job
from research.runs.lint import lint_jobs
from research.runs.marker import mark
from research.runs.planning import plan as plan
from research.runs.progress import Progress, configure_logging
from research.runs.store import make_writable
from research.runs.validate import validate
from research.runs.work import Outcome as Outcome
from research.runs.work import run_jobs as run_jobs


def run_in_worker(config: DictConfig) -> dict[str, Any]:
    """The task function for Hydra's launchers and sweepers: run one composed job and return its metrics."""
    configure_logging()
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    extra = [str(key) for key in plain]  # the keys were checked where the sweep was planned
    point = [str(line) for line in HydraConfig.get().overrides.task]
    job = Job(validate({str(key): value for key, value in plain.items()}, extra_keys=extra), point)
    lint_jobs([job])
    try:
        outcome = run_jobs([job], Progress("none", 1))
    finally:
        cache.close_trackers()  # the worker may end without a word after any job
    return {"job_id": job.id, "status": outcome.results[0]["status"], **outcome.results[0]["metrics"]}


def prepare(jobs: Sequence[Job]) -> None:
    """Make the folders that the jobs are kept in, once it is known that all of them can run.

    Raises:
        ConfigError: a job's scheduler cannot work, or a folder cannot be written, or it is of a later version of the project.
    """
    with uncollected(keep=True):
        check_fit(jobs)
        lint_jobs(jobs)
    for folder in folders(jobs):
        make_writable(folder)
        mark(folder, [job.id for job in jobs if job.folder.path.parent == folder])


def folders(jobs: Sequence[Job]) -> list[Path]:
    """The folders of the sweeps that the jobs belong to."""
    return list(dict.fromkeys(job.folder.path.parent for job in jobs))
