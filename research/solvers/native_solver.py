"""Runs a linear solver: its plan over a grid becomes a table of numbers, and a step is a few multiplications."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from research.errors import ConfigError, SamplingError
from research.sampling.interfaces import Guided, StepOutput
from research.sampling.noise import STEP, NoiseSource
from research.sampling.prediction import Kind, Prediction, convert, to_x0
from research.sampling.timeline import Stage, Timeline, log_snr_of
from research.solvers.levels import Level, Levels
from research.solvers.linear import LinearSolver, StagePlan
from research.solvers.steps import full_precision
from research.solvers.upstream_levels import Shape
from research.strength import kept_steps


@dataclass(frozen=True, slots=True)
class Row:
    """One update in terms of what the model says and the latents it saw: factors by how many evaluations back."""

    latents: tuple[tuple[int, float], ...]
    outputs: tuple[tuple[int, float], ...]
    noise: float
    interval: tuple[float, float] | None
    lead: float | None = None  # of what guidance says minus what its own noise does, of the kind that the model says


@dataclass(frozen=True, slots=True)
class Table:
    """A run in numbers.

    Attributes:
        plan: the evaluations, in order.
        rows: the update after each.
        depth: how many evaluations are looked back at.
    """

    plan: tuple[StagePlan, ...]
    rows: tuple[Row, ...]
    depth: int
    # of each row, what its first latents are multiplied by, as tensors: a third of the time of a product with a number
    factors: dict[torch.dtype, list[Tensor]] = field(default_factory=dict, compare=False)

    def factor(self, place: int, dtype: torch.dtype) -> Tensor:
        """Of a row's first term of latents, 0-d on the CPU, which no device waits for."""
        if dtype not in self.factors:
            first = [row.latents[0][1] if row.latents else 0.0 for row in self.rows]
            self.factors[dtype] = list(torch.tensor(first, dtype=dtype).unbind())
        return self.factors[dtype][place]


def tabulate(plan: Sequence[StagePlan], kind: Kind, name: str) -> Table:
    """A plan in terms of a model's predictions of a kind.

    Raises:
        ConfigError: an epsilon prediction where there is no signal: it says nothing of the picture.
    """
    rows = []
    for i, stage in enumerate(plan):
        update = stage.update
        latents: dict[int, float] = dict(update.latents)
        outputs: dict[int, float] = {}
        for parts, meaning in ((update.data, _data_of), (update.slopes, _slope_of)):
            for back, factor in parts.items():
                if not factor:
                    continue
                x, m = meaning(plan[i - back].level, kind, name)
                if x:
                    latents[back] = latents.get(back, 0.0) + factor * x
                outputs[back] = outputs.get(back, 0.0) + factor * m
        if not all(map(math.isfinite, (*latents.values(), *outputs.values(), update.noise))):
            raise ConfigError(
                f"scheduler: the step of {name} at t = {stage.level.time:g} is no number; other noise levels may do."
            )
        # the newest latents come first; one that cancels is left out, but for the newest, which carries the shape
        kept = tuple(
            (back, latents[back]) for back in sorted(latents) if back == min(latents) or abs(latents[back]) > 1e-14
        )
        lead = lead_of(stage)
        if lead:
            lead *= _data_of(stage.level, kind, name)[1]
        told = tuple((b, outputs[b]) for b in sorted(outputs) if outputs[b])
        rows.append(Row(kept, told, update.noise, update.interval, lead))
    depth = max((back for row in rows for back, _ in (*row.latents, *row.outputs)), default=0)
    return Table(tuple(plan), tuple(rows), depth)


def lead_of(stage: StagePlan) -> float | None:
    """`Update.lead`, of a step without memory read off: it goes from the latents that data prediction and noise would make."""
    update = stage.update
    if update.lead is not None or update.depth:
        return update.lead
    return update.latents.get(0, 0.0) * stage.level.signal + update.data.get(0, 0.0)


def _data_of(level: Level, kind: Kind, name: str) -> tuple[float, float]:
    """Factors of latents and output in the data prediction."""
    a, b = level.signal, level.noise
    if kind == "x0":
        return 0.0, 1.0
    if kind == "epsilon":
        if not a:
            raise ConfigError(
                f"scheduler: {name} begins without signal (zero terminal SNR), where a model that predicts epsilon says nothing; "
                "accepted are levels with signal, or a model that predicts v or x0."
            )
        return 1.0 / a, -b / a
    if kind == "v":
        n = math.hypot(a, b)
        return a / n**2, -b / n
    return 1.0 / (a + b), -b / (a + b)


def _slope_of(level: Level, kind: Kind, name: str) -> tuple[float, float]:
    """Factors of latents and output in the slope ``(x / scale - D) / sigma``."""
    if kind == ("flow" if level.flow else "epsilon"):
        return 0.0, 1.0
    x, m = _data_of(level, kind, name)
    return (1.0 / level.scale - x) / level.sigma, -m / level.sigma


class NativeSolver:
    """A linear solver for one run.

    Args:
        solver: what the updates are.
        grid: gives the levels of a full schedule of so many steps, for latents of a shape (None: the model's own).
        name: how messages call it.
        kind: what the model predicts.
        scheduler: diffusers' object whose place it takes, untouched, or None.

    Attributes:
        table: of the timeline last made.
        end_level: ``(signal, noise)`` of the latents after the last step, known once the timeline is made.
    """

    parity = False
    turn: int | None = None
    notes: Sequence[str] = ()
    end_level = (1.0, 0.0)
    table: Table | None = None

    def __init__(
        self,
        solver: LinearSolver,
        grid: Callable[[int, Shape | None], Levels],
        *,
        name: str,
        kind: Kind,
        offers: frozenset[str],
        scheduler: Any = None,
        known: dict[Any, Any] | None = None,
    ):
        self.solver, self.name, self.kind, self.scheduler = solver, name, kind, scheduler
        self.supports = frozenset({f"predicts:{kind}", "noise-levels", *offers})
        self._grid = grid
        self._shape: Shape | None = None
        self._known = {} if known is None else known
        # clipping is not linear: the prediction is made one of x0 and cut, and the table is about that
        self._told: Kind = kind if solver.clip is None else "x0"
        self._start_scale = 1.0
        self._range = (0.0, 0.0)
        self._paths: dict[tuple[int, ...], Any] = {}

    def fit(self, shape: Shape) -> None:
        self._shape = shape

    def timeline(
        self, steps: int, *, strength: float = 1.0, device: torch.device | str = "cpu", by_strength: bool = False
    ) -> Timeline:
        """The grid, cut to its last part by strength, and the solver's evaluations over it.

        Args:
            steps: the user's steps of the full schedule.
            strength: the part of them to keep, the last ones.
            device: where the timesteps go.
            by_strength: of account with parity alone.

        Raises:
            ConfigError: levels that the solver cannot walk, or a count that the grid cannot make.
        """
        key = steps, strength, str(device), self._shape
        if key not in self._known:
            self._known[key] = self._make(steps, strength, device)
        timeline, self.table, self._start_scale, self.end_level, self._range = self._known[key]
        self._outputs: list[Tensor] = []
        self._latents: list[Tensor] = []
        return timeline

    def _make(self, steps: int, strength: float, device: torch.device | str) -> tuple[Timeline, Table, float, Any, Any]:
        levels = self._grid(steps, self._shape)
        levels.check(self.name, divides=self.solver.divides)
        steps = levels.steps
        kept = kept_steps(steps, strength)
        end = levels[-1].signal, levels[-1].noise
        sigmas = [level.sigma for level in levels if 0 < level.sigma < math.inf]
        if not kept:
            return (
                Timeline((), n_steps=steps, first_stage=len(self.solver.plan(levels))),
                Table((), (), 0),
                levels.start_scale,
                end,
                (0.0, 0.0),
            )
        plan = tuple(self.solver.plan(levels.last(kept)))
        table = tabulate(plan, self._told, self.name)
        first = steps - kept
        skipped = len(self.solver.plan(levels)) - len(plan) if first else 0
        stages = _stages(plan, first, steps, device)
        timeline = Timeline(stages, n_steps=steps, first_stage=skipped)
        return timeline, table, levels.start_scale, end, (min(sigmas, default=0.0), max(sigmas, default=0.0))

    def start(self, noise: NoiseSource) -> None:
        self._paths = {}

    def scale_noise(self, noise: Tensor) -> Tensor:
        return noise if self._start_scale == 1.0 else noise * self._start_scale

    def scale_input(self, x: Tensor, stage: Stage) -> Tensor:
        return x  # latents are scaled as models are trained

    def add_noise(self, clean: Tensor, noise: Tensor, stage: Stage | None) -> Tensor:
        """Clean latents noised to the level of a stage, shapes [N or 1, C, h, w]; after the last stage (None) they stay clean."""
        if stage is None:
            return clean
        total = full_precision(clean) * stage.signal + full_precision(noise) * stage.noise
        return total.to(clean.dtype)

    def step(self, guided: Guided, x: Tensor, stage: Stage, noise: NoiseSource) -> StepOutput:
        assert self.table is not None
        place = stage.index
        row = self.table.rows[place]
        # with a noise to go along that is its own, the solver walks by what this noise says: so does its history
        prediction = guided.prediction if guided.renoise is None else guided.renoise
        output = prediction.value
        if prediction.kind != self.kind or self.solver.clip is not None:
            output = self._output(prediction, x, stage)
        # newest first; summed in fp32 whatever the dtype, as half-precision sums of large terms lose the small ones
        back, _ = row.latents[0]
        first = full_precision(x if not back else self._latents[back - 1])
        new = first * self.table.factor(place, first.dtype)
        for back, factor in row.latents[1:]:
            new.add_(self._latents[back - 1] if back else x, alpha=factor)
        for back, factor in row.outputs:
            new.add_(self._outputs[back - 1] if back else output, alpha=factor)
        if guided.renoise is not None:
            if row.lead is None:
                raise SamplingError(
                    f"guidance: {self.name} cannot go along a noise of the guidance's own; accepted are schedulers that offer "
                    "'renoise'."
                )
            more = full_precision(self._output(guided.prediction, x, stage)) - full_precision(output)
            new.add_(more, alpha=row.lead)
        if row.noise:
            drawn = (
                noise.draw(STEP, x.shape[1:], x.dtype) if row.interval is None else self._path(row.interval, x, noise)
            )
            new.add_(drawn, alpha=row.noise)
        if depth := self.table.depth:
            self._outputs = [output, *self._outputs[: depth - 1]]
            self._latents = [x, *self._latents[: depth - 1]]
        return StepOutput(new if new.dtype == x.dtype else new.to(x.dtype))

    def memory(self) -> dict[str, list[Tensor]]:
        """What earlier evaluations leave to the steps ahead, newest first: tensors [N, C, h, w]."""
        return {"outputs": self._outputs, "latents": self._latents}

    def remember(self, memory: Mapping[str, list[Tensor]]) -> None:
        """Go on with what `memory` gave."""
        self._outputs, self._latents = list(memory["outputs"]), list(memory["latents"])

    def _output(self, prediction: Prediction, x: Tensor, stage: Stage) -> Tensor:
        """A prediction as the table takes it, shape of ``x``."""
        if self.solver.clip is not None:
            return to_x0(prediction, x, stage).clamp(-self.solver.clip, self.solver.clip)
        return prediction.value if prediction.kind == self.kind else convert(prediction, self.kind, x, stage).value

    def _path(self, interval: tuple[float, float], x: Tensor, noise: NoiseSource) -> Tensor:
        """The increment of each image's Brownian path between two sigmas, with variance 1, shape of ``x``."""
        from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

        key = tuple(x.shape)
        if key not in self._paths:
            lowest, highest = self._range
            like = torch.zeros(x.shape, dtype=torch.float32)
            self._paths[key] = BrownianTreeNoiseSampler(like, lowest, highest, noise.seeds_of(STEP))
        high, low = (torch.tensor(sigma, dtype=torch.float32) for sigma in interval)
        return self._paths[key](high, low).to(x.device, x.dtype)


def _stages(plan: Sequence[StagePlan], first: int, steps: int, device: torch.device | str) -> tuple[Stage, ...]:
    """The stages of a plan; its steps begin at ``first`` of the full schedule."""
    times = torch.tensor([stage.level.time for stage in plan], dtype=torch.float32)
    if all(stage.level.time.is_integer() for stage in plan):
        times = times.long()
    told = times.to(device)
    sigmas = [*(stage.level.sigma for stage in plan), 0.0]
    return tuple(
        Stage(
            index=i,
            step=first + stage.step,
            n_steps=steps,
            t=told[i],
            time=stage.level.time,
            sigma=min(sigmas[i], 1e12),
            sigma_next=sigmas[i + 1],
            log_snr=log_snr_of(stage.level.signal, stage.level.noise),
            signal=stage.level.signal,
            noise=stage.level.noise,
            last_of_step=i + 1 == len(plan) or plan[i + 1].step != stage.step,
        )
        for i, stage in enumerate(plan)
    )


def offers_of(solver: LinearSolver, levels: Levels) -> frozenset[str]:
    """What a solver offers plugs, read from its plan over a grid: whether it forgets, whether it can go along a noise of the
    guidance's own, and whether it adds no noise."""
    plan = solver.plan(levels)
    forgets = all(stage.update.depth == 0 for stage in plan) and len(plan) == levels.steps
    quiet = all(not stage.update.noise for stage in plan)
    leads = forgets or all(stage.update.lead is not None for stage in plan)
    held = {"first-order": forgets, "revisits": forgets, "renoise": leads, "deterministic": quiet}
    return frozenset(name for name, is_held in held.items() if is_held)
