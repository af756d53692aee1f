"""What the choices of config groups compose to, kept so that a sweep over many of them composes each section once.

Hydra composes a job in two halves: from the choices of groups it lists config files, and it merges these in their order. A
sweep changes a few choices from job to job. Where a choice is a file of its own that asks for no others, its list is the
last one with that file in the place of another; and a section of the config (``guidance``, say) is merged anew only for
files that touch it and have not been merged before. Wherever that would not be exactly what Hydra does, Hydra does it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from research.jobs import hydra_internals as internals
from research.jobs import overrides as lines_of

Lines = tuple[str, ...]
_Place = tuple[str | None, str | None]  # a config file and where in the config it goes


_Swap = tuple[int, int, list[ResultDefault]]  # the first and the last place (not included) of what goes, and what comes


@dataclass
class _Reference:
    """Choices whose files Hydra has listed, and the other choices that have been looked at from there, by place."""

    lines: Lines
    parts: list[ResultDefault]
    swaps: dict[tuple[int, str], _Swap | None] = field(default_factory=dict)


class ComposedConfig:
    """A composed config before single values are set in it, without the ``hydra`` node and with its interpolations."""

    def __init__(self, plain: dict[str, Any], config: DictConfig | None = None):
        self.plain, self._config = plain, config
        self._simple = _is_plain(plain)

    @classmethod
    def of(cls, config: DictConfig) -> ComposedConfig:
        """The same of what Hydra has composed."""
        plain = OmegaConf.to_container(config, resolve=False)
        assert isinstance(plain, dict)
        return cls({str(key): value for key, value in plain.items()}, config)

    def with_values(self, values: Sequence[Override]) -> dict[str, Any]:
        """The resolved config as plain dicts, lists and numbers, with values set in the order given.

        Raises:
            HydraException, OmegaConfBaseException: as Hydra and OmegaConf have it.
        """
        if self._simple and (found := self._quickly(values)) is not None:
            return found
        config = copy.deepcopy(self._config) if self._config is not None else OmegaConf.create(copied(self.plain))
        OmegaConf.set_struct(config, True)
        internals.apply_overrides(values, config)
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}

    def _quickly(self, values: Sequence[Override]) -> dict[str, Any] | None:
        """The same where it takes no knowledge of OmegaConf: plain values set in mappings, keys deleted. Else None."""
        found = copied(self.plain)
        for override in values:
            key, value = override.key_or_group, override.value()
            if "[" in key or not _is_plain(value) or override.package is not None:
                return None
            *above, last = key.split(".")
            node: Any = found
            for name in above:
                node = node.get(name)
                if not isinstance(node, dict):
                    return None
            if not (_delete(node, last, value) if override.is_delete() else _set(node, last, value, override)):
                return None
        return found


def _delete(node: dict[str, Any], key: str, value: Any) -> bool:
    if value is not None or node.get(key) is None:
        return False
    del node[key]
    return True


def _set(node: dict[str, Any], key: str, value: Any, override: Override) -> bool:
    before = node.get(key)
    if (override.is_add() and not override.is_force_add()) or (key not in node and not override.is_force_add()):
        return False
    if isinstance(value, dict) and isinstance(before, dict):
        return override.is_force_add() and _merge(before, value)
    if isinstance(before, dict) or (isinstance(before, list) and isinstance(value, dict)):
        return False
    node[key] = copied(value)
    return True


def _merge(into: dict[str, Any], value: dict[str, Any]) -> bool:
    """Merge mappings whose values agree in kind."""
    for key, inner in value.items():
        before = into.get(key)
        if isinstance(before, dict) and isinstance(inner, dict):
            if not _merge(before, inner):
                return False
        elif isinstance(before, dict | list) or isinstance(inner, dict):
            if before is not None and type(before) is not type(inner):
                return False
            into[key] = copied(inner)
        else:
            into[key] = copied(inner)
    return True


class ComposedChoices:
    """Composed configs by the choices that lead to them. YAML files are read once, so that a later edit changes no job.

    Args:
        loader: Hydra's.
        config_name: the primary config.
        groups: the config groups with their choices.
    """

    def __init__(self, loader: internals.ConfigLoaderImpl, config_name: str, groups: Collection[str]):
        self._loader, self._config_name, self._groups = loader, config_name, groups
        self._files: internals.Repository | None = None
        self._known: dict[Lines, ComposedConfig] = {}
        self._references: list[_Reference] = []  # the latest last
        self._plain_parts: dict[_Place, dict[str, Any]] = {}
        self._sections: dict[tuple[str, tuple[_Place, ...]], Any] = {}

    def of(self, lines: Lines) -> ComposedConfig:
        """The config of overrides that pick choices (or belong to Hydra).

        Raises:
            HydraException, OmegaConfBaseException: as Hydra and OmegaConf have it.
        """
        if lines not in self._known:
            self._known[lines] = self._assembled(lines) or self._composed(lines)
        return self._known[lines]

    def _composed(self, lines: Lines) -> ComposedConfig:
        parsed = [lines_of.parse(line) for line in lines]
        if self._files is None:
            self._files = internals.repository(self._loader, self._config_name, parsed)
        parts, values = internals.list_parts(self._files, self._config_name, parsed)
        config = internals.merge_parts(self._loader, parts, self._files)
        OmegaConf.set_struct(config, True)
        internals.apply_overrides(values, config)
        with open_dict(config):
            config.pop("hydra", None)
        if not values and not any(map(self._looks_at_others, parts)):
            self._references.append(_Reference(lines, parts))
        return ComposedConfig.of(config)

    def _looks_at_others(self, part: ResultDefault) -> bool:
        """Whether a file asks for others by the choices of a third group."""
        assert self._files is not None
        found = self._files.load_config(str(part.config_path))
        return found is None or internals.has_interpolated_defaults(found)

    # -- the same from what is known

    def _assembled(self, lines: Lines) -> ComposedConfig | None:
        """The config put together from sections; None where Hydra has to compose it."""
        parts = next(filter(None, (self._parts(lines, reference) for reference in reversed(self._references))), None)
        if parts is None:
            return None
        touching: dict[str, list[ResultDefault]] = {}
        for part in parts:
            for key in self._plain_part(part):
                touching.setdefault(key, []).append(part)
        try:
            return ComposedConfig({key: self._section(key, tuple(found)) for key, found in touching.items()})
        except (OmegaConfBaseException, _NotPlain):
            return None

    def _parts(self, lines: Lines, reference: _Reference) -> list[ResultDefault] | None:
        """The files that choices lead to, told from those of others; None where that cannot be told."""
        if [*map(_key, lines)] != [*map(_key, reference.lines)]:
            return None
        parts, swaps = reference.parts, []
        for place, (line, before) in enumerate(zip(lines, reference.lines, strict=True)):
            if line != before:
                if (place, line) not in reference.swaps:
                    reference.swaps[place, line] = self._swap(reference.parts, line, before)
                if (swap := reference.swaps[place, line]) is None:
                    return None
                swaps.append(swap)
        for start, stop, made in sorted(swaps, key=lambda swap: swap[0], reverse=True):
            parts = [*parts[:start], *made, *parts[stop:]]
        return parts if len({_place(part) for part in parts}) == len(parts) else None

    def _swap(self, parts: list[ResultDefault], line: str, before: str) -> _Swap | None:
        """The files of one other choice in the place of those of the choice before, where neither asks for further ones."""
        assert self._files is not None
        new, old = lines_of.parse(line), lines_of.parse(before)
        group = new.key_or_group
        if group not in self._groups or group.startswith("hydra/"):
            return None
        if any(one.package is not None or one.is_delete() for one in (new, old)):
            return None
        wanted, there = ([f"{group}/{name}" for name in lines_of.choices_of(one)] for one in (new, old))
        paths = [part.config_path for part in parts]
        if not there or not wanted or len(set(wanted)) < len(wanted) or paths.count(there[0]) != 1:
            return None
        start = paths.index(there[0])
        if paths[start : start + len(there)] != there:
            return None
        files = [self._files.load_config(path) for path in (*there, *wanted)]
        packages = {found.header["package"] for found in files if found is not None}
        if None in files or len(packages) > 1 or "_name_" in (next(iter(packages)) or ""):
            return None
        if any(found is not None and (internals.has_defaults(found) or found.is_schema_source) for found in files):
            return None
        made = []
        for path in wanted:
            part = copy.copy(parts[start])
            part.config_path = path
            made.append(part)
        return start, start + len(there), made

    def _plain_part(self, part: ResultDefault) -> dict[str, Any]:
        place = _place(part)
        if place not in self._plain_parts:
            assert self._files is not None
            plain = OmegaConf.to_container(internals.merge_parts(self._loader, [part], self._files), resolve=False)
            assert isinstance(plain, dict)
            self._plain_parts[place] = {str(key): value for key, value in plain.items() if key != "hydra"}
        return self._plain_parts[place]

    def _section(self, key: str, parts: tuple[ResultDefault, ...]) -> Any:
        """What the parts that touch a top-level key make of it."""
        places = tuple(map(_place, parts))
        if (key, places) not in self._sections:
            values = [self._plain_parts[place][key] for place in places]
            if len(values) > 1:
                # merging looks up interpolations that it meets, and leaves out what is missing
                if not _is_plain(values[1:]) or not (_is_plain(values[0]) or values[0] == "???"):
                    raise _NotPlain
                merged = OmegaConf.to_container(
                    OmegaConf.merge(*({key: copied(value)} for value in values)), resolve=False
                )
                assert isinstance(merged, dict)
                values = [merged[key]]
            self._sections[key, places] = values[0]
        return self._sections[key, places]


class _NotPlain(Exception):
    pass


def copied(value: Any) -> Any:
    """A deep copy of plain dicts and lists."""
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value


def _place(part: ResultDefault) -> _Place:
    return part.config_path, part.package


def _key(line: str) -> str:
    override = lines_of.parse(line)
    return f"{override.key_or_group}@{override.package}"


def _is_plain(value: Any) -> bool:
    """Whether OmegaConf would take a value for what it is: no interpolation, and nothing missing."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return type(value) is str and value != "???" and "${" not in value
    return value is None or isinstance(value, bool | int | float)
