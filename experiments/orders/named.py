"""How tables and tests call a solver."""

from __future__ import annotations

from dataclasses import fields

from research.solvers import LinearSolver


def named(solver: LinearSolver) -> str:
    """A solver's class with the options that are not its defaults."""
    told = [
        f"{f.name}={getattr(solver, f.name)}"
        for f in fields(solver)  # type: ignore[arg-type]
        if getattr(solver, f.name) != f.default
    ]
    return f"{type(solver).__name__}({', '.join(told)})"
