"""The linter of schedulers over the jobs of a plan: before the first of them runs, each setting once."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research import zoo
from research.errors import ConfigError, ModelError
from research.jobs import process_cache
from research.jobs.build import sigmas_of
from research.jobs.signatures import signature
from research.models.inspect.find_model import find_model
from research.models.inspect.fit_file import heeded
from research.models.inspect.kinds import look_at
from research.models.scheduler_config import ModelSchedule, scheduler_config

if TYPE_CHECKING:
    from research.jobs.job import Job
    from research.solvers.lint.case import Finding
    from research.solvers.upstream_levels import Told

_log = logging.getLogger(__name__)
_NETWORKS = ("model", "features", "classifier", "reference")  # arguments of metrics that name what they compare with


def lint_jobs(jobs: Sequence[Job]) -> None:
    """Look at the scheduler of each job that will run; its warnings go to the log and into the job's record.

    Jobs that are done before, and those of a model whose scheduler config is not at hand (a hub model before its first
    download), are left out.

    Raises:
        ConfigError: a scheduler cannot work with its model and settings.
    """
    known: dict[str, list[Finding]] = {}
    schedules: dict[str, ModelSchedule | None] = {}
    for job in jobs:
        if job.config["resume"] and job.folder.finished():
            continue
        place = json.dumps([job.config["model"].get("path"), job.config["model"].get("config")])
        if place not in schedules:
            schedules[place] = _schedule(job)
        found = _findings(job, schedules[place], known)
        for finding in found:
            if finding.severity == "error":
                raise ConfigError(_line(finding, job, len(jobs)))
        said = said_of_file(job.config["model"])
        job.warnings = [*(finding.message for finding in found), *foreign_scores(job.config), *said]
    _report(jobs)


def foreign_scores(config: Mapping[str, Any]) -> list[str]:
    """What is said of metrics that ask the embedded networks and references, which know emoji alone, of another model."""
    path = str(config["model"]["path"])
    if path in zoo.zoo_names():
        return []
    found = []
    for name, node in config["metrics"].items():
        of_class = signature(str(node.get("_target_")))
        asked = {**(of_class.arguments if of_class else {}), **node}
        keys = [key for key in _NETWORKS if isinstance(asked.get(key), str) and zoo.is_embedded(asked[key])]
        if keys:
            said = " and ".join(f"metrics.{name}.{key}={asked[key]}" for key in keys)
            found.append(
                f"{said}: what is embedded knows emoji alone, and the model is {path}: the numbers say little there; accepted "
                "are networks and references of its kind, or metrics=none."
            )
    return found


def said_of_file(model: Mapping[str, Any]) -> list[str]:
    """What is said of a checkpoint file whose own marks change the scheduler of its configs, or are not heeded."""
    if "_target_" in model or not model.get("config"):
        return []
    try:
        file = find_model(model["path"]).file
        checkpoint = look_at(file).checkpoint if file is not None else None
        given = scheduler_config(model["config"], defaults=False)
    except ModelError:
        return []  # loading will say what is wrong, and says it better
    if checkpoint is None or given is None:
        return []
    _, notes, warnings = heeded(given.config, checkpoint.marks)
    return [f"model.path: {Path(model['path']).name}: {line}" for line in (*notes, *warnings)]


def _schedule(job: Job) -> ModelSchedule | None:
    settings = job.config["model"]
    try:
        return scheduler_config(settings["path"], settings.get("config"))
    except ModelError:
        return None  # loading will say what is wrong, and says it better


def _findings(job: Job, schedule: ModelSchedule | None, known: dict[str, list[Finding]]) -> list[Finding]:
    strength = strength_of(job.config["task"])
    if schedule is None or strength is None:
        return []
    scheduler, steps = job.config["scheduler"], job.config["steps"]
    parity = job.config["runtime"]["parity"]
    key = json.dumps(
        [
            scheduler,
            job.config.get("sigmas"),
            schedule.path,
            job.config["model"].get("config"),
            steps,
            strength,
            parity,
        ],
        sort_keys=True,
        default=str,
    )
    if key not in known:
        process_cache.libraries()
        from research.solvers import SchedulerSpec
        from research.solvers.lint.linter import lint

        known[key] = lint(
            SchedulerSpec(scheduler["name"], scheduler["class_name"], scheduler["options"]),
            None,
            schedule.config,
            steps,
            strength,
            parity=parity,
            latent=schedule.latent,
            notes=False,
            sigmas=sigmas_of(job.config),
            schedule=_told(schedule.path, job.config["model"].get("config")),
        )
    return known[key]


def _told(path: str, config: str | None) -> Told | None:
    """What the model has its scheduler told, where its files say."""
    from research.models.summary import outline

    try:
        known = outline(path, config)
    except ModelError:
        return None  # loading will say what is wrong
    return None if known is None else known.schedule


def strength_of(task: dict[str, Any]) -> float | None:
    """The strength of a task, 1 where it has none; None where it is no number and somebody else will say so."""
    found = task.get("strength")
    if found is None:
        of_class = signature(str(task["_target_"]))
        found = of_class.arguments.get("strength", 1.0) if of_class is not None else 1.0
    number = isinstance(found, int | float) and not isinstance(found, bool) and 0.0 <= found <= 1.0
    return float(found) if number else None


def _line(finding: Finding, job: Job, n_jobs: int) -> str:
    where = f" (in the job {' '.join(job.overrides)})" if n_jobs > 1 else ""
    return f"{finding.message.rstrip('.')}{where}."


def _report(jobs: Sequence[Job]) -> None:
    """Each warning once, with how many of the jobs it is about."""
    messages = [message for job in jobs for message in job.warnings]
    for message in dict.fromkeys(messages):
        count = messages.count(message)
        of = f" ({count} of {len(jobs)} jobs)" if len(jobs) > 1 else ""
        _log.warning("warning: %s%s", message, of)
