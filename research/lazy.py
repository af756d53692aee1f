"""Importing late and fast: names of a package that are imported on first use, and loading without the garbage collector."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def gc_paused(*, keep: bool = False) -> Iterator[None]:
    """Pause the garbage collector while modules are loaded and models built: there is hardly any garbage among what is made
    then, and looking through it again and again takes a sixth of the time of a small sweep.

    Args:
        keep: do not look through what is there at the end either, for as long as the process lives: libraries, no models.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if keep:
            gc.freeze()
        gc.enable()


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
