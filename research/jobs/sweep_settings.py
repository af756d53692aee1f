"""The section ``sweep`` of a config: which points a sweep has. It belongs to the sweep as a whole and to none of its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from research.checks import check_choice, check_whole_number
from research.errors import ConfigError, nearest
from research.jobs.compose import explained

MAX_POINTS = 10_000


@dataclass(frozen=True)
class SweepSettings:
    """See conf/config.yaml."""

    zip: list[list[str]] = field(default_factory=list)
    exclude: list[Any] = field(default_factory=list)
    points: str | None = None
    sample: int | None = None
    seed: int = 0
    max_points: int = MAX_POINTS
    impossible: str = "stop"
    optimise: list[str] = field(default_factory=list)  # of a search

    @property
    def given(self) -> str | None:
        """The first key that only a sweep can do something with."""
        return next((name for name in ("zip", "exclude", "points", "sample") if getattr(self, name)), None)


def settings_of(master: DictConfig) -> SweepSettings:
    """The settings of a composed sweep.

    Raises:
        ConfigError: an unknown key, or a value that cannot be used.
    """
    given = section(master, "sweep")
    if not isinstance(given, Mapping):
        raise ConfigError(f"sweep: found {given!r}; accepted are keys inside it, sweep.NAME=VALUE.")
    names = [f.name for f in fields(SweepSettings)]
    for name in map(str, given):
        if name not in names:
            raise ConfigError(f"sweep.{name}: unknown key.{nearest(name, names)} Accepted: {', '.join(names)}.")
    settings = {**given, "zip": _zip(given.get("zip")), "exclude": _exclude(given.get("exclude"))}
    settings["points"] = _path(given.get("points"))
    whole = partial(check_whole_number, integral_float=True)
    settings["sample"] = None if given.get("sample") is None else whole("sweep.sample", given["sample"], least=1)
    settings["seed"] = whole("sweep.seed", given.get("seed", 0))
    settings["max_points"] = whole("sweep.max_points", given.get("max_points", MAX_POINTS), least=1)
    settings["impossible"] = check_choice("sweep.impossible", given.get("impossible", "stop"), ("stop", "skip"))
    settings["optimise"] = _names(given.get("optimise"))
    return SweepSettings(**{str(name): value for name, value in settings.items()})


def section(master: DictConfig, name: str) -> Any:
    """A section of a composed config that is of the sweep as a whole, resolved; {} where there is none.

    Raises:
        ConfigError: it refers to what is not there.
    """
    with explained():
        node = master.get(name)
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node or {}


def _zip(given: Any) -> list[list[str]]:
    """``[[a, b], [c, d]]``; one group may stand without the outer brackets."""
    if given is None or given == []:
        return []
    groups = [given] if isinstance(given, list) and all(isinstance(key, str) for key in given) else given
    right = isinstance(groups, list) and all(
        isinstance(group, list) and len(group) > 1 and all(isinstance(key, str) for key in group) for group in groups
    )
    if not right:
        raise ConfigError(
            f"sweep.zip: found {given!r}; accepted are lists of two or more axes that go together: [[scheduler,steps]]."
        )
    keys = [key for group in groups for key in group]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ConfigError(f"sweep.zip: found '{twice[0]}' twice; accepted is each axis once.")
    return [[str(key) for key in group] for group in groups]


def _exclude(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, list) else [given]


def _names(given: Any) -> list[str]:
    names = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"sweep.optimise: found {given!r}; accepted are names of numbers: fid, or [fid,nfe].")
    return names


def _path(given: Any) -> str | None:
    if given is None:
        return None
    if not isinstance(given, str) or not given.strip():
        raise ConfigError(f"sweep.points: found {given!r}; accepted is a file .csv, .yaml or .json.")
    return given
