"""Installed packages that bring plugs: entry points of the group ``research.plugins``, each a package with a folder of configs.

``my_plugs = "my_plugs"`` adds the groups and choices in the folder ``conf`` of the package ``my_plugs`` to the project's, and
``my_plugs = "my_plugs:configs"`` those in its folder ``configs``. What YAML files name is imported when a job needs it, and no
sooner. The project's own choices, and those of ``--config-dir``, come before those of a package.
"""

from __future__ import annotations

import logging
import sys
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from research.jobs.modules import spec_of

GROUP = "research.plugins"
_log = logging.getLogger(__name__)


class PluginPackage(NamedTuple):
    """A package that brings plugs."""

    name: str  # of the entry point
    package: str
    configs: Path


def plugin_packages() -> tuple[PluginPackage, ...]:
    """The packages that are installed, by the names of their entry points. One that cannot be found, or has no folder of configs,
    is left out with a warning."""
    return _found(tuple(sys.path))


@lru_cache(maxsize=8)
def _found(path: tuple[str, ...]) -> tuple[PluginPackage, ...]:
    found = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        spec = spec_of(entry.module)
        place = None
        if spec is not None:
            inside = list(spec.submodule_search_locations or ())
            place = Path(inside[0]) if inside else Path(str(spec.origin)).parent
        folder = None if place is None else place / (entry.attr or "conf")
        if folder is None or not folder.is_dir():
            why = "its package is not there" if folder is None else f"it has no folder {folder}"
            _log.warning("warning: the plugin %s (%s) is left out: %s", entry.name, entry.value, why)
            continue
        found[entry.name] = PluginPackage(entry.name, entry.module, folder)
    return tuple(found.values())


def is_of_plugin(module: str) -> bool:
    """Whether a module belongs to such a package."""
    top = module.partition(".")[0]
    return any(plugin.package.partition(".")[0] == top for plugin in plugin_packages())
