"""The command ``research-check``: puts plugs through the rules of their interfaces before they are trusted with a sweep.

Exit codes: 0 nothing was found, 1 something was, 2 the input cannot be used.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from research.errors import ConfigError, UserError, nearest, one_line

OK, FOUND, BAD_INPUT = 0, 1, 2
_SECTIONS = ("guidance", "hooks", "metrics", "task", "scheduler", "model", "sampler")
_EPILOG = """examples:
  research-check my_plugs:RampedCFG scale=6
  research-check my_plugs                          every plug of the module that needs no arguments
  research-check my_models:build weights=moons.safetensors
  research-check --config-dir my_conf guidance=ramped guidance.scale=3
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see research-check --help.")


def main() -> NoReturn:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command in this process and return its exit code."""
    parser = _Parser(
        prog="research-check",
        description="Put plugs of your own through the rules of their interfaces, on small networks, in seconds.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="MODULE:CLASS or MODULE.CLASS (of a model, a function too), a module, or a choice of a config group: guidance=, "
        "hooks=, metrics=, task=, scheduler=, model= or sampler=",
    )
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="arguments of the class; with a config group, overrides"
    )
    parser.add_argument("-cd", "--config-dir", type=Path, metavar="DIR", help="a folder of config groups of your own")
    parser.add_argument("--json", action="store_true", help="for programs")
    try:
        return _check(parser.parse_intermixed_args(list(argv)))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except SystemExit as ending:  # of --help
        return ending.code if isinstance(ending.code, int) else OK


def _check(args: argparse.Namespace) -> int:
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if any(not equals for _, equals, _ in (line.partition("=") for line in args.settings)):
        raise ConfigError(f"command line: found {args.settings}; accepted after the target are settings KEY=VALUE.")
    plugs = list(_of_config(args) if "=" in args.target else _of_module(args.target, args.settings))
    from research.testing import check_plug

    reports = [check_plug(plug) for plug in plugs]
    if args.json:
        print(json.dumps([{**dataclasses.asdict(report), "ok": report.ok} for report in reports], indent=1))
    else:
        for report in reports:
            print(report)
    return OK if all(report.ok for report in reports) else FOUND


def _of_config(args: argparse.Namespace) -> Iterator[Any]:
    """The plugs of a choice of a config group."""
    from research.jobs import process_cache
    from research.jobs.build import build, guidance_of, sampler_of
    from research.jobs.compose import Composer
    from research.jobs.job_images import task_arguments

    section = args.target.partition("=")[0].partition("/")[0].partition(".")[0]
    if section not in _SECTIONS:
        raise ConfigError(
            f"command line: found {args.target!r};{nearest(section, _SECTIONS)} accepted is a class by its name, or a choice of "
            f"{', '.join(_SECTIONS)}."
        )
    with Composer(args.config_dir and str(args.config_dir)) as composer:
        unsaid = ["metrics=none"] if section == "model" else []  # the file of a model may leave them to the user
        lines = composer.normalise(["prompts=[a cat]", args.target, *unsaid, *args.settings])
        config = composer.job(composer.master([]), lines)
    if section == "guidance":
        yield guidance_of(config)
    elif section == "model":
        yield process_cache.model({"path": "", "dtype": "auto", "device": "auto", **config["model"]})[0]
    elif section == "scheduler":
        yield _solver_of(config["scheduler"])
    elif section == "sampler":
        if (sampler := sampler_of(config)) is not None:
            yield sampler
    elif section == "task":
        yield build(config["task"], "task", **task_arguments(config))
    else:
        for name, node in (config[section] or {}).items():
            yield build(node, f"{section}.{name}")


def _solver_of(asked: Any) -> Any:
    """The solver of a choice of the group ``scheduler``: a linear one, or the scheduler object of diffusers."""
    from research.solvers import SchedulerSpec, SolverFactory
    from research.testing.gaussian import SCHEDULE

    factory = SolverFactory(SchedulerSpec(asked["name"], asked["class_name"], asked["options"]), None, SCHEDULE)
    return factory.scheduler if factory.native is None else factory.native


def _of_module(target: str, settings: Sequence[str]) -> Iterator[Any]:
    """The object of a class, or of each class of a module that is a plug and needs no arguments."""
    module, cls = _imported(target)
    arguments = {key: yaml.safe_load(value) for key, _, value in (line.partition("=") for line in settings)}
    if cls is not None:
        yield _built(cls, arguments)
        return
    if arguments:
        raise ConfigError(
            f"command line: found {settings[0]!r} for the module {target}; accepted are classes with settings."
        )
    from research.testing.plug_rules import role_of

    plugs = [
        found
        for found in vars(module).values()
        if inspect.isclass(found) and found.__module__ == module.__name__ and role_of(found) is not None
    ]
    if not plugs:
        raise ConfigError(f"{target}: has no class that is a plug; accepted is MODULE:CLASS.")
    for found in plugs:
        yield _built(found, {})


def _imported(target: str) -> tuple[Any, Any]:
    name, colon, inside = target.removesuffix(".py").replace("/", ".").partition(":")
    if not colon:
        try:
            return importlib.import_module(name), None
        except ImportError as error:
            if not name.startswith(str(error.name or " ")) or "." not in name:
                raise ConfigError(f"{target}: cannot be imported: {one_line(error)}") from error
            name, _, inside = name.rpartition(".")
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a module of the user's own may fail in any way
        raise ConfigError(f"{target}: cannot be imported: {one_line(error)}") from error
    found = getattr(module, inside, None)
    if not inspect.isclass(found) and not inspect.isfunction(found):  # a function makes a model
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise ConfigError(f"{target}: {name} has no class {inside!r}.{nearest(inside, classes)}")
    return module, found


def _built(cls: Any, arguments: dict[str, Any]) -> Any:
    try:
        return cls(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"{cls.__name__}: cannot be built: {one_line(error)}") from error


if __name__ == "__main__":
    sys.exit(main())
