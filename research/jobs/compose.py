"""From command-line overrides to composed configs, with Hydra doing the composing and none of the talking."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import version
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from yaml import YAMLError

from research.errors import ConfigError, nearest
from research.jobs import hydra_internals as internals
from research.jobs import overrides as lines_of
from research.jobs.composed_choices import ComposedChoices
from research.jobs.plugins import plugin_packages
from research.package import config_dir


class Composer:
    """Composes jobs from ``conf/`` and a folder of the user's own. Use it as a context manager.

    Args:
        user_dir: a folder whose groups and choices are added to the project's.
        config_name: the primary config.
        config_path: a folder to read the primary config from instead of the project's.

    Raises:
        ConfigError: here and in the methods, for whatever cannot be composed; one line, the cause attached.
    """

    def __init__(self, user_dir: str | None = None, config_name: str | None = None, config_path: str | None = None):
        version.setbase("1.3")
        main = os.path.abspath(config_path) if config_path else str(config_dir())
        self.config_name = config_name or "config"
        folder = None if user_dir is None else os.path.abspath(user_dir)
        if folder is not None and not os.path.isdir(folder):
            raise ConfigError(f"--config-dir: no folder '{user_dir}'; accepted is a folder of config groups.")
        GlobalHydra.instance().clear()
        self.hydra, self.loader = internals.create_hydra(
            main, folder, [(plugin.name, str(plugin.configs)) for plugin in plugin_packages()]
        )
        self._is_own = config_path is None  # whether the primary config is the project's
        self._classes: set[str] = set()  # scheduler=CLASS, which no file has
        self._choices: ComposedChoices | None = None
        self._groups: dict[str, list[str]] | None = None

    def __enter__(self) -> Composer:
        return self

    def __exit__(self, *exc: Any) -> None:
        for name in self._classes:
            internals.remove_choice("scheduler", name)
        GlobalHydra.instance().clear()

    def groups(self, search_path: Sequence[str] = ()) -> dict[str, list[str]]:
        """All config groups with their choices, those of the user's folders included."""
        if self._groups is None:
            with explained():
                parsed = [lines_of.parse(line) for line in search_path]
                self._groups = internals.repository(self.loader, self.config_name, parsed).groups()
        return self._groups

    def normalise(self, lines: Sequence[str]) -> list[str]:
        """Overrides checked against the grammar and the groups; see `overrides.normalise`."""
        search_path = [line for line in lines if line.lstrip("+").startswith("hydra.searchpath=")]
        groups = self.groups(search_path)
        for name in lines_of.scheduler_classes(lines, groups):
            if name not in self._classes:
                internals.add_choice("scheduler", name, {"name": name, "class_name": name, "options": {}})
                self._classes.add(name)
        return lines_of.normalise(lines, {**groups, "scheduler": [*groups["scheduler"], *self._classes]})

    def master(self, lines: Sequence[str]) -> DictConfig:
        """The config of a whole sweep (or of a single job), ``hydra`` node included, with swept keys at their defaults."""
        fixed = [line for line in lines if not lines_of.parse(line).is_sweep_override()]
        with explained(), internals.as_hydra_errors(" ".join(map(lines_of.as_written, fixed)) or "the config"):
            master = self.hydra.compose_config(self.config_name, fixed, RunMode.MULTIRUN)
            if self._is_own:
                _check_folders(master)
        return master

    def job(self, master: DictConfig, point: Sequence[str]) -> dict[str, Any]:
        """The resolved config of one job, as plain dicts, lists and numbers, without the ``hydra`` node."""
        own = [line for line in master.hydra.overrides.hydra if not line.startswith("hydra.mode=")]
        parsed = [lines_of.parse(line) for line in point]
        groups = self.groups()
        choices = [line for line, o in zip(point, parsed, strict=True) if lines_of.is_choice(o, groups)]
        values = [o for o in parsed if not lines_of.is_choice(o, groups)]
        with explained():
            if self._choices is None:
                self._choices = ComposedChoices(self.loader, self.config_name, groups)
            config = self._choices.of((*own, *choices)).with_values(values)
        sampler = config.get("sampler")
        if isinstance(sampler, dict) and isinstance(sampler.get("score"), str):
            config["sampler"] = {**sampler, "score": self._metric(sampler["score"])}
        return config

    def _metric(self, name: str) -> dict[str, Any]:
        """The metric that a choice of the group ``metrics`` is, as the score of a sampler."""
        accepted = self.groups().get("metrics", [])
        if name not in accepted:
            raise ConfigError(
                f"sampler.score: found {name!r};{nearest(name, accepted)} accepted are choices of the group metrics that have "
                "a value an image (clip_score, preference, ...), or {_target_: ...} of a metric, a loss or a function."
            )
        assert self._choices is not None
        with explained():
            found = self._choices.of((f"metrics={name}",)).plain.get("metrics") or {}
        if len(found) != 1:
            raise ConfigError(
                f"sampler.score: found {name!r}, which is {len(found)} metrics; accepted are choices that are one."
            )
        (node,) = found.values()
        if missing := [argument for argument, value in node.items() if value == "???"]:
            raise ConfigError(
                f"sampler.score: found {name!r}, whose {missing[0]} must be given; accepted is "
                f"'sampler.score={{_target_: {node.get('_target_')}, {missing[0]}: ...}}'."
            )
        return dict(node)


def _check_folders(master: DictConfig) -> None:
    """Refuse what a file sets of Hydra's own folders, which would have no effect."""
    node = master.hydra
    mine = f"{master.get('output_dir')}/{master.get('sweep_name')}"
    wanted = {"sweep.dir": mine, "run.dir": mine, "sweep.subdir": ".", "job.chdir": False, "output_subdir": None}
    for key, value in wanted.items():
        if (found := OmegaConf.select(node, key)) != value:
            raise ConfigError(f"hydra.{key}: found {found!r}, which has no effect; {lines_of.OF_HYDRA[key]}")


_ASKED = {  # conf/metrics/ask.yaml
    "metrics.ask": (
        "metrics: must be given, as which numbers fit a model of your own is not known: metrics=none (pictures alone), "
        "metrics=clip_openai (photographs of a text), metrics=[clip_openai,inception] metrics.fid.reference=FOLDER (and FID), or "
        "others; and so must prompts=[a sentence,another one] or prompt_set=NAME, if it takes text."
    )
}


@contextmanager
def explained() -> Iterator[None]:
    """Turn what Hydra, OmegaConf and YAML raise into a `ConfigError` of one line."""
    try:
        yield
    except MissingConfigException as error:
        first = _first_line(error)
        options = f" Accepted: {', '.join(sorted(error.options))}." if error.options else ""
        raise ConfigError(f"config: {first.rstrip('.')}.{options}") from error
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "config"
        if "Missing mandatory value: " in str(error):
            # also when another key only refers to the one that is missing
            named = _first_line(error).rpartition(" ")[2]
            key = key if key.rpartition(".")[2] == named else named
            told = _ASKED.get(key, f"{key}: must be given; set it with {key}=VALUE.")
            if key.isdigit() or key.endswith("]"):
                told = f"{key}: found ???, which stands for a value that must be given; accepted is another text."
                told = told if key.endswith("]") else f"config: an entry of a list, {told}"
            raise ConfigError(told) from error
        literal = (
            ""
            if not isinstance(error, InterpolationKeyError)
            else r"; text that is meant as it stands is written \${...}"
        )
        raise ConfigError(f"{key}: {_first_line(error)}{literal}") from error
    except HydraException as error:
        raise ConfigError(f"config: {_first_line(error)}{_cause(error)}") from error
    except YAMLError as error:
        where = str(getattr(error, "problem_mark", "")).strip()
        raise ConfigError(f"config: YAML cannot be read: {getattr(error, 'problem', error)} {where}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _cause(error: Exception) -> str:
    cause = error.__cause__
    return f": {_first_line(cause)}" if isinstance(cause, OmegaConfBaseException) else ""
