"""Names of a package that are imported when they are first used, so that naming it costs no torch import."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` (PEP 562) of a package whose names stand in other modules.

    Args:
        package: its ``__name__``.
        modules: the module of each name.
    """

    def find(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(modules[name]), name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return find
