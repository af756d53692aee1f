"""Autoguidance: a model guided by a weaker version of itself."""

from __future__ import annotations

import os
from dataclasses import replace

from research.checks import check_number
from research.errors import ConfigError
from research.guidance.perturbed import Perturbed, free_name
from research.sampling.interfaces import Batch, Branch, Guidance, ModelFacts, Solver, StepState


class Autoguidance(Perturbed):
    """Autoguidance (Karras et al., arXiv:2406.02507, eq. 2 with D0 the weak model): ``weak + scale * (good - weak)``.

    Both predict for the same prompt; what they differ in is where the weak one errs more, and the model too. With a base its
    result gets the same push: ``g + (scale - 1) * (good - weak)``. The weak model is another checkpoint that agrees in latents,
    conditions and noise schedule (trained for a shorter time, or smaller), or this one with noise on its weights.

    Args:
        scale: 1 is the base alone and costs nothing, larger numbers push away from the weak model, 0 is the weak model alone.
        model: the weak model: a zoo name, a directory or a hub id; by default the model itself, with noise.
        noise: standard deviation of the Gaussian noise on each weight tensor, relative to that tensor's; from 0, and above it if
            there is no ``model``, where it is 0.2 by default. Always the same noise.
        base: for example ``CFG(3)``; by default none, which costs two evaluations a stage.

    Raises:
        ConfigError: scale or noise is no number from 0; on `check`, that the weak model is not there or does not fit.
    """

    neutral = 1.0
    branch = "weak"

    def __init__(
        self,
        scale: float = 2.0,
        model: str | os.PathLike[str] | None = None,
        noise: float | None = None,
        base: Guidance | None = None,
    ):
        super().__init__(scale, base)
        if model is not None and not (isinstance(model, str | os.PathLike) and os.fspath(model)):
            raise ConfigError(
                f"guidance.model: found {model!r}; accepted is null, a zoo name, a directory or a hub id."
            )
        self.model = None if model is None else os.fspath(model)
        usual = 0.2 if model is None else 0.0
        self.noise = usual if noise is None else check_number("guidance.noise", noise)
        if self.noise < 0 or (model is None and self.noise == 0):
            accepted = "a number above 0, as there is no guidance.model" if model is None else "a number from 0"
            raise ConfigError(f"guidance.noise: found {noise!r}; accepted is {accepted}.")

    def check(self, model: ModelFacts, solver: Solver) -> None:
        super().check(model, solver)
        model.check_second(self.model)

    def start(self, run: Batch) -> None:
        super().start(run)
        self._weak = free_name(self.branch, run.models)
        if run.scale_of(self) != self.neutral:
            weak = run.model.second(self.model, self.noise)
            run.models[self._weak] = weak
            told = {"name": weak.name, "weights_sha256": weak.weights_sha256, "noise": self.noise}
            run.trace.setdefault("models", {})[self._weak] = told

    def vectorises(self) -> bool:
        return self.pushes_each_alone()

    def perturb(self, state: StepState, plain: Branch) -> Branch:
        return replace(plain, model=self._weak, patches=())
