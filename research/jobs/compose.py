"""From command-line overrides to composed configs, with Hydra doing the composing and none of the talking."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from research.errors import ConfigError
from research.jobs import overrides as lines_of
from research.jobs.composed_choices import Bases
from research.jobs.points import Points, points_of
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
        search_path = create_config_search_path(main)
        if user_dir is not None:
            folder = os.path.abspath(user_dir)
            if not os.path.isdir(folder):
                raise ConfigError(f"--config-dir: no folder '{user_dir}'; accepted is a folder of config groups.")
            search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema", path=None))
        GlobalHydra.instance().clear()
        self.hydra = Hydra.create_main_hydra2("research", search_path)
        loader = self.hydra.config_loader
        assert isinstance(loader, ConfigLoaderImpl)
        self.loader = loader
        self._bases: Bases | None = None
        self._groups: dict[str, list[str]] | None = None

    def __enter__(self) -> Composer:
        return self

    def __exit__(self, *exc: Any) -> None:
        GlobalHydra.instance().clear()

    def groups(self, search_path: Sequence[str] = ()) -> dict[str, list[str]]:
        """All config groups with their choices, those of the user's folders included."""
        if self._groups is None:
            with explained():
                repository = self._repository(search_path)
                names = _group_names(repository)
                found = {name: repository.get_group_options(name, ObjectType.CONFIG) for name in names}
                self._groups = {name: options for name, options in found.items() if options}
        return self._groups

    def list_once(self) -> None:
        """Let Hydra's help, which asks for the choices of one group after the other, ask the same repository each time."""
        repository = CachingConfigRepository(self.loader.repository)

        def options(group_name: str, results_filter: Any = ObjectType.CONFIG, *_: Any, **__: Any) -> list[str]:
            return repository.get_group_options(group_name, results_filter)

        self.loader.get_group_options = options  # type: ignore[method-assign]

    def _repository(self, search_path: Sequence[str]) -> IConfigRepository:
        # the loader's own listing builds a repository anew for each question, which costs more than all the answers
        parsed = [lines_of.parse(line) for line in search_path]
        repository = CachingConfigRepository(self.loader.repository)
        self.loader._process_config_searchpath(self.config_name, parsed, repository)
        return repository

    def normalise(self, lines: Sequence[str]) -> list[str]:
        """Overrides checked against the grammar and the groups; see `overrides.normalise`."""
        search_path = [line for line in lines if line.lstrip("+").startswith("hydra.searchpath=")]
        return lines_of.normalise(lines, self.groups(search_path))

    def master(self, lines: Sequence[str]) -> DictConfig:
        """The config of a whole sweep (or of a single job), ``hydra`` node included, with swept keys at their defaults."""
        fixed = [line for line in lines if not lines_of.parse(line).is_sweep_override()]
        with explained():
            return self.hydra.compose_config(self.config_name, fixed, RunMode.MULTIRUN)

    def points(self, master: DictConfig, lines: Sequence[str]) -> list[list[str]]:
        """The overrides of each job of a sweep, the experiment's own axes first; see `research.jobs.points`."""
        return self.sweep_points(master, lines).found

    def sweep_points(self, master: DictConfig, lines: Sequence[str]) -> Points:
        """The same, with what was left out on the way."""
        with explained():
            return points_of(self, master, lines)

    def job(self, master: DictConfig, point: Sequence[str]) -> dict[str, Any]:
        """The resolved config of one job, as plain dicts, lists and numbers, without the ``hydra`` node."""
        own = [line for line in master.hydra.overrides.hydra if not line.startswith("hydra.mode=")]
        parsed = [lines_of.parse(line) for line in point]
        groups = self.groups()
        choices = [line for line, o in zip(point, parsed, strict=True) if lines_of.is_choice(o, groups)]
        values = [o for o in parsed if not lines_of.is_choice(o, groups)]
        with explained():
            if self._bases is None:
                self._bases = Bases(self.loader, self.config_name, groups)
            return self._bases.of((*own, *choices)).with_values(values)


def _group_names(repository: IConfigRepository, parent: str = "") -> list[str]:
    children = repository.get_group_options(parent, ObjectType.GROUP)
    names = [f"{parent}/{child}" if parent else child for child in children]
    return [found for name in names for found in (name, *_group_names(repository, name))]


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
            raise ConfigError(f"{key}: must be given; set it with {key}=VALUE.") from error
        raise ConfigError(f"{key}: {_first_line(error)}") from error
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
