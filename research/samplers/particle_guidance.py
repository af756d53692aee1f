"""Particle guidance: images of a prompt that keep away from one another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from research.checks import check_choice, check_number, check_whole_number
from research.errors import ConfigError
from research.guidance.gradients import moved
from research.samplers.search import Group, Search
from research.sampling import Guidance, Hook, LoopSampler, SampleResult, Solver, StepState, Task
from research.sampling.result import Progress

OF = ("latents", "x0")


class ParticleGuidance(Search):
    """Particle guidance (Corso et al., arXiv:2310.13102): the images of a prompt are drawn together, from
    the product of their densities times ``exp(-scale / 2 * sum_{i != j} k(x_i, x_j))``, so that they differ.

    The kernel is ``k(x, y) = exp(-|x - y|^2 / h)`` with ``h = m^2 / log n``, m the median distance of the n images (after
    arXiv:1608.04471). In the noise prediction of an image it is the term ``b * scale * grad_i sum_j k(x_i, x_j)``.

    Images go together in groups of ``particles`` that share a prompt, as they stand in the job: an image depends on the seeds of
    its group, whatever the batch, and on no other. There is no score, and an image costs what it costs the loop.

    Args:
        sampler: see `Search`.
        particles: images of a group at most, from 2; the last group of a prompt may have fewer, and one by itself is the loop's.
        scale: alpha, from 0, which is no guidance.
        of: whether the "latents" of a stage keep apart (the paper), or the clean estimates "x0".
        score: none.

    Raises:
        ConfigError: a setting is out of range, a score is given; or, when it runs, a batch is smaller than a group.
    """

    needs_score = False

    def __init__(
        self,
        sampler: LoopSampler | None = None,
        particles: int = 4,
        scale: float = 10.0,
        of: str = "latents",
        score: Any = None,
    ):
        if score is not None:
            raise ConfigError("sampler.score: found one; particle_guidance has none, accepted is null.")
        super().__init__(sampler)
        self.particles = check_whole_number("sampler.particles", particles, least=2)
        self.scale = check_number("sampler.scale", scale, least=0)
        self.of = check_choice("sampler.of", of, OF)

    @property
    def candidates(self) -> int:
        return 1

    @property
    def images_together(self) -> int:
        return self.particles

    def steps_of(self, steps: int) -> int:
        return steps

    def check_loop(self, solver: Solver, guidance: Guidance, hooks: Sequence[Hook]) -> None:
        if "noise-levels" not in solver.supports:
            raise ConfigError(
                f"sampler: particle_guidance needs noise levels, and those of {solver.name} are not known."
            )

    def batches(
        self,
        task: Task,
        *,
        seeds: Sequence[int] | int | None = None,
        steps: int,
        batch_size: int | None = None,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
        first: int = 0,
    ) -> Iterator[SampleResult]:
        """See `LoopSampler.batches`; each is of a group, less what is not asked for of it."""
        known, steps, asked = self.loop.asked(task, seeds, steps, rows)
        self.check(self.model, task, self.loop.new_solver(), self.loop.guidance, self.loop.hooks)
        if batch_size is not None and batch_size < min(self.particles, len(known)):
            raise ConfigError(
                f"batch_size: found {batch_size}; particle_guidance moves the {self.particles} images of a group together, "
                "accepted is as many or more, or fewer sampler.particles."
            )
        loop = self.loop.with_plugs(self.loop.guidance, [*self.loop.hooks, _KeepApart(self.scale, self.of)])
        groups = _groups(task.prompts, len(known), self.particles)
        place = first
        while place < len(asked):
            mine = groups[asked[place]]
            end = place + 1
            while end < len(asked) and asked[end] in mine and asked[end] not in asked[place:end]:
                end += 1
            places = tuple(range(place, end))
            group = Group(
                loop, None, task, known, steps, tuple(mine), places, len(mine), self.steps_of(steps), progress
            )
            chunk = list(enumerate(group.seeds))
            with torch.no_grad(), group.trajectory(chunk) as way:
                made = group.finished(chunk, way)
            wanted = [mine.index(row) for row in asked[place:end]]
            yield group.of_loop(made, wanted)
            place = end


def _groups(prompts: Any, count: int, size: int) -> list[list[int]]:
    """Of each image those that it goes together with, itself among them: neighbours of one prompt, so many at most."""
    said = [prompts if isinstance(prompts, str) or not prompts else prompts[row] for row in range(count)]
    groups: list[list[int]] = []
    for row in range(count):
        if groups and len(groups[-1]) < size and said[groups[-1][0]] == said[row]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [group for group in groups for _ in group]


class _KeepApart(Hook):
    """Adds the gradient of the kernels to the guided prediction."""

    order = 1000

    def __init__(self, scale: float, of: str):
        self.scale, self.of = scale, of

    def post_guidance(self, state: StepState) -> None:
        stage, x = state.stage, state.x_before
        if not self.scale or len(x) < 2 or not stage.noise > 0 or not stage.signal > 0:
            return
        push = repulsion(state.x0 if self.of == "x0" else x).to(x.dtype)  # - grad of the sum of kernels
        shift = -self.scale * stage.noise**2 / stage.signal * push
        prediction = moved(state.guided.prediction, shift, stage)
        renoise = state.guided.renoise and moved(state.guided.renoise, shift, stage)
        state.guided = replace(state.guided, prediction=prediction, renoise=renoise)


def repulsion(x: Tensor) -> Tensor:
    """``-grad_i sum_{j != i} k(x_i, x_j)``, shape of ``x`` [N, ...], N at least 2: the way from the others."""
    flat = x.detach().float().flatten(1)
    apart = flat[:, None] - flat[None]
    squares = apart.square().sum(-1)
    pairs = squares[~torch.eye(len(flat), dtype=torch.bool, device=flat.device)]
    width = pairs.sqrt().median() ** 2 / math.log(len(flat))
    if not float(width) > 0:
        return torch.zeros_like(x)
    kernels = torch.exp(-squares / width)
    return (2 / width * (kernels[..., None] * apart).sum(1)).reshape(x.shape)
