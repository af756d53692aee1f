"""Where the loop stops to ask the model: stages, the timeline they form, and its slicing by strength."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from research.strength import kept_steps

__all__ = ["Stage", "Timeline", "build_timeline", "kept_steps"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One model evaluation. A second-order step has two of them.

    The latents at this stage are ``x = signal * x0 + noise * epsilon``. With native solvers ``signal**2 + noise**2 = 1``, on flow
    models ``signal + noise = 1``; some classes of diffusers, driven with ``parity``, have ``signal = 1`` (Euler, Heun).
    """

    index: int  # place in the sliced timeline, from 0
    step: int  # the user's step it belongs to, from 0, counted in the full schedule
    n_steps: int  # the user's steps in the full schedule
    t: Tensor  # what the model is told, 0-d, on the model's device
    time: float  # the same as a number
    sigma: float  # noise level noise / signal; for models that predict flow the flow time, from 1 to 0
    sigma_next: float  # the level that the latents have after this evaluation; 0 after the last
    log_snr: float  # log(signal**2 / noise**2): the axis on which schedulers and step counts compare
    signal: float
    noise: float
    last_of_step: bool  # whether the user's step is complete after this evaluation


@dataclass(frozen=True, slots=True)
class Timeline:
    """The stages of one run, already sliced by strength. Iterating walks over them; indexing takes the stage of an index."""

    stages: tuple[Stage, ...]
    n_steps: int  # of the full schedule
    first_stage: int = 0  # how many stages of the full schedule the slice leaves out
    order: tuple[int, ...] | None = None  # indices of the stages in the order walked; each once unless said otherwise

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages) if self.order is None else (self.stages[i] for i in self.order)

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, index: int) -> Stage:
        return self.stages[index]

    @property
    def goes_back(self) -> bool:
        """Whether a stage is walked again."""
        return self.order is not None and len(self.order) > len(set(self.order))

    @property
    def steps_run(self) -> int:
        """The user's steps that are really taken, at most ``n_steps``."""
        return len({stage.step for stage in self})


def noise_level(signal: float, noise: float, kind: str | None = None) -> float:
    """The level of latents ``signal * x0 + noise * epsilon`` as `Stage.sigma` has it: ``noise / signal``, or for models that
    predict "flow" the flow time ``noise / (signal + noise)``, from 1 (noise alone) to 0."""
    return noise / (signal + noise) if kind == "flow" else noise / max(signal, 1e-12)


def log_snr_of(signal: float, noise: float) -> float:
    """``log(signal**2 / noise**2)``; levels without either are taken as 1e-12 of it."""
    return 2.0 * (math.log(max(signal, 1e-12)) - math.log(max(noise, 1e-12)))


def build_timeline(
    times: Tensor,
    step_of: Sequence[int],
    levels: Sequence[tuple[float, float]],
    *,
    n_steps: int,
    kept: int,
    first: int | None = None,
    kind: str | None = None,
) -> Timeline:
    """Put a timeline together from what a solver knows.

    Args:
        times: the full schedule, shape [L], what the model is told at each evaluation.
        step_of: the user's step of each evaluation, non-decreasing, length L.
        levels: ``(signal, noise)`` of the latents at each evaluation, length L.
        n_steps: user's steps of the full schedule.
        kept: how many of the last user's steps to keep; the slice starts on a step boundary.
        first: the evaluation to start at instead, wherever it falls (with parity, pipelines do not look for boundaries).
        kind: what the model predicts; with "flow" levels are told as flow times.
    """
    numbers = times.tolist()
    if first is None:
        first = next((i for i, step in enumerate(step_of) if step >= n_steps - kept), len(numbers))
    sigmas = [noise_level(signal, noise, kind) for signal, noise in levels]
    stages = []
    for i in range(first, len(numbers)):
        signal, noise = levels[i]
        stages.append(
            Stage(
                index=i - first,
                step=step_of[i],
                n_steps=n_steps,
                t=times[i],
                time=float(numbers[i]),
                sigma=sigmas[i],
                sigma_next=sigmas[i + 1] if i + 1 < len(sigmas) else 0.0,
                log_snr=log_snr_of(signal, noise),
                signal=signal,
                noise=noise,
                last_of_step=i + 1 == len(numbers) or step_of[i + 1] != step_of[i],
            )
        )
    return Timeline(tuple(stages), n_steps=n_steps, first_stage=first)
