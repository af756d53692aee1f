"""Solvers by short name, by diffusers' class name or as an object, built fresh for each run; and what one's own is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from research.lazy import lazy_names
from research.solvers.names import SchedulerSpec, resolve, scheduler_names

if TYPE_CHECKING:
    from research.solvers.build import SolverFactory as SolverFactory
    from research.solvers.diffusers_solver import DiffusersSolver as DiffusersSolver
    from research.solvers.levels import Level as Level
    from research.solvers.levels import Levels as Levels
    from research.solvers.levels import TrainedLevels as TrainedLevels
    from research.solvers.linear import LinearSolver as LinearSolver
    from research.solvers.linear import StagePlan as StagePlan
    from research.solvers.linear import Update as Update
    from research.solvers.linear import after_noise as after_noise
    from research.solvers.linear import along as along
    from research.solvers.linear import to_data as to_data
    from research.solvers.native_solver import NativeSolver as NativeSolver
    from research.solvers.steps import ddim_step as ddim_step

_LAZY = {
    "SolverFactory": "research.solvers.build",
    "DiffusersSolver": "research.solvers.diffusers_solver",
    "Level": "research.solvers.levels",
    "Levels": "research.solvers.levels",
    "TrainedLevels": "research.solvers.levels",
    "LinearSolver": "research.solvers.linear",
    "StagePlan": "research.solvers.linear",
    "Update": "research.solvers.linear",
    "after_noise": "research.solvers.linear",
    "along": "research.solvers.linear",
    "to_data": "research.solvers.linear",
    "NativeSolver": "research.solvers.native_solver",
    "ddim_step": "research.solvers.steps",
}

__all__ = [
    "DiffusersSolver",
    "Level",
    "Levels",
    "LinearSolver",
    "NativeSolver",
    "SchedulerSpec",
    "SolverFactory",
    "StagePlan",
    "TrainedLevels",
    "Update",
    "after_noise",
    "along",
    "ddim_step",
    "resolve",
    "scheduler_names",
    "to_data",
]


__getattr__ = lazy_names(__name__, _LAZY)
