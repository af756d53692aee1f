"""What the rules of the linter look at: a scheduler with its settings, its timeline, and where its steps really lead.

Where they lead is found by driving the scheduler with the predictions that a perfect model would make of a picture it knows.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from research.errors import ConfigError
from research.sampling.interfaces import Guided, Solver
from research.sampling.noise import NoiseSource
from research.sampling.prediction import Prediction, convert
from research.sampling.timeline import Timeline
from research.solvers.build import SolverFactory
from research.solvers.diffusers_solver import DiffusersSolver
from research.solvers.linear import StagePlan
from research.solvers.names import OF_MODEL, SchedulerSpec, resolve
from research.solvers.native_solver import NativeSolver
from research.solvers.upstream_levels import Told

MOST_STAGES = 300  # driven; more take longer than anybody waits for a warning
# of the latents that are driven: as many numbers as the spread of noise needs to be told to 1 %
SHAPE = (1, 4, 32, 32)


Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One doubt: how severe, by which rule, and a line that says the key, what was found, and what to do."""

    severity: Severity
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity} [{self.rule}] {self.message}"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Where the steps of a solver lead when the model is perfect.

    Attributes:
        timeline: what the solver says: the levels it wants to go through.
        signal, noise: what it does: share of picture and of noise after each evaluation [L].
        draws: whether an evaluation added fresh noise [L].
        failure: what a step raised, with the user's step it happened in.
    """

    timeline: Timeline
    signal: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    draws: tuple[bool, ...] = ()
    failure: tuple[int, Exception] | None = None

    @property
    def driven(self) -> bool:
        return bool(self.signal)

    @property
    def finite(self) -> bool:
        return all(math.isfinite(value) for value in (*self.signal, *self.noise))


def drive(solver: Solver, timeline: Timeline) -> Trajectory:
    """Walk a solver through its timeline with perfect predictions; each of the user's steps starts from the level it should.

    The first element of the latents is picture and no noise, the second is noise and no picture; the others are neither,
    so that what they become is noise that the solver drew.
    """
    picture, noise = torch.zeros(SHAPE), torch.zeros(SHAPE)
    picture.view(-1)[0] = noise.view(-1)[1] = 1.0
    ends = []
    for scale in (1.0, 0.0):  # the second run has the same random numbers and nothing else
        try:
            # a native solver replaces what it keeps; other classes may change it in place
            alone = copy.copy(solver) if isinstance(solver, NativeSolver) else copy.deepcopy(solver)
            ends.append(_walk(alone, timeline, scale * picture, scale * noise))
        except _Failed as failed:
            return Trajectory(timeline, failure=(failed.step, failed.cause))
    response, drawn = ends[0] - ends[1], ends[1][:, 2:].std(dim=1)
    total = torch.sqrt(response[:, 1] ** 2 + drawn**2)
    return Trajectory(
        timeline, signal=tuple(response[:, 0].tolist()), noise=tuple(total.tolist()), draws=tuple((drawn > 0).tolist())
    )


def _walk(solver: Solver, timeline: Timeline, picture: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    source = NoiseSource([0])
    fix_noise(solver, source)
    ends: list[torch.Tensor] = []
    x = picture
    for i, stage in enumerate(timeline):
        if i == 0 or timeline[i - 1].last_of_step:
            x = stage.signal * picture + stage.noise * noise
        perfect = convert(Prediction(picture, "x0"), solver.kind, x, stage)
        try:
            solver.scale_input(x, stage)  # some schedulers count on it
            x = solver.step(Guided(perfect), x, stage, source).x
        except Exception as error:  # whatever a class raises at these settings, it would in a run
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise _Failed(stage.step, cause) from error
        ends.append(x.flatten().double())
    return torch.stack(ends)


def fix_noise(solver: Solver, source: NoiseSource) -> None:
    solver.start(source)
    if isinstance(solver, DiffusersSolver) and hasattr(
        solver.scheduler, "noise_sampler_seed"
    ):  # two runs are compared, so they have the same tree
        solver.scheduler.noise_sampler_seed = 0


class _Failed(Exception):
    def __init__(self, step: int, cause: Exception):
        super().__init__(str(cause))
        self.step, self.cause = step, cause


class Case:
    """A scheduler as composed. Everything that takes time is worked out when a rule first asks for it.

    Raises:
        ConfigError: it cannot be built at all.
    """

    def __init__(
        self,
        scheduler: Any,
        options: Mapping[str, Any],
        base: Mapping[str, Any],
        steps: int,
        strength: float,
        *,
        parity: bool,
        latent: bool | None,
        notes: bool,
        sigmas: Any = None,
        schedule: Told | None = None,
    ):
        self._schedule = schedule
        self._scheduler, self._options = scheduler, dict(options)
        self.base, self.sigmas = dict(base), sigmas
        self.steps, self.strength, self.parity, self.notes = steps, strength, parity, notes
        self.factory = self._factory(parity=parity)
        self.name, self.cls, self.kind = self.factory.name, self.factory.cls, self.factory.kind
        self.parameters = set(inspect.signature(self.cls.__init__).parameters) - {"self"}
        # an object brings a config of its own, and the model's is not asked
        self.asked = dict(scheduler.config) if hasattr(scheduler, "config") else self.base
        self.of_model = (
            getattr(scheduler, "class_name", scheduler) == OF_MODEL
        )  # the model's own, and not another's name
        self.fresh = self.factory.scheduler
        self.latent = self.base.get("beta_schedule") == "scaled_linear" if latent is None else latent

    @property
    def flow(self) -> bool:
        return self.kind == "flow"

    @property
    def train_timesteps(self) -> int | None:
        found = self.config("num_train_timesteps")
        return found if isinstance(found, int) else None

    def config(self, key: str, default: Any = None) -> Any:
        """A setting as the class reads it; the default where it does not take it at all."""
        if key not in self.parameters:
            return default
        return getattr(self.fresh.config, key, default)

    @cached_property
    def given(self) -> dict[str, Any]:
        """The options that were asked for, less those that the short name stands for."""
        spec = self._scheduler
        if not isinstance(spec, str | SchedulerSpec):
            return self._options
        options = {**(spec.options if isinstance(spec, SchedulerSpec) else {}), **self._options}
        try:
            own = resolve(spec if isinstance(spec, str) else spec.name).options
        except ConfigError:
            own = {}
        return {key: value for key, value in options.items() if key not in own or own[key] != value}

    @cached_property
    def problem(self) -> ConfigError | None:
        """Why there is no timeline of these steps, if there is none."""
        try:
            _ = self.full
        except ConfigError as error:
            return error
        return None

    @cached_property
    def full(self) -> Timeline:
        """The timeline of all steps, whatever the strength."""
        return self.factory().timeline(self.steps)

    @cached_property
    def plan(self) -> tuple[StagePlan, ...]:
        """The evaluations and updates of a native solver over its part of the timeline; empty of any other."""
        solver = self.factory()
        if self.problem is not None or not isinstance(solver, NativeSolver):
            return ()
        solver.timeline(self.steps, strength=self.strength)
        return () if solver.table is None else solver.table.plan

    @cached_property
    def trajectory(self) -> Trajectory:
        """Where the steps lead when the run takes its part of the timeline."""
        return self._drive(self.factory, self.strength)

    @cached_property
    def full_trajectory(self) -> Trajectory:
        """The same, not sliced by strength."""
        return self.trajectory if self.strength >= 1.0 else self._drive(self.factory, 1.0)

    @cached_property
    def upstream(self) -> Trajectory:
        """Where they lead in a diffusers pipeline; the same where no pipeline has such a solver."""
        if self.parity:
            return self.trajectory
        try:
            return self._drive(self._factory(parity=True), self.strength)
        except ConfigError:
            return self.trajectory if self.problem is None else Trajectory(Timeline((), n_steps=self.steps))

    @cached_property
    def lowest_trained_sigma(self) -> float:
        """The noise level of the first training timestep; 0 where it is not known."""
        table = getattr(self.fresh, "alphas_cumprod", None)
        if table is None or not len(table):
            return 0.0
        return math.sqrt((1 - float(table[0])) / float(table[0]))

    def without(self, key: str) -> Case | None:
        """The same case less one option that was given; None if that cannot be built."""
        try:
            less = copy.copy(self)
            less._options = {k: v for k, v in self._options.items() if k != key}
            if isinstance(self._scheduler, SchedulerSpec):
                spec = self._scheduler
                kept = {k: v for k, v in spec.options.items() if k != key}
                less._scheduler = SchedulerSpec(spec.name, spec.class_name, kept)
            for cached in ("given", "problem", "full", "plan", "trajectory", "full_trajectory", "upstream"):
                less.__dict__.pop(cached, None)
            less.factory = less._factory(parity=self.parity)
            less.fresh = less.factory.scheduler
        except ConfigError:
            return None
        return less

    def behaviour(self) -> torch.Tensor | None:
        """Timesteps, levels and results of a run on made-up outputs: two cases that do the same have the same."""
        solver = self.factory()
        timeline = solver.timeline(self.steps, strength=self.strength)
        random = torch.Generator().manual_seed(1)
        x = solver.scale_noise(3 * torch.randn(SHAPE, generator=random))
        noise = NoiseSource([0])
        fix_noise(solver, noise)
        passed = []
        for stage in timeline:
            output = 3 * torch.randn(SHAPE, generator=random)
            seen = solver.scale_input(x, stage)
            x = solver.step(Guided(Prediction(output, solver.kind)), x, stage, noise).x
            passed += [torch.tensor([stage.time, stage.signal, stage.noise]), seen.flatten(), x.flatten()]
        return torch.cat(passed).nan_to_num() if passed else None

    def _factory(self, *, parity: bool) -> SolverFactory:
        return SolverFactory(
            self._scheduler,
            self._options,
            self.base,
            parity=parity,
            sigmas=self.sigmas,
            schedule=self._schedule,
            strict=False,
        )

    def _drive(self, factory: SolverFactory, strength: float) -> Trajectory:
        solver = factory()
        timeline = solver.timeline(self.steps, strength=strength)
        known = all(math.isfinite(stage.signal) and math.isfinite(stage.noise) for stage in timeline)
        # learned variances stand in further output channels, and preconditioned networks (EDM, consistency models) put
        # out mixtures that no prediction type names: what a perfect one would say is not known here
        special = str(self.config("variance_type")).startswith("learned") or "sigma_data" in self.parameters
        if not known or special or not 0 < len(timeline) <= MOST_STAGES:
            return Trajectory(timeline)
        return drive(solver, timeline)
