"""Schedulers by short name, by diffusers class name or as an object, built fresh for each run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from research.schedulers.names import SchedulerSpec, resolve, scheduler_names

if TYPE_CHECKING:
    from research.schedulers.build import SolverFactory as SolverFactory
    from research.schedulers.diffusers_solver import DiffusersSolver as DiffusersSolver

_LAZY = {
    "SolverFactory": "research.schedulers.build",
    "DiffusersSolver": "research.schedulers.diffusers_solver",
}

__all__ = ["DiffusersSolver", "SchedulerSpec", "SolverFactory", "resolve", "scheduler_names"]


def __getattr__(name: str) -> Any:
    # names are resolved when a job is composed, where importing torch would be a waste
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'research.schedulers' has no attribute '{name}'")
