"""The one door to what Hydra and argparse keep for themselves: composing without running, and the parser of Hydra's flags.

Whatever the project uses of these libraries beyond what they document passes through this file, so that a new version of
theirs is met here and in tests/jobs/test_hydra_internals.py, which names what has moved.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from research.package import config_dir
from research.text_files import check_yaml, read_text

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # runs jobs in this process
BASIC_SWEEPER = (
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"  # the product of axes, whose points can be planned
)


_Stamp = tuple[str, int, int]  # a file or folder, the time of its last change, and its size
_read: dict[_Stamp, ConfigResult | None] = {}
_listed: dict[tuple[_Stamp, ObjectType | None], list[str]] = {}


class _Sources(ConfigRepository):
    """The files of a search path, those of the project and of Hydra read and listed once a process: that is much of composing."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        stamp = _stamp(source, config_path)
        if stamp is None:
            if source is not None and source.scheme() == "file":  # somebody's own
                file = Path(source.path, source._normalize_file_name(config_path))
                check_yaml("config", file, read_text("config", file))
            return super().load_config(config_path)
        if stamp not in _read:
            _read[stamp] = super().load_config(config_path)
        return copy.deepcopy(_read[stamp])  # composing changes what it is given

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        found: set[str] = set()
        for source in self.sources:
            if source.is_group(group_name):
                found.update(self._options(source, group_name, results_filter))
        return sorted(found)

    @staticmethod
    def _options(source: ConfigSource, group_name: str, results_filter: ObjectType | None) -> list[str]:
        stamp = _stamp(source, group_name, folder=True)
        if stamp is None:
            return source.list(group_name, results_filter)
        if (stamp, results_filter) not in _listed:
            _listed[stamp, results_filter] = source.list(group_name, results_filter)
        return _listed[stamp, results_filter]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Sources:
        return copy.copy(
            self
        )  # a search path that is read again gives another list of sources, which change in nothing


def _stamp(source: ConfigSource | None, config_path: str, folder: bool = False) -> _Stamp | None:
    """What names the content of a config, or of the folder of a group; None for one that is not kept."""
    if source is not None and source.scheme() == "file" and source.path == str(config_dir()):
        file = os.path.join(source.path, config_path if folder else source._normalize_file_name(config_path))
        stat = os.stat(file)
        return file, stat.st_mtime_ns, stat.st_size
    if source is not None and source.scheme() == "pkg" and source.path == "hydra.conf":
        return f"pkg://{source.path}/{config_path}", 0, 0
    return None


class Repository(CachingConfigRepository):
    """The YAML files of a search path, each read once."""

    def __init__(self, delegate: IConfigRepository):
        super().__init__(delegate)
        self.copies = _Copies(self)  # the same for composing, which moves nodes out of what it is given

    def groups(self) -> dict[str, list[str]]:
        """Every group with its choices."""
        found = {name: self.get_group_options(name, ObjectType.CONFIG) for name in self._group_names()}
        return {name: options for name, options in found.items() if options}

    def _group_names(self, parent: str = "") -> list[str]:
        children = self.get_group_options(parent, ObjectType.GROUP)
        names = [f"{parent}/{child}" if parent else child for child in children]
        return [found for name in names for found in (name, *self._group_names(name))]


class _Copies(CachingConfigRepository):
    def load_config(self, config_path: str) -> ConfigResult | None:
        return copy.deepcopy(self.delegate.load_config(config_path))


def create_hydra(
    main: str, user: str | None, plugins: Sequence[tuple[str, str]] = ()
) -> tuple[Hydra, ConfigLoaderImpl]:
    """Hydra over the folder of the project's configs, before it one of the user's, and after it those of installed packages, each
    a name and a folder."""
    search_path = create_config_search_path(main)
    if user is not None:
        search_path.prepend("command-line", f"file://{user}", SearchPathQuery(provider="schema", path=None))
    for name, folder in plugins:
        search_path.prepend(f"plugin {name}", f"file://{folder}", SearchPathQuery(provider="schema", path=None))
    hydra = Hydra.create_main_hydra2("research", search_path)
    loader = hydra.config_loader
    assert isinstance(loader, ConfigLoaderImpl)
    loader.repository = _Sources(search_path)
    return hydra, loader


def add_choice(group: str, name: str, content: dict[str, Any]) -> None:
    """Make a choice of a group that no file has, for all composing in this process."""
    ConfigStore.instance().store(group=group, name=name, node=content)


def remove_choice(group: str, name: str) -> None:
    """Take back what `add_choice` made."""
    folder: Any = ConfigStore.instance().repo.get(group, {})
    folder.pop(f"{name}.yaml", None)
    if not folder:
        ConfigStore.instance().repo.pop(group, None)


@contextmanager
def logging_as_it_was() -> Iterator[None]:
    """Take back what Hydra's flags that show something do to the logging of the whole process."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@contextmanager
def as_hydra_errors(what: str) -> Iterator[None]:
    """What Hydra and OmegaConf fail with where they did not expect such input, as an error of Hydra's."""
    try:
        yield
    except HydraException:
        raise
    except OmegaConfBaseException:
        raise
    except RecursionError as error:
        raise HydraException(f"{what} is nested too deep, or refers to itself") from error
    except (TypeError, ValueError, AttributeError, AssertionError, LookupError) as error:
        said = str(error).strip().splitlines()
        raise HydraException(f"{what} cannot be composed ({said[0] if said else type(error).__name__})") from error


def repository(loader: ConfigLoaderImpl, config_name: str, search_path: Sequence[Override]) -> Repository:
    """The files of a loader's search path and of ``hydra.searchpath``. Building it costs more than all its answers."""
    found = Repository(loader.repository)
    loader._process_config_searchpath(config_name, list(search_path), found)
    return found


def callbacks(master: DictConfig) -> Callbacks:
    """The callbacks that a config names, for a launcher that Hydra does not call itself."""
    return Callbacks(master)


def list_groups_once(loader: ConfigLoaderImpl) -> None:
    """Let Hydra's help, which asks for the choices of one group after the other, ask one repository each time."""
    files = CachingConfigRepository(loader.repository)

    def options(group_name: str, results_filter: Any = ObjectType.CONFIG, *_: Any, **__: Any) -> list[str]:
        return files.get_group_options(group_name, results_filter)

    loader.get_group_options = options  # type: ignore[method-assign]


def list_parts(
    files: Repository, config_name: str, lines: Sequence[Override]
) -> tuple[list[ResultDefault], list[Override]]:
    """The config files that overrides lead to, in the order in which they are merged and less those of Hydra, and the
    overrides of single values among them."""
    with as_hydra_errors(_shown(lines)):
        made = create_defaults_list(
            repo=files, config_name=config_name, overrides_list=list(lines), prepend_hydra=True, skip_missing=False
        )
    # what is Hydra's own was composed with the sweep, and costs more than all the rest
    parts = [part for part in made.defaults if not _is_of_hydra(part)]
    return parts, [override for override in made.config_overrides if not override.is_hydra_override()]


def merge_parts(loader: ConfigLoaderImpl, parts: Sequence[ResultDefault], files: Repository) -> DictConfig:
    """Config files merged in their order, each where its package says."""
    with as_hydra_errors("the config"):
        return loader._compose_config_from_defaults_list(defaults=list(parts), repo=files.copies)


def apply_overrides(overrides: Iterable[Override], config: DictConfig) -> None:
    """Set, add and delete single values in a config, in place, as Hydra does."""
    given = list(overrides)
    with as_hydra_errors(_shown(given)):
        ConfigLoaderImpl._apply_overrides_to_config(given, config)


def _shown(lines: Iterable[Override]) -> str:
    return " ".join(str(line.input_line) for line in lines) or "the config"


def has_interpolated_defaults(result: ConfigResult) -> bool:
    """Whether a file's defaults list looks at the choices of others: ``optional model_task: ${model}_${task}``."""
    entries = result.defaults_list or ()
    return any(
        "${" in f"{entry.get_name() if not isinstance(entry, GroupDefault) else entry.value}{entry.package}"
        for entry in entries
        if not entry.is_self()
    )


def has_defaults(result: ConfigResult) -> bool:
    """Whether a file asks for others."""
    return any(not entry.is_self() for entry in result.defaults_list or ())


def _is_of_hydra(part: ResultDefault) -> bool:
    return (part.config_path or "").startswith("hydra/") or (part.package or "").split(".")[0] == "hydra"


def command_parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of Hydra's flags as one of another class, without ``--version``, which would say Hydra's."""
    parser = get_args_parser()
    parser.__class__ = kind
    version = next(action for action in parser._actions if "--version" in action.option_strings)
    parser._remove_action(version)
    del parser._option_string_actions["--version"]
    return parser
