"""`sweep`: many jobs from Python, with the records, folders and ids of the command line."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.arguments import short
from research.errors import ConfigError, UserError
from research.jobs import own_model, process_cache, signatures
from research.jobs.compose import Composer
from research.jobs.job import Job
from research.jobs.overrides import parse
from research.jobs.point_files import written
from research.jobs.points import Axis, points_of
from research.jobs.progress import Progress, configure_logging
from research.jobs.schema import OF_SWEEPS
from research.jobs.sweep import folders, prepare, run_jobs
from research.lazy import gc_paused
from research.progress_bar import somebody_looks
from research.sweeps.described import Described, Row
from research.sweeps.loaded import LoadedSweep, built_report, load_sweep
from research.sweeps.ready import Ready, ready_to_run

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)
_TOGETHER = ("hooks", "metrics", "prompts")  # whose values are lists: several of them are a list of lists


def sweep(
    *,
    model: Any = None,
    scheduler: Any = None,
    sigmas: Any = None,
    guidance: Any = None,
    task: Any = None,
    sampler: Any = None,
    hooks: Any = None,
    metrics: Any = None,
    prompts: Any = None,
    steps: Any = None,
    seed: Any = None,
    images_per_prompt: Any = None,
    batch_size: Any = None,
    settings: Mapping[str, Any] | None = None,
    zip: Sequence[Sequence[str]] = (),
    exclude: Sequence[str] = (),
    sample: int | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    sweep_name: str | None = None,
    tracker: str | None = None,
    config_dir: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    report: bool = True,
) -> LoadedSweep:
    """Run a job for each combination of the values given, and return them with their table.

    Each argument is one value, or a list of values, which is an axis of the sweep; what is not given is as on the command line.
    Jobs have the same ids and folders as there, and those that are done are not run again: classes that a notebook defines count
    by their source, and by that of what they use.

    Args:
        model: a name, a path or a hub id; what `research.load_model` or `research.models.wrap` returned; or a function that makes
            a model.
        scheduler: names, class names, classes, objects of diffusers or of `research.solvers.LinearSolver`.
        sigmas: names, or objects of `research.sigmas`. A list of numbers is one grid of levels.
        guidance: names, or objects: ``[CFG(1), Interval(CFG(5), steps=(0.2, 0.8)), Mine(3)]``.
        task: a name, or a task; the sentences of ``TextToImage("a red fox")`` are the job's prompts.
        sampler: names of the group: ``["loop", "best_of_n"]``; its keys stand in ``settings``, ``{"sampler.n": [2, 4]}``.
        hooks, metrics: a name or an object, or a list of those that go together. An axis is a list of lists.
        prompts: a sentence or a list of sentences. An axis is a list of lists.
        steps, seed, images_per_prompt, batch_size: whole numbers; image k of a job has the seed ``seed + k``.
        settings: any other key of the command line: ``{"guidance.scale": [1, 3], "runtime.threads": 1}``. A list is an axis.
        zip: arguments whose values go together instead of being crossed: ``[("scheduler", "steps")]``.
        exclude: points to leave out: ``["scheduler=heun and steps<5"]``.
        sample: so many of the points, drawn at random.
        output_dir, sweep_name: jobs are kept in ``output_dir/sweep_name/job_id``; ``outputs/default`` by default.
        tracker: ``"none"``, ``"wandb"``, ...
        config_dir: a folder of config groups of your own.
        progress: False for none; by default bars in a notebook and on a terminal, lines elsewhere.
        report: build ``report.html`` at the end.

    Raises:
        UserError: a value cannot be used, or a point cannot run; nothing was started then. A job that fails stops no other: see
            ``failed`` of what is returned.
    """
    given = {
        "model": model,
        "task": task,
        "sigmas": sigmas,
        "scheduler": scheduler,
        "guidance": guidance,
        "sampler": sampler,
        "hooks": hooks,
    }
    given |= {"metrics": metrics, "prompts": prompts, "steps": steps, "seed": seed}
    given |= {"images_per_prompt": images_per_prompt, "batch_size": batch_size}
    asked = {"output_dir": output_dir, "sweep_name": sweep_name, "tracker": tracker}
    whole: dict[str, Any] = {key: os.fspath(value) for key, value in asked.items() if value is not None}
    whole |= {
        "sweep.zip": [list(each) for each in zip] or None,
        "sweep.exclude": list(exclude) or None,
        "sweep.sample": sample,
    }
    _check_settings(settings or {}, {key for key, value in (given | whole).items() if value is not None})
    with _quiet(progress):
        signatures.forget()
        own_model.forget()
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        with Composer(None if config_dir is None else os.fspath(config_dir)) as composer:
            place = Path(str(whole.get("output_dir", "outputs")), str(whole.get("sweep_name", "default")))
            described = Described(place, composer.groups())
            try:
                ready = _planned(composer, described, given, whole, settings or {})
                return _run(ready, described, progress, report)
            except UserError:
                if not any(place.glob("*/result.json")):
                    described.take_back()
                raise
            finally:
                process_cache.give_back()


def _planned(
    composer: Composer,
    described: Described,
    given: Mapping[str, Any],
    whole: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Ready:
    lines = [f"{key}={written(value)}" for key, value in whole.items() if value is not None]
    axes: dict[str, Axis] = {}
    for key, value in given.items():
        if value is not None:
            write: Callable[[Any], Row] = getattr(described, key, None) or _as_setting(described, key)
            axes[key] = _axis(composer, key, _values(key, value), write, steps_given=given["steps"] is not None)
    for key, value in settings.items():
        if value is None or key.split(".")[0] in OF_SWEEPS:
            lines += described.setting(key, value)
        else:
            axes[key] = _axis(composer, key, _values(key, value), _as_setting(described, key))
    _check_twice(axes)
    lines = composer.normalise(lines)
    single = [line for axis in axes.values() if len(axis.rows) == 1 for line in axis.rows[0]]
    master = composer.master([*lines, *single])
    return ready_to_run(composer, master, points_of(composer, master, lines, axes).found)


def _run(ready: Ready, described: Described, progress: bool | None, report: bool) -> LoadedSweep:
    from research.jobs.machine_slots import machine_slot

    jobs = ready.jobs
    _adopt(described, jobs)
    with machine_slot(jobs):
        prepare(jobs, ready.report)
        _log.info("sweep of %d jobs", len(jobs))
        for said in ready.remarks:
            _log.info("%s", said)
        mode = "none" if progress is False else "bars" if somebody_looks() else jobs[0].settings.runtime.progress
        try:
            outcome = run_jobs(jobs, Progress(mode, len(jobs)))
        finally:
            process_cache.close_trackers()
    for result in outcome.failed:
        _log.warning("job %s (%s) failed: %s", result.job_id, " ".join(result.overrides), result.error)
    (folder,) = folders(jobs)
    with gc_paused():
        if report:
            built_report(folder)
    found = load_sweep(folder).only([job.id for job in jobs])
    left = f"on_failure=stop left {outcome.left_out} jobs unrun" if outcome.left_out else None
    found.note = "; ".join(filter(None, (ready.note, left))) or None
    return found


def _adopt(described: Described, jobs: Sequence[Job]) -> None:
    """Have models that were handed over loaded stand for the sections of jobs that would load the same."""
    for model in described.models:
        path = os.fspath(model.loaded_with[0]["path"])
        for job in jobs:
            section = job.config["model"]
            if section.get("path") == path and all(
                _alike(section.get(key), value) for key, value in _asked(model).items()
            ):
                process_cache.adopt(section, model)


def _asked(model: Any) -> dict[str, Any]:
    return {key: value for key, value in model.loaded_with[0].items() if key not in ("path", "device")}


def _alike(asked: Any, loaded: Any) -> bool:
    return asked == loaded or str(asked) == str(loaded).removeprefix("torch.")


def _axis(
    composer: Composer, key: str, values: Sequence[Any], write: Callable[[Any], Row], *, steps_given: bool = True
) -> Axis:
    if not values:
        raise ConfigError(f"{key}: found an empty list; accepted is a value, or a list of one or more.")
    rows: list[Row] = []
    for value in values:
        lines = composer.normalise(write(value))
        if any(parse(line).is_sweep_override() for line in lines):
            raise ConfigError(f"{key}: found {short(value)}; accepted is one value, or a list for an axis.")
        # a list of levels says how many steps there are, unless that is given
        row = tuple(line for line in lines if not steps_given or key != "sigmas" or parse(line).key_or_group != "steps")
        if row not in rows:
            rows.append(row)
    return Axis((key,), rows)


def _values(key: str, value: Any) -> list[Any]:
    """The values of an argument: those of a list, or the one."""
    if isinstance(value, range) or (hasattr(value, "tolist") and key != "sigmas" and getattr(value, "ndim", 0) == 1):
        value = list(value)
    if not isinstance(value, list | tuple):
        return [value]
    if key in _TOGETHER:
        return list(value) if value and all(isinstance(each, list | tuple) for each in value) else [list(value)]
    if key == "sigmas" and value and all(isinstance(each, int | float) for each in value):
        return [list(value)]
    return list(value)


def _as_setting(described: Described, key: str) -> Callable[[Any], Row]:
    return lambda value: described.setting(key, value)


def _check_settings(settings: Mapping[str, Any], given: set[str]) -> None:
    for key, value in settings.items():
        if not isinstance(key, str) or not key:
            raise ConfigError(f"settings: found the key {key!r}; accepted are keys of the command line, as text.")
        if key.split(".")[0] == "hydra" or key.startswith("hydra/"):
            raise ConfigError(
                f"settings: found {key}; research.sweep runs jobs in this process; launchers and searches are the command "
                "line's."
            )
        if key in given:
            raise ConfigError(f"{key}: given twice, as an argument and in settings; accepted is one of them.")
        if isinstance(value, list | tuple) and not value:
            raise ConfigError(f"{key}: found an empty list; accepted is a value, or a list of one or more.")


def _check_twice(axes: Mapping[str, Axis]) -> None:
    """Refuse a key that two arguments set: a task with its sentence, and prompts."""
    by: dict[str, str] = {}
    for name, axis in axes.items():
        for line in dict.fromkeys(line for row in axis.rows for line in row):
            key = parse(line).get_key_element().lstrip("+")
            if by.setdefault(key, name) != name:
                raise ConfigError(f"{key}: is set by {by[key]} and by {name}; accepted is one of them.")


@contextmanager
def _quiet(progress: bool | None) -> Iterator[None]:
    """The project's log lines on stderr, unless nothing is to be seen; and nothing of libraries about themselves."""
    if progress is not False:
        configure_logging()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
