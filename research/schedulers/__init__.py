"""Schedulers by short name, by diffusers class name or as an object, built fresh for each run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names
from research.schedulers.names import SchedulerSpec, resolve, scheduler_names

if TYPE_CHECKING:
    from research.schedulers.build import SolverFactory as SolverFactory
    from research.schedulers.diffusers_solver import DiffusersSolver as DiffusersSolver
    from research.schedulers.steps import ddim_step as ddim_step

_LAZY = {
    "SolverFactory": "research.schedulers.build",
    "DiffusersSolver": "research.schedulers.diffusers_solver",
    "ddim_step": "research.schedulers.steps",
}

__all__ = ["DiffusersSolver", "SchedulerSpec", "SolverFactory", "ddim_step", "resolve", "scheduler_names"]


__getattr__ = lazy_names(__name__, _LAZY)
