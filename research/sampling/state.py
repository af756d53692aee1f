"""What one run of the loop knows (Run) and what one stage of it changes (StepState)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from research.sampling.noise import NoiseSource
from research.sampling.prediction import to_epsilon, to_x0
from research.sampling.timeline import Stage, Timeline

if TYPE_CHECKING:
    from research.sampling.hooks import HookSet
    from research.sampling.interfaces import Branch, Condition, Denoiser, Guidance, Guided, Model, Solver, Task
    from research.sampling.prediction import Prediction


@dataclass(eq=False)
class Run:
    """One batch on its way through the loop: read by guidance, hooks and tasks, who may use ``x``, ``trace`` and ``warn``."""

    model: Model
    solver: Solver
    guidance: Guidance
    task: Task
    seeds: tuple[int, ...]
    rows: tuple[int, ...]  # where the batch's images stand among all images asked for
    n_images: int  # all images asked for
    noise: NoiseSource
    timeline: Timeline
    parity: bool = False
    # where the batch's rows stand among those asked for; not as `rows` where an image is made several times
    places: tuple[int, ...] = ()
    conditions: Mapping[str, Condition] = field(default_factory=dict)  # made when first asked for
    models: dict[str, Model] = field(default_factory=dict)  # by the names that branches use; "main" is the model
    denoiser: Denoiser = None  # type: ignore[assignment]  # set before the first stage
    hooks: HookSet = None  # type: ignore[assignment]  # set before the first stage
    cleanup: ExitStack = field(default_factory=ExitStack)  # closed when the run ends, however it ends
    x: Tensor = None  # type: ignore[assignment]  # set before the first stage
    start_noise: Tensor | None = None  # standard normal [N, C, h, w], what the start latents were made of
    kept: dict[str, Any] = field(default_factory=dict)  # by the task, from its start to its finish
    nfe: Counter[str] = field(default_factory=Counter)  # model evaluations an image, by branch
    timings: dict[str, float] = field(default_factory=dict)  # seconds
    trace: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)  # by name: a number an image
    warnings: list[str] = field(default_factory=list)
    truncated: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.models.setdefault("main", self.model)
        self.places = self.places or self.rows

    def warn(self, message: str) -> None:
        """Note something the user should know; it is kept once and goes to the result."""
        if message not in self.warnings:
            self.warnings.append(message)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall-clock seconds of a block to ``timings[name]``, with the GPU's queue emptied at both ends."""
        self._synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


class StepState:
    """One stage: what guidance and hooks see of it. Assign ``x``, ``conditions`` or ``guided`` to replace them."""

    __slots__ = ("branches", "conditions", "guided", "predictions", "run", "stage", "x", "x_before")

    def __init__(self, run: Run, stage: Stage, x: Tensor):
        self.run = run
        self.stage = stage
        self.x = x  # the latents: before the step until the solver has run, after it from then on
        self.x_before = x  # the latents that the predictions belong to
        self.conditions: Mapping[str, Condition] = run.conditions  # a hook may replace them for this stage
        self.branches: Sequence[Branch] = ()
        self.predictions: Mapping[str, Prediction] = {}
        self.guided: Guided = None  # type: ignore[assignment]

    def predict(self, branches: Sequence[Branch], x: Tensor | None = None) -> dict[str, Prediction]:
        """Evaluate branches at this stage and count them.

        Args:
            branches: each of its own name.
            x: other latents than the stage's, [N, C, h, w] in the scheduler's scaling.

        The loop calls it with what guidance asks for; a guidance that needs one prediction to ask for another calls it itself.
        """
        run = self.run
        latents = run.solver.scale_input(self.x_before if x is None else x, self.stage)
        predictions = run.denoiser.predict(run.hooks.pre_model(self, latents), self.stage, branches)
        for branch in predictions:
            run.nfe[branch] += 1
        return predictions

    @property
    def x0(self) -> Tensor:
        """The clean latents that the guided prediction implies, [N, C, h, w]."""
        return to_x0(self.guided.prediction, self.x_before, self.stage)

    @property
    def epsilon(self) -> Tensor:
        """The noise that the guided prediction implies, [N, C, h, w]."""
        return to_epsilon(self.guided.prediction, self.x_before, self.stage)
