"""Continuous-time consistency models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, Update


@dataclass(frozen=True)
class SCM(LinearSolver):
    """Multistep consistency sampling (Consistency models, arXiv:2303.01469, algorithm 1; of continuous-time ones,
    arXiv:2410.11081, section 2.2): the data prediction is noised afresh to the next level, ``x' = signal' D + noise' z``; the
    last step is ``D``.

    As `LCM` without boundary conditions, which a network of trigonometric flow has in its own parametrisation.

    Args:
        clip: of data predictions, see `LinearSolver`.
    """

    clip: float | None = None
    levels_like = "DDIMScheduler"

    def update(self, levels: Levels, i: int) -> Update:
        end = levels[i + 1]
        return Update({0: 0.0}, {0: end.signal}, noise=end.noise)

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> SCM | None:
        return None if step_options else cls()
