"""The command ``research``: reads the command line, lets `research.jobs` do the work, and turns what went wrong into one line.

Exit codes: 0 all jobs are done, 1 a job failed or cannot be kept, 2 the input cannot be used (nothing was started),
130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.types import RunMode
from omegaconf import DictConfig

import research
from research.errors import ConfigError, UserError
from research.jobs import environment, hydra_internals, own_model, signatures
from research.jobs.compose import Composer, explained
from research.jobs.overrides import parse
from research.jobs.progress import LOGGER, configure_logging
from research.jobs.record import StoreError
from research.jobs.schema import OF_SWEEPS
from research.jobs.sweep_settings import settings_of

if TYPE_CHECKING:
    from research.jobs.sweep_file import ReportSettings

_log = logging.getLogger(__name__)
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_VERBS = ("again", "show", "doctor")
_SEARCHES = re.compile("optuna|nevergrad|ax_sweeper", re.IGNORECASE)


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command in this process and return its exit code; output goes to stdout, progress and errors to stderr."""
    _plug_working_folder()
    signatures.forget()
    own_model.forget()
    configure_logging()
    if environment.rank():  # torchrun starts several of us, and one speaks
        logging.getLogger(LOGGER).setLevel(logging.ERROR)
    try:
        if argv and argv[0] in _VERBS:
            main_of: Any = import_module(f"research.{argv[0]}_cli").main
            return int(main_of(argv[1:]))
        return _command(_arguments(argv))
    except StoreError as error:
        return _report(error, FAILED)
    except UserError as error:
        return _report(error, BAD_INPUT)
    except KeyboardInterrupt:
        print("\ninterrupted: jobs that were done are kept; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as ending:  # Hydra's own way out of --help and --info
        return ending.code if isinstance(ending.code, int) else OK
    except Exception as error:
        return _report(error, FAILED, f"unexpected {type(error).__name__}: ")


def _command(args: argparse.Namespace) -> int:
    if args.version:
        print(f"research {research.__version__}")
        return OK
    with Composer(args.config_dir, args.config_name, args.config_path) as composer:
        if _only_shows(args):
            with explained(), hydra_internals.logging_as_it_was():
                return _show(args, composer)
        lines = composer.normalise(args.overrides)
        master = composer.master(lines)
        sweep = args.multirun or master.hydra.mode == RunMode.MULTIRUN
        if not sweep:
            _refuse_sweep(lines, master)
        if args.plan:
            return _plan(composer, master, lines, args, sweep=sweep)
        if sweep:
            return _sweep(composer, master, lines)
        return _single(composer, master, lines)


# -- running


def _single(composer: Composer, master: DictConfig, lines: list[str]) -> int:
    from research.jobs.job_status import with_ids_of_their_own
    from research.jobs.planning import keep_to_budget, plan_all
    from research.jobs.run_job import OneByOne
    from research.jobs.sweep import prepare, run_jobs
    from research.sweeps.ready import budget_of, report_settings

    report = report_settings(master)
    made = plan_all(composer, master, [_own(lines)])
    _refuse_several(made)
    keep_to_budget(made, budget_of(master).planned_nfe)
    jobs = with_ids_of_their_own(made.accepted())
    if environment.world() > 1:
        return _over_ranks(jobs, report, single=True)
    prepare(jobs, report)
    return _finish(jobs, lambda: run_jobs(jobs, runner=OneByOne()), single=True)


def _over_ranks(jobs: Sequence[Any], report: ReportSettings, *, single: bool = False) -> int:
    """The same in each of the processes that torchrun started."""
    from research.jobs.engines import ranks
    from research.jobs.sweep import prepare, run_jobs

    ranks.take_device()
    if environment.rank():
        return ranks.run_other_rank(jobs)
    prepare(jobs, report)
    return _finish(jobs, lambda: ranks.run_rank0(jobs, lambda runner: run_jobs(jobs, runner=runner)), single=single)


def _sweep(composer: Composer, master: DictConfig, lines: list[str]) -> int:
    from research.jobs.engines.launch import launch
    from research.jobs.machine_slots import machine_slot
    from research.jobs.points import points_of
    from research.jobs.sweep import prepare, run_in_worker, run_jobs
    from research.sweeps.ready import budget_of, ready_to_run

    if master.hydra.sweeper._target_ != hydra_internals.BASIC_SWEEPER:
        # a search (Optuna, say) draws its points as it goes: they cannot be planned
        from research.jobs import process_cache
        from research.show_results import show_search

        if not settings_of(master).optimise and _SEARCHES.search(master.hydra.sweeper._target_):
            raise ConfigError("sweep.optimise: says nothing; a search needs a number to improve: sweep.optimise=fid.")
        if limits := budget_of(master).limits:
            raise ConfigError(
                f"budget.{next(iter(limits))}: is of account for sweeps whose points are planned; accepted for a search are two "
                "numbers to improve, sweep.optimise=[clip_score,nfe], and research-report --budget afterwards."
            )
        try:
            with explained():
                composer.hydra.multirun(composer.config_name, run_in_worker, [*lines, "hydra.mode=MULTIRUN"])
        finally:
            process_cache.close_trackers()
        show_search(Path(master.hydra.sweep.dir))
        return OK
    ready = ready_to_run(composer, master, points_of(composer, master, lines).found)
    jobs, report, note = ready.jobs, ready.report, ready.note
    if environment.world() > 1:
        from research.jobs.engines.ranks import check_launcher

        check_launcher(master.hydra.launcher._target_, hydra_internals.BASIC_LAUNCHER)
        return _over_ranks(jobs, report)
    in_process = master.hydra.launcher._target_ == hydra_internals.BASIC_LAUNCHER
    with machine_slot(jobs) if in_process else nullcontext():
        prepare(jobs, report, here=in_process)
        _log.info("sweep of %d jobs", len(jobs))
        for said in ready.remarks:
            _log.info("%s", said)
        return _finish(jobs, lambda: run_jobs(jobs) if in_process else launch(jobs, master), note=note)


def _finish(jobs: Sequence[Any], work: Any, *, single: bool = False, note: str | None = None) -> int:
    """Run, then show what came of it, and a note of the plan's."""
    from research.jobs import process_cache
    from research.show_results import show_job, show_sweep

    warnings.simplefilter("ignore", FutureWarning)  # of libraries about themselves; a user can do nothing about them
    try:
        outcome = work()
    finally:
        process_cache.close_trackers()
    try:
        if single:
            show_job(jobs[0], outcome)
        else:
            show_sweep(jobs, outcome)
    except (UserError, OSError) as error:  # a full disk, or a folder that is gone by now
        raise StoreError(f"report: {getattr(error, 'strerror', None) or error}; the jobs have ended.") from error
    if note:
        print(f"warning: {note}", file=sys.stderr)
    return FAILED if outcome.failed else OK


def _own(lines: Sequence[str]) -> list[str]:
    """The overrides of a single job, less those of Hydra and of sweeps."""
    return [
        o for o in lines if not parse(o).is_hydra_override() and parse(o).key_or_group.split(".")[0] not in OF_SWEEPS
    ]


def _plan(composer: Composer, master: DictConfig, lines: list[str], args: argparse.Namespace, *, sweep: bool) -> int:
    """Print what would run, and what cannot."""
    from research.jobs.plan_view import as_json, as_text
    from research.jobs.planning import full_checks, keep_to_budget, plan_all
    from research.jobs.points import points_of
    from research.sweeps.ready import budget_of, report_settings

    report_settings(master)
    if sweep and master.hydra.sweeper._target_ != hydra_internals.BASIC_SWEEPER:
        raise ConfigError("--plan: a search draws its points as it goes, so that they cannot be planned.")
    if sweep:
        points = points_of(composer, master, lines)
        made = plan_all(composer, master, points.found)
        made.left_out = points.excluded
        made.skips = settings_of(master).impossible == "skip"
    else:
        made = plan_all(composer, master, [_own(lines)])
        _refuse_several(made)
    keep_to_budget(made, budget_of(master).planned_nfe)
    full = args.plan == "full"
    if full:
        full_checks(made, here=master.hydra.launcher._target_ == hydra_internals.BASIC_LAUNCHER)
    print(as_json(made, full=full) if args.json else as_text(made, full=full))
    return OK if not made.impossible or (made.skips and made.jobs) else BAD_INPUT


def _refuse_several(made: Any) -> None:
    """One command without -m is one job: the rows of a file of prompts may make more."""
    if made.points > 1:
        lines = [set(each.overrides) for each in (*made.jobs, *made.impossible)]
        keys = sorted({line.partition("=")[0] for line in set.union(*lines) - set.intersection(*lines)})
        raise ConfigError(
            f"prompts_file: its rows have settings of their own ({', '.join(keys)}), so that they are {made.points} jobs; start "
            "a sweep, research -m."
        )


def _refuse_sweep(lines: Sequence[str], master: DictConfig | None = None) -> None:
    for line in lines:
        if parse(line).is_sweep_override():
            written = line.lstrip("+")
            raise ConfigError(
                f"argument '{written}': several values make a sweep; start it with research -m, or quote the value."
            )
    key = settings_of(master).given if master is not None else None
    if key is not None:
        raise ConfigError(f"sweep.{key}: is of account for a sweep; start it with research -m.")


# -- showing


def _only_shows(args: argparse.Namespace) -> bool:
    return bool(args.help or args.hydra_help or args.cfg or args.shell_completion or args.info)


def _show(args: argparse.Namespace, composer: Composer) -> int:
    name, hydra, lines = composer.config_name, composer.hydra, args.overrides
    if args.shell_completion:
        hydra.shell_completion(name, lines)
        return OK
    lines = composer.normalise(lines)
    if args.cfg:
        _refuse_sweep(lines)
        hydra.show_cfg(name, lines, args.cfg, args.package, args.resolve)
    elif args.info:
        hydra.show_info(args.info, name, lines, RunMode.RUN)
    elif args.hydra_help:
        hydra_internals.list_groups_once(composer.loader)
        args.overrides = lines
        hydra.hydra_help(name, hydra_internals.command_parser(_Parser), args)
    else:
        hydra_internals.list_groups_once(composer.loader)
        args.overrides = lines
        hydra.app_help(name, hydra_internals.command_parser(_Parser), args)
    return OK


# -- the command line itself


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see research --help.")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags, with this project's version, and flags accepted between overrides too."""
    parser = hydra_internals.command_parser(_Parser)
    parser.prog = "research"
    parser.add_argument("--version", action="store_true", help="Show the version")
    parser.add_argument("--plan", choices=("quick", "full"), help="Print what would run, and stop")
    parser.add_argument("--json", action="store_true", help="With --plan: for programs")
    # an argument after a bare --plan is an override and not its value
    args = parser.parse_intermixed_args(["--plan=quick" if word == "--plan" else word for word in argv])
    if args.json and not args.plan:
        raise ConfigError("command line: --json goes with --plan.")
    if args.resolve and not (args.cfg or args.help):
        raise ConfigError("command line: --resolve goes with --cfg or --help.")
    if args.experimental_rerun:
        raise ConfigError(
            "command line: --experimental-rerun is not supported; config.yaml in a job's folder says what ran."
        )
    return args


def _plug_working_folder() -> None:
    """Let ``_target_: my_guidance.Mine`` mean the file my_guidance.py in the folder the command is started from."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)


def _report(error: BaseException, code: int, prefix: str = "") -> int:
    if os.environ.get("RESEARCH_FULL_ERROR") == "1":
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(
        letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text
    )  # nothing that moves a cursor
    hint = "" if not prefix else " (RESEARCH_FULL_ERROR=1 shows the stack)"
    if not environment.rank():
        print(f"error: {prefix}{text}{hint}", file=sys.stderr)
    return code
