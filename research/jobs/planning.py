"""All jobs of a sweep, composed and checked before the first one runs. Needs no torch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError, UserError
from research.jobs import process_cache
from research.jobs.asked_prompts import asked_prompts, with_prompts
from research.jobs.compose import Composer
from research.jobs.estimate import estimate
from research.jobs.identity import job_digest, sources_of
from research.jobs.job import Job
from research.jobs.overrides import as_written, parse
from research.jobs.plan_cache import PlanCache
from research.jobs.schema import GROUPS
from research.jobs.validate import validate

if TYPE_CHECKING:
    from omegaconf import DictConfig

_log = logging.getLogger(__name__)


@dataclass
class Impossible:
    """A point that is no job, and why."""

    point: list[str]
    error: UserError

    @property
    def overrides(self) -> list[str]:
        """The overrides as a person writes them."""
        return [as_written(line) for line in self.point]


@dataclass
class OverBudget:
    """A job that needs more model evaluations an image than ``budget.nfe``."""

    job: Job
    nfe: int


@dataclass
class Plan:
    """What became of the points of a sweep."""

    jobs: list[Job] = field(default_factory=list)  # in the order in which they run
    impossible: list[Impossible] = field(default_factory=list)
    points: int = 0
    left_out: int = 0  # by sweep.exclude, before they were composed
    skips: bool = False  # sweep.impossible=skip: the points that can run do without the others
    ids: list[tuple[list[str], str]] = field(default_factory=list)  # each point that is a job, with the job's id
    over_budget: list[OverBudget] = field(default_factory=list)  # jobs that are left out for what they cost

    @property
    def duplicates(self) -> int:
        """Points that are a job which another point is already."""
        return self.points - len(self.jobs) - len(self.impossible) - len(self.over_budget)

    def accepted(self) -> list[Job]:
        """The jobs, if all points can run, or may be left out.

        Raises:
            UserError: one cannot, the first of them with the overrides that lead to it; or there are none.
        """
        if self.impossible and not (self.skips and self.jobs):
            raise refusal(self)
        if not self.jobs and self.over_budget:
            least = min(self.over_budget, key=lambda each: each.nfe)
            raise ConfigError(
                f"budget.nfe: is less than any of the {len(self.over_budget)} jobs costs; accepted are {least.nfe} "
                f"({' '.join(least.job.overrides)}) or more, or budget.over=run, which runs them all the same."
            )
        if not self.jobs:
            raise ConfigError("sweep: has no points; an axis without values was found.")
        return self.jobs

    def idle_axes(self) -> list[str]:
        """Keys with several values that make no difference to any job."""
        values: dict[str, set[str]] = {}
        for point, _ in self.ids:
            for line in point:
                values.setdefault(_key(line), set()).add(line)
        return [key for key, lines in values.items() if len(lines) > 1 and self._is_idle(key)]

    def _is_idle(self, key: str) -> bool:
        ids: dict[tuple[str, ...], set[str]] = {}
        for point, found in self.ids:
            ids.setdefault(tuple(line for line in point if _key(line) != key), set()).add(found)
        # each job appears with several values, and the rest of a point decides it
        return len(ids) < len(self.ids) and all(len(found) == 1 for found in ids.values())


def plan(composer: Composer, master: DictConfig, points: Iterable[Sequence[str]]) -> list[Job]:
    """Compose and check all jobs; equal ones are one job. Those of one model stand together, so that it is loaded once.

    Raises:
        ConfigError: a job cannot run, with the overrides that lead to it; no job has been started then.
    """
    return plan_all(composer, master, points).accepted()


def plan_all(composer: Composer, master: DictConfig, points: Iterable[Sequence[str]]) -> Plan:
    """The same with the points that are no job kept beside the others."""
    extra = [name for name in composer.groups() if "/" not in name and name not in GROUPS]
    made, cache = Plan(), PlanCache()
    jobs: dict[tuple[str, str], Job] = {}
    for asked in points:
        for point, composed in _with_prompts(composer, master, asked, cache):
            made.points += 1
            try:
                if isinstance(composed, UserError):
                    raise composed
                config = validate(composed, extra_keys=extra, cache=cache)
                sources = sources_of(config, cache)
                job = Job(config, list(point), digest=job_digest(config, cache, sources), sources=sources)
            except UserError as error:
                made.impossible.append(Impossible(list(point), error))
                continue
            made.ids.append((job.point, job.digest))
            jobs.setdefault((str(job.folder.path), job.digest), job)
    made.jobs = _costliest_axis_slowest(list(jobs.values()))
    trackers = [job.config["tracker"] for job in made.jobs]
    for node in {json.dumps(node, sort_keys=True): node for node in trackers if node}.values():
        process_cache.tracker(node).check_jobs(trackers.count(node))
    return made


def _with_prompts(
    composer: Composer, master: DictConfig, point: Sequence[str], cache: PlanCache
) -> list[tuple[list[str], dict[str, Any] | UserError]]:
    """What a point composes to: one job, or where the rows of its file of prompts have settings of their own, one for those that
    agree; or why it is none."""
    try:
        config = composer.job(master, point)
        given = {_key(line) for line in point}
        if "prompts_file" not in given and given & {"prompts", "prompt_set"}:
            config["prompts_file"] = None  # of an experiment, say; the command line has others
        about = [config.get(key) for key in ("prompts_file", "wildcards", "prompts")]
        groups = cache.get("prompts asked for", about, lambda: asked_prompts(config))
        if groups is None:
            return [(list(point), config)]
    except UserError as error:
        return [(list(point), error)]
    found: list[tuple[list[str], dict[str, Any] | UserError]] = []
    for group in groups:
        lines = list(point)
        try:
            for line in composer.normalise(group.settings):
                if (key := _key(line)) in given:
                    raise ConfigError(
                        f"{key}: given twice, as {_written(point, key)} and by {config['prompts_file']}; accepted is one."
                    )
                if parse(line).is_sweep_override():
                    raise ConfigError(
                        f"prompts_file: {config['prompts_file']}: found {as_written(line)}; accepted is one value a key."
                    )
                lines.append(line)
            own = composer.job(master, lines) if group.settings else config
            found.append((lines, with_prompts(own, group)))
        except UserError as error:
            found.append((lines, error))
    return found


def _written(point: Sequence[str], key: str) -> str:
    return next(as_written(line) for line in point if _key(line) == key)


def full_checks(made: Plan, *, here: bool = True) -> None:
    """Look too at what takes torch: whether plugs fit the model, and what the scheduler linter says. Jobs that fail move to
    the impossible points of the plan. ``here``: whether they run on this machine."""
    from research.jobs.lint import lint_jobs
    from research.jobs.preflight import check_fit

    kept = []
    said: set[str] = set()
    for job in made.jobs:
        try:
            for note in check_fit([job], here=here):
                if note not in said:
                    said.add(note)
                    _log.warning("warning: %s", note)
            lint_jobs([job])
            kept.append(job)
        except UserError as error:
            made.impossible.append(Impossible(job.point, error))
    made.jobs = kept


def leave_out(made: Plan) -> None:
    """Look at everything that keeps a job from running, and do without the points that cannot; the log names them."""
    full_checks(made)
    made.skips = True
    for each in made.impossible:
        _log.warning("left out: %s: %s", " ".join(each.overrides), each.error)


def keep_to_budget(made: Plan, nfe: float | None) -> None:
    """Leave out the jobs of which it is known that they need more model evaluations an image; see ``budget.over``.

    Args:
        nfe: how many are accepted; None for any number.
    """
    if nfe is None:
        return
    kept = []
    for job in made.jobs:
        cost = estimate(job.config)
        if cost.exact and cost.nfe > nfe:
            made.over_budget.append(OverBudget(job, cost.nfe))
        else:
            kept.append(job)
    made.jobs = kept


def refusal(made: Plan) -> UserError:
    """The first impossible point of a plan as the error to stop with."""
    first = made.impossible[0]
    if made.points == 1:
        return first.error
    more = len(made.impossible) - 1
    others = f"; {more} more cannot run, --plan lists them" if more else ""
    return type(first.error)(f"{str(first.error).rstrip('.')} (in the job {' '.join(first.overrides)}{others}).")


def _key(line: str) -> str:
    return parse(line).get_key_element().lstrip("+")


def _costliest_axis_slowest(jobs: list[Job]) -> list[Job]:
    by_model: dict[str, list[Job]] = {}
    for job in jobs:
        by_model.setdefault(repr(job.config["model"]), []).append(job)
    return [job for group in by_model.values() for job in group]
