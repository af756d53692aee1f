"""Whether the plugs of each job fit one another: looked at for all jobs of a plan before the first one runs, or weights load."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from research.errors import UserError
from research.jobs import job_images, process_cache
from research.jobs.build import build, guidance_of

if TYPE_CHECKING:
    from research.jobs.job import Job


def check_fit(jobs: Sequence[Job]) -> None:
    """Build guidance, hooks, scheduler and task of each job that will run, and check them against the model's outline.

    Models that are not on this disk, and single files, are looked at when they load.

    Raises:
        UserError: a task that its model cannot do, a scheduler that a task or guidance cannot work with, a picture that does not
            fit; with the job's overrides if there are several jobs.
    """
    waiting = [job for job in jobs if not (job.config["resume"] and job.folder.finished())]
    if not waiting:
        return
    process_cache.libraries()
    seen: set[str] = set()
    for job in waiting:
        key = _of_fit(job)
        if key in seen:
            continue
        seen.add(key)
        try:
            _check(job)
        except UserError as error:
            if len(jobs) == 1:
                raise
            raise type(error)(f"{str(error).rstrip('.')} (in the job {' '.join(job.overrides)}).") from error


def _of_fit(job: Job) -> str:
    """What decides whether plugs fit: jobs that agree in it are looked at once."""
    keys = ("model", "scheduler", "guidance", "task", "hooks", "prompts", "images_per_prompt", "steps", "runtime")
    return json.dumps([job.config[key] for key in keys], sort_keys=True, default=str)


def _check(job: Job) -> None:
    from research.sampling import check_claims, check_offers, check_plugs

    config = job.config
    guidance = guidance_of(config)
    hooks = [build(node, f"hooks.{name}") for name, node in config["hooks"].items()]
    task = build(config["task"], "task", **job_images.task_arguments(config))
    model = _outline(config["model"]["path"])
    if model is None:
        return
    solver = _solvers(json.dumps(config["scheduler"]), config["model"]["path"], config["runtime"]["parity"])()
    check_plugs(guidance, hooks, model, solver)
    check_offers("task", task, model, solver)
    task.check(model, job_images.image_count(config))
    check_claims(hooks, task.claims(model), f"the task {task.name}")
    task.solver(solver)


@lru_cache(maxsize=16)
def _outline(path: str) -> Any:
    from research.models.summary import outline

    return outline(path)


@lru_cache(maxsize=256)
def _solvers(scheduler: str, path: str, parity: bool) -> Callable[[], Any]:
    from research.solvers import SchedulerSpec
    from research.solvers.build import SolverFactory

    node = json.loads(scheduler)
    spec = SchedulerSpec(node["name"], node["class_name"], node["options"])
    return SolverFactory(spec, None, _outline(path).scheduler_config, parity=parity)
