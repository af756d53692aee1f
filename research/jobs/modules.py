"""Modules found and read by name as an import would find them, and never imported."""

from __future__ import annotations

import ast
import importlib
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path

from research.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Module:
    """The source of a module."""

    name: str
    is_package: bool
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name if self.is_package else self.name.rpartition(".")[0]


def longest_module(target: str) -> tuple[str, Module | None]:
    """The module that a dotted name begins with, by its name; None where it has no source.

    Raises:
        ConfigError: no dotted name, or no such module.
    """
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ConfigError(
            f"_target_: found '{target}'; accepted is a class by its dotted name, such as my_guidance.Mine."
        )
    for n in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:n])
        if spec_of(name) is not None:
            return name, module_of(name)
    raise ConfigError(
        f"_target_: '{target}' cannot be found: no module '{parts[0]}' in the working folder or among the installed packages."
    )


@lru_cache(maxsize=4096)
def spec_of(name: str) -> ModuleSpec | None:
    """Where a module is. `importlib.util.find_spec` would import its parents, and with them torch."""
    parent, _, _ = name.rpartition(".")
    path = None
    if parent:
        above = spec_of(parent)
        if above is None or above.submodule_search_locations is None:
            return None
        path = list(above.submodule_search_locations)
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path) if hasattr(finder, "find_spec") else None
        except KeyError:  # a folder without __init__.py, inside of one that is not imported
            spec = _folder(name, path or [])
        if spec is not None:
            return spec
    return None


def _folder(name: str, path: list[str]) -> ModuleSpec | None:
    """A folder without ``__init__.py`` as the package that it is."""
    places = [str(place) for above in path if (place := Path(above, name.rpartition(".")[2])).is_dir()]
    if not places:
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = places
    return spec


@lru_cache(maxsize=512)
def module_of(name: str) -> Module | None:
    """The source of a module; None of one that has none, or that is not there.

    Raises:
        ConfigError: it cannot be read, or is no Python.
    """
    spec = spec_of(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        found = Path(spec.origin).stat()
        tree = _parsed(spec.origin, found.st_mtime_ns, found.st_size)
    except (OSError, ValueError) as error:
        raise ConfigError(f"_target_: {spec.origin} cannot be read: {error}") from error
    except SyntaxError as error:
        raise ConfigError(f"_target_: {spec.origin}, line {error.lineno}: {error.msg}") from error
    return Module(name, spec.submodule_search_locations is not None, tree)


@lru_cache(maxsize=512)
def _parsed(path: str, changed_ns: int, size: int) -> ast.Module:
    """The tree of a file as it was when it was changed last: read once a process, however often modules are looked for anew."""
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def absolute(module: Module, node: ast.ImportFrom) -> str:
    """The module that a ``from ... import`` names."""
    if not node.level:
        return node.module or ""
    base = module.package.split(".")
    base = base[: len(base) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def forget() -> None:
    """Look for modules and read them anew."""
    importlib.invalidate_caches()
    spec_of.cache_clear()
    module_of.cache_clear()
