"""From the points of a sweep to jobs that are ready to run, on the command line and in Python alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from omegaconf import DictConfig

from research.checks import check_choice
from research.errors import ConfigError, nearest
from research.jobs.compose import Composer
from research.jobs.job import Job
from research.jobs.job_status import with_ids_of_their_own
from research.jobs.plan_view import budget_note, duplicates_note
from research.jobs.planning import keep_to_budget, leave_out, plan_all
from research.jobs.sweep_file import ReportSettings
from research.jobs.sweep_settings import section, settings_of
from research.results.budget import read_budget
from research.results.scales import read_margins
from research.statistics import read_unit


@dataclass(frozen=True)
class Ready:
    """Jobs that can run.

    Attributes:
        report: how the report is to judge them.
        remarks: for the log, before they run.
        note: what was left out, for the end.
    """

    jobs: list[Job]
    report: ReportSettings
    remarks: list[str] = field(default_factory=list)
    note: str | None = None


def ready_to_run(composer: Composer, master: DictConfig, points: Iterable[Sequence[str]]) -> Ready:
    """Plan the points of a sweep; see `research.jobs.planning`.

    Raises:
        UserError: a point cannot run, and ``sweep.impossible`` is not ``skip``; or none can.
    """
    report = report_settings(master)
    made = plan_all(composer, master, points)
    keep_to_budget(made, budget_of(master).planned_nfe)
    note = None
    if settings_of(master).impossible == "skip":
        leave_out(made)
        if made.impossible:
            note = (
                f"{len(made.impossible)} of {made.points} points cannot run and were left out; --plan=full lists them"
            )
    jobs = with_ids_of_their_own(made.accepted())
    return Ready(jobs, report, [said for said in (duplicates_note(made), budget_note(made)) if said], note)


def report_settings(master: DictConfig) -> ReportSettings:
    """The section ``report`` as it was written, see `research.results.scales` and `research.statistics.unit_of`, and the budget.

    Raises:
        UserError: an unknown key of the section, or a value that is no margin, or no unit.
    """
    given = section(master, "report")
    if not isinstance(given, dict):
        raise ConfigError(f"report: found {given!r}; accepted are keys inside it, report.NAME=VALUE.")
    names = [name for name in ReportSettings._fields if name != "budget"]  # which is a section of its own
    for name in map(str, given):
        if name not in names:
            raise ConfigError(f"report.{name}: unknown key.{nearest(name, names)} Accepted: {', '.join(names)}.")
    written = {str(name): value for name, value in given.items()}
    read_margins("report.margin", written.get("margin"))
    sizes = written.get("margin") or {}
    return ReportSettings(
        {str(key): value if isinstance(value, int | float) else str(value) for key, value in sizes.items()},
        read_unit("report.unit", written.get("unit")) or None,
        budget_of(master).limits,
    )


class Budgeted(NamedTuple):
    """The section ``budget``: the limits, and the evaluations beyond which no job is run."""

    limits: dict[str, float]
    planned_nfe: float | None


def budget_of(master: DictConfig) -> Budgeted:
    """The section ``budget`` as it was written; see `research.results.budget`.

    Raises:
        UserError: an unknown key of the section, or a value that is no limit.
    """
    given = section(master, "budget")
    if not isinstance(given, dict):
        raise ConfigError(f"budget: found {given!r}; accepted are keys inside it, budget.NAME=LIMIT.")
    over = check_choice("budget.over", given.get("over", "skip"), ("skip", "run"))
    limits = read_budget("budget", {name: limit for name, limit in given.items() if name != "over"}).limits
    return Budgeted(limits, limits.get("nfe") if over == "skip" else None)
