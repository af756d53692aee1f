"""What a sampler is, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from research.sampling.plugs import Task
from research.sampling.run import Run

Progress = Callable[[int, int, dict[str, Any]], None]


@dataclass(eq=False)
class SampleResult:
    """Images and what they cost.

    Attributes:
        images: PIL images, one a seed.
        latents: float tensor [N, C, h, w] on the CPU, before decoding (for pixel models the pixels in about [-1, 1]).
        seeds: one an image.
        prompts: one an image, or empty.
        nfe: model evaluations an image, counted as they were made.
        nfe_by_branch: the same by branch of the guidance.
        timings: seconds, summed over batches: encode, denoise, decode.
        trace: "stages" has one entry a model evaluation of the first batch (step, t, sigma, log_snr, seconds); recorders
            add their own keys.
        warnings: what the user should know.
        truncated: prompts longer than the text encoder takes, and what was dropped.
    """

    images: list[Any]
    latents: Tensor
    seeds: list[int]
    prompts: list[str]
    nfe: int
    nfe_by_branch: dict[str, int]
    timings: dict[str, float]
    trace: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    truncated: list[dict[str, str]] = field(default_factory=list)


@runtime_checkable
class Sampler(Protocol):
    """Anything that turns a task and seeds into images."""

    def sample(self, task: Task, *, seeds: Sequence[int], steps: int) -> SampleResult: ...


def gather(runs: Sequence[Run], images: Sequence[list[Any]], task: Task) -> SampleResult:
    """One result of the batches' runs, in the order of their images."""
    seeds = [seed for run in runs for seed in run.seeds]
    prompts = task.prompts
    by_branch: dict[str, int] = {}
    timings: dict[str, float] = {}
    for run in runs:
        # the largest, should a guidance decide by what it sees and so differ from batch to batch
        by_branch = {k: max(run.nfe.get(k, 0), by_branch.get(k, 0)) for k in {**by_branch, **run.nfe}}
        timings = {k: run.timings.get(k, 0.0) + timings.get(k, 0.0) for k in {**timings, **run.timings}}
    return SampleResult(
        images=[image for batch in images for image in batch],
        latents=torch.cat([run.x.detach().float().cpu() for run in runs]),
        seeds=seeds,
        prompts=[]
        if prompts is None
        else [prompts] * len(seeds)
        if isinstance(prompts, str)
        else list(prompts),
        nfe=sum(by_branch.values()),
        nfe_by_branch=by_branch,
        timings=timings,
        trace=runs[0].trace,
        warnings=list(dict.fromkeys(message for run in runs for message in run.warnings)),
        truncated=[entry for run in runs for entry in run.truncated],
    )
