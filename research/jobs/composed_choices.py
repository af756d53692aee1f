"""What the config groups compose to, kept and put together so that a sweep over many choices composes each of them once."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf, open_dict

from research.jobs import overrides as lines_of

Lines = tuple[str, ...]
_Part = tuple[str | None, str | None]  # a config file and where in the config it goes


class Base:
    """A composed config before single values are set in it, without the ``hydra`` node and with its interpolations."""

    def __init__(self, config: DictConfig, parts: Sequence[_Part] = ()):
        self.config, self.parts = config, tuple(parts)
        plain = OmegaConf.to_container(config, resolve=False)
        assert isinstance(plain, dict)
        self.plain: dict[str, Any] = {str(key): value for key, value in plain.items()}
        self._simple = _is_plain(self.plain)

    def with_values(self, values: Sequence[Override]) -> dict[str, Any]:
        """The resolved config as plain dicts, lists and numbers, with values set in the order given.

        Raises:
            HydraException, OmegaConfBaseException: as Hydra and OmegaConf have it.
        """
        if self._simple and (found := self._quickly(values)) is not None:
            return found
        config = copy.deepcopy(self.config)
        ConfigLoaderImpl._apply_overrides_to_config(list(values), config)
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}

    def _quickly(self, values: Sequence[Override]) -> dict[str, Any] | None:
        """The same where it takes no knowledge of OmegaConf: numbers and texts set in mappings. Else None."""
        found = copied(self.plain)
        for override in values:
            key, value = override.key_or_group, override.value()
            if override.is_delete() or (override.is_add() and not override.is_force_add()) or "[" in key:
                return None
            if isinstance(value, dict) or not _is_plain(value):
                return None
            *above, last = key.split(".")
            node: Any = found
            for name in above:
                node = node.get(name)
                if not isinstance(node, dict):
                    return None
            if isinstance(node.get(last), dict):
                return None
            if last not in node and not override.is_force_add():
                return None
            node[last] = copied(value)
        return found


@dataclass(frozen=True)
class _Change:
    """What one other choice changes of a base: its place among the parts, and the top-level keys that it may touch."""

    start: int
    stop: int
    keys: frozenset[str]


class Bases:
    """Bases by the choices that lead to them. YAML files are read once, so that a later edit changes no job.

    Args:
        loader: Hydra's.
        config_name: the primary config.
        groups: the config groups with their choices.
    """

    def __init__(self, loader: ConfigLoaderImpl, config_name: str, groups: Collection[str]):
        self._loader, self._config_name, self._groups = loader, config_name, groups
        self._repository: _Repository | None = None
        self._known: dict[Lines, Base] = {}
        self._reference: Lines | None = None
        self._changes: dict[tuple[int, str], _Change | None] = {}

    def of(self, lines: Lines) -> Base:
        """The base of overrides that pick choices (or belong to Hydra)."""
        if lines not in self._known:
            if self._reference is None or [*map(_key, lines)] != [*map(_key, self._reference)]:
                self._reference = lines
                self._changes.clear()
            self._known[lines] = self._assembled(lines) or self._composed(lines)
        return self._known[lines]

    def _composed(self, lines: Lines) -> Base:
        parsed = [lines_of.parse(line) for line in lines]
        if self._repository is None:
            self._repository = _Repository(self._loader.repository)
            self._loader._process_config_searchpath(self._config_name, parsed, self._repository)
        made = create_defaults_list(
            repo=self._repository,
            config_name=self._config_name,
            overrides_list=parsed,
            prepend_hydra=True,
            skip_missing=False,
        )
        # what is Hydra's own was composed with the sweep, and costs more than all the rest
        kept = [part for part in made.defaults if not _of_hydra(part)]
        config = self._loader._compose_config_from_defaults_list(defaults=kept, repo=self._repository)
        OmegaConf.set_struct(config, True)
        own = [override for override in made.config_overrides if not override.is_hydra_override()]
        ConfigLoaderImpl._apply_overrides_to_config(own, config)
        with open_dict(config):
            config.pop("hydra", None)
        return Base(config, [(part.config_path, part.package) for part in kept])

    def _assembled(self, lines: Lines) -> Base | None:
        """The base put together from bases that differ from the reference in one choice each.

        Only where each choice replaces parts of its own that touch top-level keys of their own: then the order in which the
        parts are merged makes no difference, and the sections of the config can be taken from where they are known.
        """
        reference = self._reference
        assert reference is not None
        other = [i for i, line in enumerate(lines) if line != reference[i]]
        if len(other) < 2:
            return None
        changes = {i: self._change(i, lines[i]) for i in other}
        known = [change for change in changes.values() if change is not None]
        if len(known) < len(other):
            return None
        touched = [key for change in known for key in change.keys]
        spans = sorted((change.start, change.stop) for change in known)
        if len(touched) > len(set(touched)) or any(a[1] > b[0] for a, b in pairwise(spans)):
            return None
        plain = dict(self.of(reference).plain)
        for i in other:
            section = self.of(_with(reference, i, lines[i])).plain
            for key in changes[i].keys:  # type: ignore[union-attr]
                plain.pop(key, None)
                if key in section:
                    plain[key] = section[key]
        config = OmegaConf.create(copied(plain))
        OmegaConf.set_struct(config, True)
        return Base(config)

    def _change(self, place: int, line: str) -> _Change | None:
        if (place, line) not in self._changes:
            self._changes[place, line] = self._found_change(place, line)
        return self._changes[place, line]

    def _found_change(self, place: int, line: str) -> _Change | None:
        assert self._reference is not None
        override = lines_of.parse(line)
        if override.key_or_group not in self._groups or override.package is not None or override.is_delete():
            return None
        old, new = self.of(self._reference).parts, self.of(_with(self._reference, place, line)).parts
        start = 0
        while start < min(len(old), len(new)) and old[start] == new[start]:
            start += 1
        end = 0
        while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
            end += 1
        stop = len(old) - end
        parts = {*old[start:stop], *new[start : len(new) - end]}
        keys = [self._keys_of(part) for part in parts]
        return None if None in keys else _Change(start, stop, frozenset[str]().union(*filter(None, keys)))

    def _keys_of(self, part: _Part) -> frozenset[str] | None:
        path, package = part
        if package:
            return frozenset({package.split(".")[0]})
        found = self._repository.load_config(path) if self._repository is not None and path else None
        if found is None or not isinstance(found.config, DictConfig):
            return None
        return frozenset(str(key) for key in found.config) - {"defaults", "hydra"}


class _Repository(CachingConfigRepository):
    """Composing moves nodes out of what it is given, so that it gets copies of what is kept."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        kept = super().load_config(config_path)
        return copy.deepcopy(kept)


def copied(value: Any) -> Any:
    """A deep copy of plain dicts and lists."""
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value


def _with(lines: Lines, place: int, line: str) -> Lines:
    return (*lines[:place], line, *lines[place + 1 :])


def _key(line: str) -> str:
    override = lines_of.parse(line)
    return f"{override.key_or_group}@{override.package}"


def _of_hydra(part: ResultDefault) -> bool:
    return (part.config_path or "").startswith("hydra/") or (part.package or "").split(".")[0] == "hydra"


def _is_plain(value: Any) -> bool:
    """Whether OmegaConf would take a value for what it is: no interpolation, and nothing missing."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return type(value) is str and value != "???" and "${" not in value
    return value is None or isinstance(value, bool | int | float)
