"""Schedulers by short name, by diffusers class name or as an object, built fresh for each run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names
from research.solvers.names import SchedulerSpec, resolve, scheduler_names

if TYPE_CHECKING:
    from research.solvers.build import SolverFactory as SolverFactory
    from research.solvers.diffusers_solver import DiffusersSolver as DiffusersSolver
    from research.solvers.steps import ddim_step as ddim_step

_LAZY = {
    "SolverFactory": "research.solvers.build",
    "DiffusersSolver": "research.solvers.diffusers_solver",
    "ddim_step": "research.solvers.steps",
}

__all__ = ["DiffusersSolver", "SchedulerSpec", "SolverFactory", "ddim_step", "resolve", "scheduler_names"]


__getattr__ = lazy_names(__name__, _LAZY)
