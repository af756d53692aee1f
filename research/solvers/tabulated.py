"""A scheduler's updates as a table of numbers: the fast road when bit-parity with diffusers is not asked for.

Nearly every scheduler's step is linear: with model outputs ``m`` and latents ``x``,

    x[i+1] = sum_j (p[i, j] * m[j] + q[i, j] * x[j]) + r[i] * noise,   j <= i, j near i

and all coefficients are known once the timesteps are. Diffusers computes them anew at each step out of 0-d tensors,
which costs more than the update itself and, on a GPU, waits for the device. Here they are read off the scheduler once,
by driving it with unit impulses, and kept as Python floats. Whether the table reproduces the scheduler is then checked
on random inputs; where it does not (clipping, thresholding, noise that no generator controls) the scheduler's own
``step`` is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from research.sampling.interfaces import Guided, StepOutput
from research.sampling.noise import STEP, NoiseSource
from research.sampling.timeline import Stage, Timeline
from research.solvers.diffusers_solver import DiffusersSolver, full_precision, step_from
from research.solvers.probing import cpu_copy, settings_key

_NEGLIGIBLE = 1e-10  # relative to the largest coefficient of an update; tables are read off in fp32 or better
_MOST_TERMS = 48  # UniPC's corrector remembers all there was: past this its own step is cheaper
_MOST_STAGES = 256  # reading off takes time that grows with the square
_MOST_KNOWN = 256
_TOLERANCE = 1e-4  # of the check on random inputs, relative


@dataclass(frozen=True, slots=True)
class Update:
    """One step: coefficients of outputs and latents by how many stages back they are, and of fresh noise."""

    outputs: tuple[tuple[int, float], ...]
    latents: tuple[tuple[int, float], ...]
    noise: float
    draws: bool  # whether the scheduler draws noise here, even if it comes to nothing
    input_scale: float


@dataclass(frozen=True, slots=True)
class Table:
    updates: tuple[Update, ...]
    depth: int  # stages that have to be remembered
    # of each update, what its first latents are multiplied by, as tensors: a third of the time of a product with a number
    factors: dict[torch.dtype, list[Tensor]] = field(default_factory=dict, compare=False)

    def factor(self, place: int, dtype: torch.dtype) -> Tensor:
        """Of the update's first term of latents, 0-d on the CPU, which no device waits for."""
        if dtype not in self.factors:
            first = [update.latents[0][1] if update.latents else 0.0 for update in self.updates]
            self.factors[dtype] = list(torch.tensor(first, dtype=dtype).unbind())
        return self.factors[dtype][place]


_KNOWN: dict[
    tuple[type, str], tuple[Timeline, Table | None, Any, tuple[float, float]]
] = {}  # of earlier runs with the same settings


class TabulatedSolver(DiffusersSolver):
    """A `DiffusersSolver` whose steps come from a table wherever one reproduces them."""

    table: Table | None = None

    def timeline(
        self, steps: int, *, strength: float = 1.0, device: torch.device | str = "cpu", by_strength: bool = False
    ) -> Timeline:
        self._outputs: list[Tensor] = []
        self._latents: list[Tensor] = []
        key = settings_key(self._given, self._kwargs, steps, strength, device)
        if key not in _KNOWN:
            timeline = super().timeline(steps, strength=strength, device=device)
            self.table = read_off(self.scheduler, self._told(timeline), self._takes_generator, self._kwargs)
            if len(_KNOWN) >= _MOST_KNOWN:
                _KNOWN.clear()
            # the scale of the start noise depends on the timesteps too (Euler's on their spacing)
            self._start_scale = getattr(self.scheduler, "init_noise_sigma", 1.0)
            _KNOWN[key] = timeline, self.table, self._start_scale, self.end_level
            return timeline
        timeline, self.table, self._start_scale, self.end_level = _KNOWN[key]
        if self.table is None:  # with a table at hand the scheduler object is not needed at all
            return super().timeline(steps, strength=strength, device=device)
        return timeline

    def _told(self, timeline: Timeline) -> list[Any]:
        """What the scheduler's ``step`` is given at each stage."""
        return [s.t.cpu() for s in timeline] if self._arguments is None else list(self._arguments)

    def scale_noise(self, noise: Tensor) -> Tensor:
        return noise * self._start_scale

    def scale_input(self, x: Tensor, stage: Stage) -> Tensor:
        if self.table is None:
            return super().scale_input(x, stage)
        scale = self.table.updates[stage.index].input_scale
        return x if scale == 1.0 else x * scale

    def step(self, guided: Guided, x: Tensor, stage: Stage, noise: NoiseSource) -> StepOutput:
        if self.table is None:
            return super().step(guided, x, stage, noise)
        prediction, x = step_from(guided, self.kind, x, stage)
        update = self.table.updates[stage.index]
        # newest first; summed in fp32 whatever the dtype, as half-precision sums of large terms lose the small ones
        outputs, latents = [prediction.value, *self._outputs], [x, *self._latents]
        first = full_precision(latents[update.latents[0][0]] if update.latents else x)
        new = first * self.table.factor(stage.index, first.dtype)
        for back, factor in update.latents[1:]:
            new.add_(latents[back], alpha=factor)
        for back, factor in update.outputs:
            new.add_(outputs[back], alpha=factor)
        if update.draws:
            drawn = noise.draw(STEP, x.shape[1:], x.dtype)
            if update.noise:
                new.add_(drawn, alpha=update.noise)
        self._outputs, self._latents = outputs[: self.table.depth], latents[: self.table.depth]
        return StepOutput(new if new.dtype == x.dtype else new.to(x.dtype))


def read_off(scheduler: Any, times: Sequence[Any], takes_generator: bool, kwargs: Mapping[str, Any]) -> Table | None:
    """The table of a scheduler whose timesteps are set, or None where none reproduces it.

    Args:
        times: what its ``step`` is given at each stage.
    """
    # Brownian trees are no stream of numbers
    if len(times) > _MOST_STAGES or hasattr(scheduler, "noise_sampler_seed"):
        return None
    try:
        # a scheduler that takes no generator may draw from the global one, which is the user's
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            return _read_off(scheduler, times, takes_generator, kwargs)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, ZeroDivisionError):
        return None  # a step that cannot be driven with impulses (learned variance, say) is taken as it is


def _read_off(scheduler: Any, times: Sequence[Any], takes_generator: bool, kwargs: Mapping[str, Any]) -> Table | None:
    length = len(times)

    def drive(outputs: Tensor, latents: Tensor) -> _Driven:
        return _drive(scheduler, times, outputs, latents, takes_generator, kwargs)

    width = 2 * length
    eye = torch.eye(width, dtype=torch.float64)
    nothing = torch.zeros_like(eye)
    impulses = drive(eye[:length], eye[length:])
    # row i of `response` holds p[i, :] and q[i, :]; the noise of both drives is the same and drops out
    response = impulses.results - drive(nothing[:length], nothing[length:]).results
    if not torch.isfinite(response).all():
        return None
    # noise in fp32, which all schedulers draw alike
    silent = drive(nothing[:length].float(), nothing[length:].float())
    noise = [
        0.0 if n is None else float((s * n).sum() / (n * n).sum())
        for s, n in zip(silent.results, silent.noise, strict=True)
    ]
    random = torch.Generator().manual_seed(1)
    for size in (3.0, 3e4):  # as large as latents are, and so large that clipping shows whatever its range
        outputs, latents = (size * torch.randn(length, width, generator=random) for _ in range(2))
        truth = drive(outputs, latents)
        predicted = response[:, :length] @ outputs.double() + response[:, length:] @ latents.double()
        for i, n in enumerate(truth.noise):
            predicted[i] += 0.0 if n is None else noise[i] * n
        scale = truth.results.abs().amax(dim=1, keepdim=True).clamp_min(1e-6)
        if not ((predicted - truth.results).abs() / scale).max() <= _TOLERANCE:
            return None

    updates = tuple(
        Update(
            outputs=_terms(response[i, :length], i),
            latents=_terms(response[i, length:], i),
            noise=noise[i],
            draws=silent.noise[i] is not None,
            input_scale=impulses.input_sums[i],  # of an impulse, whose own sum is 1
        )
        for i in range(length)
    )
    if max(len(u.outputs) + len(u.latents) for u in updates) > _MOST_TERMS:
        return None
    return Table(updates, depth=max(back for u in updates for back, _ in (*u.outputs, *u.latents)))


def _terms(row: Tensor, i: int) -> tuple[tuple[int, float], ...]:
    """Non-zero coefficients as (stages back, factor), the newest first."""
    floor = _NEGLIGIBLE * max(1.0, float(row.abs().max()))
    return tuple((i - j, float(row[j])) for j in range(i, -1, -1) if abs(float(row[j])) > floor)


@dataclass(frozen=True, slots=True)
class _Driven:
    """What a scheduler did with given outputs and latents."""

    results: Tensor  # of each step [L, width]
    noise: list[Tensor | None]  # that it drew, if it drew
    input_sums: list[float]  # of what the model would have seen


def _drive(
    scheduler: Any,
    times: Sequence[Any],
    outputs: Tensor,
    latents: Tensor,
    takes_generator: bool,
    kwargs: Mapping[str, Any],
) -> _Driven:
    """Drive a copy of a scheduler through its steps with outputs and latents [L, width] that are given and not computed."""
    probe = cpu_copy(scheduler)
    generator, twin = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    arguments = {**kwargs, **({"generator": generator} if takes_generator else {})}
    results: list[Tensor] = []
    noise: list[Tensor | None] = []
    input_sums: list[float] = []
    for t, output, x in zip(times, outputs, latents, strict=True):
        shape = (1, x.numel(), 1, 1)
        before = generator.get_state()
        x = x.reshape(shape)
        seen = probe.scale_model_input(x, t) if hasattr(probe, "scale_model_input") else x
        input_sums.append(float(seen.sum()))
        results.append(probe.step(output.reshape(shape), t, x, **arguments)[0].reshape(-1).double())
        moved = not torch.equal(before, generator.get_state())
        drawn = torch.randn(shape, generator=twin, dtype=x.dtype).reshape(-1).double() if moved else None
        noise.append(drawn)
    return _Driven(torch.stack(results), noise, input_sums)
