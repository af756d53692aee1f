"""Jobs and sweeps: composing and checking them, running them, keeping their records. No torch until a job runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.jobs.compose import Composer as Composer
    from research.jobs.identity import job_id as job_id
    from research.jobs.images import recipe as recipe
    from research.jobs.job import Job as Job
    from research.jobs.run_job import run_job as run_job

_LAZY = {
    "Composer": "research.jobs.compose",
    "Job": "research.jobs.job",
    "job_id": "research.jobs.identity",
    "recipe": "research.jobs.images",
    "run_job": "research.jobs.run_job",
}

__all__ = ["Composer", "Job", "job_id", "recipe", "run_job"]


__getattr__ = lazy_names(__name__, _LAZY)
