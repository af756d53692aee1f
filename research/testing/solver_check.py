"""The rules of a linear solver: what its numbers must be for any grid of noise levels, looked at without a network, and its order
on a model that is known exactly."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from research.errors import UserError
from research.solvers.levels import Level, Levels, TrainedLevels, trained_levels
from research.solvers.linear import LinearSolver, StagePlan, Update
from research.testing.gaussian import SCHEDULE, GaussianModel
from research.testing.orders import SmoothLevels, errors, slope
from research.testing.plug_rules import place_of
from research.testing.watched import global_state

Found = Callable[[str, str, str], None]  # rule, problem, cure
COUNTS = (1, 2, 3, 6, 11)  # steps of the grids that a plan is asked for
_CLOSE = 1e-6  # of coefficients, which are computed in float64
_ORDER_STEPS = (40, 80, 160)
_ORDER_SLACK = 0.3  # of a measured order below the claimed one


@dataclass(frozen=True)
class Geometric:
    """Levels whose sigmas fall by one factor, smooth for every solver.

    Args:
        high, low: the first and the last sigma of models that predict epsilon, x0 or v; flow has the same signal-to-noise ratios.
        clean: end without noise, one step after ``low``.
    """

    high: float = 10.0
    low: float = 0.05
    clean: bool = False

    def levels(self, trained: TrainedLevels, steps: int) -> Levels:
        count = steps - self.clean
        ratio = (self.low / self.high) ** (1 / max(count, 1))
        grid = [trained.at_half_log_snr(-math.log(self.high * ratio**i)) for i in range(steps + (not self.clean) or 1)]
        return Levels((*grid, *([trained.clean()] if self.clean else [])), trained)


def check_plan(solver: LinearSolver, found: Found, checked: list[str], skipped: list[str]) -> bool:
    """Look at a solver's plans over grids of one to eleven steps, whole and sliced by strength, ending clean and with noise, of
    variance-preserving and flow models.

    Args:
        solver: is asked and not changed.
        found: takes what is wrong.
        checked, skipped: take the rules that were looked at, and those that could not be.

    Returns:
        Whether its plans can be walked.
    """
    checked += ["runs", "noise", "in place", "state", "steps", "looks back", "finite", "sum rule", "slices"]
    for flow in (False, True):
        trained = trained_levels({} if flow else SCHEDULE, flow=flow)
        for clean in (True, False):
            for count in COUNTS:
                levels = Geometric(clean=clean).levels(trained, count)
                for kept in {1, (count + 1) // 2, count}:
                    if not _check_one(solver, levels.last(kept), count - kept, found, skipped):
                        return False
    return True


def _check_one(solver: LinearSolver, levels: Levels, first: int, found: Found, skipped: list[str]) -> bool:
    """One grid; False where something was found."""
    where = f"{levels.steps} steps" if levels.steps > 1 else "1 step"
    where += " of a flow model" if levels.flow else ""
    rule = "slices" if first else "runs"
    grid, settings, drawn = tuple(levels), copy.deepcopy(vars(solver)), global_state()
    try:
        plan, again = solver.plan(levels), solver.plan(levels)
    except UserError as error:
        skipped.append(f"{where}: refused ({str(error).splitlines()[0].rstrip('.')})")
        return True
    except Exception as error:
        if _changed(levels, grid, found):
            return False
        lines = str(error).strip().splitlines()
        told = f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
        cure = "A run has any number of steps, one too; at i = 0 nothing was evaluated before."
        if first:
            cure = f"A slice by strength, here the last {where}, is a run of its own, which counts from i = 0."
        found(rule, f"raises {told} for {where}", cure)
        return False
    if global_state() != drawn:
        found("noise", "draws from a global generator", "Say noise=FACTOR in the Update; the loop draws it by image.")
        return False
    if _changed(levels, grid, found):
        return False
    fault = next(_faults(plan, levels), None)
    if fault is not None:
        found(fault[0], f"{fault[1]} ({where})", fault[2])
        return False
    if _numbers(plan) != _numbers(again) or vars(solver) != settings:
        cure = "plan and update are functions of the levels: keep nothing on self between calls."
        found("state", "gives other numbers when it is asked again" if _numbers(plan) != _numbers(again) else
              "changes its own settings while it plans", cure)  # fmt: skip
        return False
    for i, reached, wanted in _constants(plan, levels):
        if abs(reached - wanted) > _CLOSE:
            cure = "Weights of data predictions, and of slopes, sum to 1: begin with to_data(start, end, {0: 1.0}) or along(...)."
            problem = (
                f"a model whose data prediction is always 1 is led to {reached:.6g} and not to the signal {wanted:.6g}"
            )
            found("sum rule", f"{problem} by evaluation {i + 1} ({where})", cure)
            return False
    return True


def _changed(levels: Levels, grid: tuple[Level, ...], found: Found) -> bool:
    """Whether the levels are others than they were."""
    if tuple(levels) != grid:
        found("in place", "changes the levels that it is given", "Compute levels of your own, and leave these.")
    return tuple(levels) != grid


def _faults(plan: Any, levels: Levels) -> Iterator[tuple[str, str, str]]:
    """Rule, problem and cure of what a plan must be to be walked at all."""
    if not isinstance(plan, Sequence) or not plan or not all(isinstance(each, StagePlan) for each in plan):
        yield (
            "returned type",
            f"plan returns {_told(plan)}",
            "Return a list of StagePlan(level, update, step), one an evaluation.",
        )
        return
    for i, stage in enumerate(plan):
        update = stage.update
        if not isinstance(update, Update) or not isinstance(stage.level, Level):
            yield (
                "returned type",
                f"evaluation {i + 1} has the update {_told(update)}",
                "update returns an Update: to_data(...).",
            )
            return
        backs = [back for part in (update.latents, update.data, update.slopes) for back in part]
        if any(isinstance(back, bool) or not isinstance(back, int) or not 0 <= back <= i for back in backs):
            beyond = next(
                back for back in backs if isinstance(back, bool) or not isinstance(back, int) or not 0 <= back <= i
            )
            cure = "Keys say how many evaluations back, from 0 (the newest) to as many as were made: begin with fewer at i = 0."
            yield "looks back", f"evaluation {i + 1} looks {beyond} evaluations back, where {i} were made before", cure
            return
        numbers = [*update.latents.values(), *update.data.values(), *update.slopes.values(), update.noise]
        if not all(math.isfinite(number) for number in numbers):
            cure = "Look for divisions by the noise of a clean end (half_log_snr is infinite there), or by a distance that is 0."
            yield "finite", f"a factor of evaluation {i + 1} is no number", cure
            return
        if update.noise < 0:
            yield (
                "finite",
                f"the noise of evaluation {i + 1} is {update.noise:g}",
                "It is a standard deviation, from 0.",
            )
            return
        furthest = max((each.step for each in plan[:i]), default=-1)
        if not 0 <= stage.step <= furthest + 1:
            told = f"evaluation {i + 1} is of step {stage.step}, after {i} of steps up to {furthest}"
            yield "steps", told, "Steps count up by one from 0."
            return
    if plan[-1].step != levels.steps - 1:
        told = f"steps {plan[0].step} to {plan[-1].step} for a grid of {levels.steps}"
        yield "steps", f"plan has {told}", "Each step of the grid has its evaluations, from 0."


def _constants(plan: Sequence[StagePlan], levels: Levels) -> Iterator[tuple[int, float, float]]:
    """Where each update leads the constant part of latents if all data predictions are 1, and where it is to be."""
    latents = [plan[0].level.signal]
    for i, stage in enumerate(plan):
        update = stage.update
        reached = sum(factor * latents[i - back] for back, factor in update.latents.items()) + sum(update.data.values())
        for back, factor in update.slopes.items():
            level = plan[i - back].level
            if level.scale:  # at noise alone the slope is the noise, which has no constant part
                reached += factor * (latents[i - back] / level.scale - 1.0) / level.sigma
        wanted = plan[i + 1].level.signal if i + 1 < len(plan) else levels[-1].signal
        yield i, reached, wanted
        latents.append(wanted)


def _numbers(plan: Sequence[StagePlan]) -> list[Any]:
    return [
        (s.level, s.step, dict(s.update.latents), dict(s.update.data), dict(s.update.slopes), s.update.noise)
        for s in plan
    ]


def _told(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def measured_order(solver: LinearSolver, prediction: Any = "epsilon") -> float | None:
    """The order of a solver on a Gaussian model: the slope of its error over the number of steps, on smooth levels; None for one
    that adds noise, or that is exact there."""
    import torch

    model = GaussianModel(0.3, torch.tensor([0.25, 0.5, 1.5, 2.0]).reshape(1, 2, 2), (1, 2, 2), prediction)
    if any(stage.update.noise for stage in solver.plan(SmoothLevels().levels(trained_levels(SCHEDULE), 7))):
        return None
    found = errors(solver, model, _ORDER_STEPS)
    return None if min(found) < 1e-12 else slope(_ORDER_STEPS, found)


def check_order(solver: LinearSolver, found: Found, checked: list[str], notes: list[str]) -> None:
    """Hold the measured order against ``claimed_order``, where the class has one; else say it."""
    checked.append("order")
    claimed = getattr(solver, "claimed_order", None)
    order = measured_order(solver)
    if order is None:
        notes.append("order: not measured, as it adds noise or is exact on a Gaussian")
        return
    if claimed is None:
        notes.append(f"order: {order:.2f} measured on a Gaussian; state one as claimed_order to have it held")
    elif order < claimed - _ORDER_SLACK:
        cure = (
            "Look at the weights of earlier evaluations, and at the first and last steps, which may be of lower order."
        )
        found("order", f"claims order {claimed:g} and has {order:.2f} on a Gaussian", cure)
    if order < 0.5 and claimed is None:
        found(
            "order",
            f"does not converge: order {order:.2f} on a Gaussian",
            "Compare a step with to_data(start, end, {0: 1.0}).",
        )


def solver_place(solver: LinearSolver) -> str:
    """Where the updates of a solver are written."""
    own = type(solver)
    method = "update" if own.plan is LinearSolver.plan else "plan"
    return place_of(solver, method)
