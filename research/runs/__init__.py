"""Jobs and sweeps: composing and checking them, running them, keeping their records. No torch until a job runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names

if TYPE_CHECKING:
    from research.runs.compose import Composer as Composer
    from research.runs.identity import job_id as job_id
    from research.runs.images import recipe as recipe
    from research.runs.runner import Job as Job
    from research.runs.runner import run_job as run_job

_LAZY = {
    "Composer": "research.runs.compose",
    "Job": "research.runs.runner",
    "job_id": "research.runs.identity",
    "recipe": "research.runs.images",
    "run_job": "research.runs.runner",
}

__all__ = ["Composer", "Job", "job_id", "recipe", "run_job"]


__getattr__ = lazy_names(__name__, _LAZY)
