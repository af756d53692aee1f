"""What the rules of the linter look at: one scheduler with its settings, its timeline, and where its steps really go."""

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
from research.sampling.interfaces import Guided
from research.sampling.noise import NoiseSource
from research.sampling.prediction import Prediction
from research.sampling.timeline import Timeline
from research.schedule.drive import SHAPE, Road, drive, fix_noise
from research.solvers.build import SolverFactory
from research.solvers.names import SchedulerSpec, resolve

MOST_STAGES = 300  # driven; more take longer than anybody waits for a warning


Level = Literal["note", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One doubt: how grave, by which rule, and a line that says the key, what was found, and what to do."""

    level: Level
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.level} [{self.rule}] {self.message}"


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
    ):
        self._scheduler, self._options = scheduler, dict(options)
        self.base = dict(base)
        self.steps, self.strength, self.parity, self.notes = steps, strength, parity, notes
        self.factory = self._factory(parity=parity)
        self.name, self.cls, self.kind = self.factory.name, self.factory.cls, self.factory.kind
        self.parameters = set(inspect.signature(self.cls.__init__).parameters) - {"self"}
        # an object brings a config of its own, and the model's is not asked
        self.asked = dict(scheduler.config) if hasattr(scheduler, "config") else self.base
        self.fresh = self.factory().scheduler
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
    def road(self) -> Road:
        """Where the steps lead on the road that will be taken."""
        return self._drive(self.factory, self.strength)

    @cached_property
    def whole_road(self) -> Road:
        """The same, not sliced by strength."""
        return self.road if self.strength >= 1.0 else self._drive(self.factory, 1.0)

    @cached_property
    def upstream(self) -> Road:
        """Where they lead in a diffusers pipeline."""
        return self.road if self.parity else self._drive(self._factory(parity=True), self.strength)

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
            for cached in ("given", "problem", "full", "road", "whole_road", "upstream"):
                less.__dict__.pop(cached, None)
            less.factory = less._factory(parity=self.parity)
            less.fresh = less.factory().scheduler
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
        return SolverFactory(self._scheduler, self._options, self.base, parity=parity)

    def _drive(self, factory: SolverFactory, strength: float) -> Road:
        solver = factory()
        timeline = solver.timeline(self.steps, strength=strength)
        known = all(math.isfinite(stage.signal) and math.isfinite(stage.noise) for stage in timeline)
        # learned variances stand in further output channels, and preconditioned networks (EDM, consistency models) put
        # out mixtures that no prediction type names: what a perfect one would say is not known here
        special = str(self.config("variance_type")).startswith("learned") or "sigma_data" in self.parameters
        if not known or special or not 0 < len(timeline) <= MOST_STAGES:
            return Road(timeline)
        return drive(solver, timeline)
