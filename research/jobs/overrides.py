"""Command-line overrides, read by Hydra's own grammar and made uniform before anything is composed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString
from hydra.errors import HydraException

from research.errors import ConfigError, nearest
from research.jobs.modules import spec_of
from research.jobs.schema import GROUPS, SEVERAL

Groups = Mapping[str, Sequence[str]]
_CLASS = re.compile(r"[A-Z]\w*Scheduler|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.[A-Z]\w*")
_MOST_LEVELS = 32  # of brackets; half of what a record may hold

# packages of the launchers and sweepers that Hydra's users know, and how to get them, for the moment they are named and missing
_EXTRA = "pip install 'diffusion-sampling-research[{}]'"
_PLUGIN_PACKAGES = {
    "joblib": ("hydra-joblib-launcher", _EXTRA.format("joblib")),
    "submitit_local": ("hydra-submitit-launcher", _EXTRA.format("slurm")),
    "submitit_slurm": ("hydra-submitit-launcher", _EXTRA.format("slurm")),
    "ray": ("hydra-ray-launcher", _EXTRA.format("ray")),
    "optuna": ("hydra-optuna-sweeper", _EXTRA.format("optuna")),
    "search": ("hydra-optuna-sweeper", _EXTRA.format("optuna")),
}


@lru_cache(maxsize=4096)
def parse(line: str) -> Override:
    """One override as Hydra reads it.

    Raises:
        ConfigError: it does not follow the grammar.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in line):
        raise ConfigError(
            f"argument {line!a}: holds a byte that is no UTF-8 (or half a letter of UTF-16); accepted is text in UTF-8."
        )
    try:
        found = OverridesParser.create().parse_override(line)
        if (levels := _levels(found._value)) > _MOST_LEVELS:
            raise ConfigError(
                f"argument '{line}': is nested {levels} levels deep; accepted are at most {_MOST_LEVELS}."
            )
        return found
    except RecursionError:
        raise ConfigError(
            f"argument '{line}': has too many brackets inside one another; accepted are at most {_MOST_LEVELS}."
        ) from None
    except (HydraException, ValueError) as error:  # ValueError of a number with more digits than Python reads
        if "=" not in line and not line.startswith("~"):
            raise ConfigError(f"argument '{line}': accepted is key=value, for example steps=10.") from error
        key, _, value = line.partition("=")
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"argument '{line}': the value of {key} cannot be read ({reason}). Put text with commas, colons, quotes, "
            f"brackets or letters beyond ASCII in double quotes inside the shell's single ones: {_example(key, value)}"
        ) from error


def _levels(value: Any) -> int:
    """How deep the lists and mappings of a value are nested."""
    deepest, left = 0, [(value, 0)]
    while left:
        found, depth = left.pop()
        deepest = max(deepest, depth)
        inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        left += [(each, depth + 1) for each in inner]
    return deepest


def _example(key: str, value: str) -> str:
    return f"'{key}=[\"...\"]'" if value.startswith("[") or key == "prompts" else f"'{key}=\"...\"'"


_FOLDERS = "jobs are kept in output_dir/sweep_name: output_dir=FOLDER sweep_name=NAME."
# what of Hydra's own settings is without effect here, and what does it
OF_HYDRA = {
    "sweep.dir": _FOLDERS,
    "sweep.subdir": "a job's folder is called by its id.",
    "run.dir": _FOLDERS,
    "output_subdir": "a job's config.yaml is in its folder.",
    "job.chdir": "all jobs run in the folder that the command was started from.",
    "job.name": "sweep_name=NAME calls a sweep.",
    "job.config": "an override's name in tables is its key.",
    "job": "all there is of it is hydra.job.env_set, for launchers.",
    "verbose": "runtime.progress says how much is shown, and RESEARCH_FULL_ERROR=1 shows the stack of an error.",
    "job_logging": "runtime.progress says how much is shown.",
    "hydra_logging": "runtime.progress says how much is shown.",
    "runtime": "it is for Hydra to fill in.",
    "overrides": "it is for Hydra to fill in.",
    "env": "it is for Hydra to fill in.",
    "sweep": _FOLDERS,
    "run": _FOLDERS,
}


def _check_hydra(override: Override) -> None:
    key = override.key_or_group.removeprefix("hydra.").removeprefix("hydra/")
    if key.startswith(("job.env_set", "job.env_copy")) or override.is_delete():
        return
    for name, instead in OF_HYDRA.items():
        if key == name or key.startswith((f"{name}.", f"{name}/")):
            raise ConfigError(f"{override.key_or_group}: has no effect; {instead}")


def scheduler_classes(lines: Sequence[str], groups: Groups) -> list[str]:
    """What ``scheduler=`` names that is no choice and may be a class: ``TCDScheduler``, ``my_module.MyScheduler``."""
    found = []
    for override in map(parse, lines):
        if override.key_or_group == "scheduler" and override.package is None and not override.is_delete():
            names = [name for name in choices_of(override) if name not in groups.get("scheduler", ())]
            found += [name for name in names if _CLASS.fullmatch(name)]
    return found


def normalise(lines: Sequence[str], groups: Groups) -> list[str]:
    """The same overrides, checked and in the form in which they are composed.

    A choice must exist in its group. A plain key is set whether or not the YAML files mention it, so that
    ``scheduler.options.eta=1`` needs no ``+``; whether a key means something is then for `validate` to say, in one place.
    """
    named = {parse(line).key_or_group for line in lines if not parse(line).is_delete()}
    if "prompts_file" in named and (other := sorted(named & {"prompts", "prompt_set"})):
        raise ConfigError(f"prompts_file: found with {other[0]}; accepted is one of them.")
    return [_normalised(parse(line), line, groups) for line in _with_trackers(_with_levels(lines), groups)]


def _with_trackers(lines: Sequence[str], groups: Groups) -> list[str]:
    """``tracker=[wandb,tensorboard]`` as one tracker with each of these in it, by its name."""
    found: list[str] = []
    for line in lines:
        override = parse(line)
        names = choices_of(override) if override.key_or_group == "tracker" and isinstance(override._value, list) else []
        if override.package is not None or not names or override.is_delete():
            found.append(line)
            continue
        for name in names:
            if name not in groups["tracker"] or name in ("none", "several"):
                listed = sorted({*groups["tracker"]} - {"none", "several"})
                raise ConfigError(
                    f"tracker: unknown tracker {name!r}.{nearest(name, listed)} Accepted: {', '.join(listed)}."
                )
        found += ["tracker=several", *(f"+tracker@tracker.{name}={name}" for name in dict.fromkeys(names))]
    return found


def _with_levels(lines: Sequence[str]) -> list[str]:
    """The short form of a list of noise levels, ``sigmas=[14.6,6.5,1,0]`` or ``timesteps=[999,700]``, as the choice of the group
    with that list; of a single list the number of steps follows, where it is not given."""
    found: list[str] = []
    named = {parse(line).key_or_group for line in lines}
    for line in lines:
        override = parse(line)
        key = override.key_or_group
        lists = _lists(override) if key in ("sigmas", "timesteps") else []
        if not lists:
            found.append(line)
            continue
        if {"sigmas", "timesteps"} <= named:
            raise ConfigError("timesteps: found with sigmas; accepted is one of them.")
        found += ["sigmas=list", f"sigmas.{key}={line.partition('=')[2]}"]
        if "steps" not in named and len(lists) == 1:
            ends = key == "sigmas" and lists[0][-1:] == [0]
            found.append(f"steps={len(lists[0]) - ends}")
    return found


def _lists(override: Override) -> list[list[Any]]:
    """The lists that an override gives, one or a sweep of several; none where it gives something else."""
    value: Any = override._value
    values: list[Any] = list(value.list) if isinstance(value, ChoiceSweep) else [value]
    return values if all(isinstance(each, list) for each in values) else []


def _normalised(override: Override, line: str, groups: Groups) -> str:
    key = override.key_or_group
    if not key or (override.package is not None and (not override.package or key not in groups)):
        raise ConfigError(
            f"argument '{line}': accepted is key=value, for example steps=10; and GROUP@PLACE=CHOICE, of a group of configs."
        )
    if override.is_hydra_override():
        _check_hydra(override)
    if key in groups:
        _check_choices(override, groups)
        if override.package is not None or override.is_hydra_override() or override.is_delete():
            return line
        # the project's groups have a default to replace ("+experiment=x" is a habit from elsewhere), a user's new ones none
        return line.lstrip("+") if key in GROUPS else "+" + line.lstrip("+")
    if override.is_delete() or override.is_hydra_override() or override.package is not None:
        return line
    return "++" + line.lstrip("+")


def as_written(line: str) -> str:
    """A normalised override as a person writes it."""
    return line.lstrip("+")


def is_choice(override: Override, groups: Groups) -> bool:
    """Whether an override picks from a group (or changes the defaults list in another way)."""
    return override.key_or_group in groups or override.package is not None or override.is_hydra_override()


def _check_choices(override: Override, groups: Groups) -> None:
    group, options = override.key_or_group, list(groups[override.key_or_group])
    value = override._value
    if override.is_sweep_override() and not isinstance(value, ChoiceSweep | Glob):
        raise ConfigError(
            f"{group}: found {str(override.input_line).partition('=')[2]}; accepted are names of choices: {group}=a,b."
        )
    if not override.is_sweep_override() and not override.is_delete():
        if isinstance(value, list) and group not in SEVERAL:
            raise ConfigError(f"{group}: takes one choice; found a list. To sweep: research -m {group}=a,b")
        if value is None or isinstance(value, dict):
            found = "null" if value is None else "a mapping"
            raise ConfigError(f"{group}: found {found}; accepted: {', '.join(sorted(options))}.")
    if group == "hydra/sweeper" and "optuna" not in options:
        options = [option for option in options if option != "search"]  # which builds on it
    for choice in choices_of(override):
        if choice not in options:
            short = group.removeprefix("hydra/")
            more = _missing(options) if group == "hydra/launcher" else []
            classes = _classes_of_diffusers() if group == "scheduler" else ()
            hint = nearest(choice, [*options, *more, *classes])
            if group == "model" and _is_place(choice):
                raise ConfigError(
                    f"model: found {choice!r}, which is no name of a model config; a directory, a file or a hub id is "
                    f"model=custom model.path={choice}"
                )
            if group == "sampler" and choice in groups.get("scheduler", ()):  # as other programs call it
                hint = f" It is a scheduler here: scheduler={choice}."
            if choice in _PLUGIN_PACKAGES:
                package, install = _PLUGIN_PACKAGES[choice]
                hint = f" It comes with the package {package}, which is not installed: {install}."
            raise ConfigError(
                f"{group}: unknown {short} '{choice}'.{hint} Accepted: {', '.join(sorted(options))}{_to_install(more)}"
                f"{', or a class of diffusers such as DDIMScheduler' if classes else ''}."
            )


@lru_cache(maxsize=1)
def _classes_of_diffusers() -> tuple[str, ...]:
    """Names of diffusers' schedulers, read from its source."""
    spec = spec_of("diffusers")
    file = Path(spec.origin).parent / "schedulers" / "__init__.py" if spec is not None and spec.origin else None
    if file is None or not file.is_file():
        return ()
    return tuple(sorted(set(re.findall(r'"(\w+Scheduler)"', file.read_text(encoding="utf-8")))))


def _is_place(choice: str) -> bool:
    """Whether a choice of a model is where one is: a path, or a hub id."""
    try:
        return "/" in choice or Path(choice).exists()
    except (OSError, ValueError):  # no name of a file at all
        return False


def _missing(launchers: Sequence[str]) -> list[str]:
    return [name for name in _PLUGIN_PACKAGES if name not in (*launchers, "optuna", "search")]


def _to_install(names: Sequence[str]) -> str:
    return f"; with a package to install: {', '.join(sorted(names))}" if names else ""


def choices_of(override: Override) -> list[str]:
    """Every choice an override names; a sweep names several."""
    value: Any = override._value
    if override.is_sweep_override():
        return [name for item in value.list for name in _names(item)] if isinstance(value, ChoiceSweep) else []
    return _names(value)


def _names(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for item in value for name in _names(item)]
    if value is None:
        return []
    return [(value.text if isinstance(value, QuotedString) else str(value)).removesuffix(".yaml")]
