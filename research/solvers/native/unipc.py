"""UniPC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from research.checks import check_whole_number
from research.errors import ConfigError
from research.solvers.levels import Levels
from research.solvers.linear import LinearSolver, StagePlan, Update, to_data
from research.solvers.native.upstream_options import only_defaults


@dataclass(frozen=True)
class UniPC(LinearSolver):
    """The unified predictor-corrector (arXiv:2302.04867, algorithms 1 and 2, data prediction): UniP-p leads to the next level,
    and the prediction there corrects the latents by UniC-p before the next step, at no further evaluation.

    Its weights solve ``R rho = b`` (eq. 10) with ``B(h) = h`` (bh1) or ``e^h - 1`` (bh2).

    Args:
        order: 1 to 3; lowered for the first steps and the last.
        kind: "bh1" or "bh2".
        corrector: correct at all.
        skip_corrector: steps that are not corrected, counted in the run.
        lower_order_final: the last steps are of lower order.
        clip: of data predictions, see `LinearSolver`.

    Raises:
        ConfigError: an option is none of these.
    """

    order: int = 2
    kind: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    skip_corrector: tuple[int, ...] = ()
    lower_order_final: bool = True
    clip: float | None = None
    levels_like = "UniPCMultistepScheduler"
    divides = True

    def __post_init__(self) -> None:
        check_whole_number("scheduler.options.order", self.order, least=1, most=3)
        if self.kind not in ("bh1", "bh2"):
            raise ConfigError(f"scheduler.options.kind: found {self.kind!r}; accepted are 'bh1' and 'bh2'.")

    @property
    def claimed_order(self) -> int | None:
        return min(self.order + self.corrector, 2 if self.lower_order_final else 4)  # the last step is of order 1

    def order_at(self, levels: Levels, i: int) -> int:
        """The order of step ``i``."""
        order = min(self.order, i + 1)
        return min(order, levels.steps - i) if self.lower_order_final else order

    def plan(self, levels: Levels) -> Sequence[StagePlan]:
        stages: list[StagePlan] = []
        for i in range(levels.steps):
            start, end = levels[i], levels[i + 1]
            order = self.order_at(levels, i)
            step = to_data(start, end, self._weights(levels, i, order, corrects=False))
            if self.corrector and i and i - 1 not in self.skip_corrector:
                step = from_corrected(step, self._correction(levels, i))
            stages.append(StagePlan(start, step, i))
        return stages

    def _correction(self, levels: Levels, i: int) -> dict[int, float]:
        """What is added to the latents at level ``i``: factors of data predictions. Both ways begin at the same latents and
        keep as much of them, so that they differ in the data predictions alone."""
        start, end, order = levels[i - 1], levels[i], self.order_at(levels, i - 1)
        corrected = to_data(start, end, self._weights(levels, i - 1, order, corrects=True)).data
        predicted = to_data(start, end, self._weights(levels, i - 1, order, corrects=False)).data
        found = {0: corrected[-1]}  # the prediction at the end of the step, now the newest
        for back, factor in corrected.items():
            if back >= 0:
                found[back + 1] = factor - predicted.get(back, 0.0)
        return found

    def _weights(self, levels: Levels, i: int, order: int, *, corrects: bool) -> dict[int, float]:
        """Weights, which sum to 1, of data predictions by how many evaluations behind level ``i``; -1 is that at the step's
        end."""
        here = levels.half_log_snr(i)
        h = levels.half_log_snr(i + 1) - here
        behind = [levels.half_log_snr(i - k) for k in range(1, order)]
        if not 0.0 < h < math.inf or -math.inf in behind:  # to a clean end, from noise alone, or nowhere
            return {0: 1.0, **({-1: 0.0} if corrects else {})}
        ratios = [(value - here) / h for value in behind]
        total = math.expm1(-h)
        b_of_h = -h if self.kind == "bh1" else total
        values, phi, factorial = [], total / -h - 1.0, 1
        for k in range(1, order + 1):
            values.append(phi * factorial / b_of_h)
            factorial *= k + 1
            phi = phi / -h - 1.0 / factorial
        nodes = [*ratios, 1.0]
        rows = [[node**k for node in nodes] for k in range(order)]
        if corrects:
            rhos = [0.5] if order == 1 else _solved(rows, values)
        elif order == 2:
            rhos = [0.5]
        else:
            rhos = _solved([row[:-1] for row in rows[:-1]], values[:-1]) if order > 1 else []
        # x' = kept x - signal' total D - signal' B(h) sum rho (D_k - D) / r_k: over -signal' total, weights sum to 1
        weights = {0: 1.0}
        for back, (rho, ratio) in enumerate(zip(rhos, nodes, strict=False), start=1):
            change = float(rho) / ratio * b_of_h / total
            place = -1 if corrects and back == order else back
            weights[place] = weights.get(place, 0.0) + change
            weights[0] -= change
        return weights

    @classmethod
    def from_upstream(cls, config: Mapping[str, Any], step_options: Mapping[str, Any]) -> UniPC | None:
        fits = only_defaults(config, thresholding=False, predict_x0=True, solver_p=None)
        if not fits or step_options or not 1 <= int(config.get("solver_order", 2)) <= 3:
            return None
        return cls(
            order=int(config.get("solver_order", 2)),
            kind=config.get("solver_type", "bh2"),
            skip_corrector=tuple(config.get("disable_corrector") or ()),
            lower_order_final=bool(config.get("lower_order_final", True)),
        )


def _solved(rows: list[list[float]], values: list[float]) -> list[float]:
    """The solution of at most three linear equations; numpy takes longer to begin."""
    if len(rows) == 1:
        return [values[0] / rows[0][0]]
    if len(rows) == 2:
        (a, b), (c, d) = rows
        size = a * d - b * c
        return [(values[0] * d - b * values[1]) / size, (a * values[1] - values[0] * c) / size]
    return [float(value) for value in np.linalg.solve(np.array(rows), np.array(values))]


def from_corrected(step: Update, correction: dict[int, float]) -> Update:
    """A step that begins at the latents plus the correction."""
    kept = step.latents[0]
    data = dict(step.data)
    for back, factor in correction.items():
        data[back] = data.get(back, 0.0) + kept * factor
    return Update(step.latents, data)
