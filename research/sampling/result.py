"""What a sampler is, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from research.errors import UserError
from research.sampling.interfaces import Run, Task
from research.showing import card, grid, pictures, show

Progress = Callable[[int, int, dict[str, Any]], None]


@dataclass(eq=False, repr=False)
class SampleResult:
    """Images and what they cost.

    Attributes:
        images: PIL images, one a seed.
        latents: float tensor [N, C, h, w] on the CPU, before decoding (for pixel models the pixels in about [-1, 1]).
        seeds: one an image.
        prompts: one an image, or empty.
        nfe: model evaluations an image, counted as they were made.
        nfe_by_branch: the same by branch of the guidance.
        score_evaluations: of a sampler that searches, how often an image was scored; model evaluations of all it tried are in
            ``nfe``.
        decoder_calls: how often latents were decoded, an image.
        gradient_evaluations: of the model evaluations those that were differentiated, which costs about twice as much again.
        timings: seconds, summed over batches: encode, denoise, decode.
        scores: numbers that the task measured, by name, one an image (the error of an inversion).
        pictures: further pictures of all images together, by name: a PIL image, or a list of them for an animation.
        trace: "stages" has one entry a model evaluation of the first batch (step, t, sigma, log_snr, seconds); recorders
            add their own keys, what they kept of further batches stands in "batches". "tensors" is of all images, by name.
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
    scores: dict[str, list[float]] = field(default_factory=dict)
    pictures: dict[str, Any] = field(default_factory=dict)
    trace: dict[str, Any] = field(default_factory=dict)
    score_evaluations: int = 0
    decoder_calls: int = 1
    gradient_evaluations: int = 0
    warnings: list[str] = field(default_factory=list)
    truncated: list[dict[str, str]] = field(default_factory=list)

    @property
    def points(self) -> Tensor:
        """The latents as a row an image: [N, d] of a model of points, whose latents are [N, d, 1, 1]."""
        return self.latents.flatten(1)

    def grid(self, columns: int | None = None, side: int | None = None) -> Any:
        """All images as one PIL image, row by row.

        Args:
            columns: how many beside each other; by default as many as make it about square.
            side: pixels of the longer side of each; by default a whole multiple of their own that is 128 at least.

        Raises:
            UserError: there are no images.
        """
        if not self.images:
            raise UserError("grid: found no images; accepted is a result with one or more.")
        return grid(self.images, columns, side)

    def show(self, columns: int | None = None) -> None:
        """Show the images: below the cell of a notebook, elsewhere in the system's viewer of pictures."""
        whole = self.grid(columns)
        show(self if columns is None else whole, whole)

    @property
    def seconds(self) -> float:
        """Of encoding, denoising and decoding."""
        return sum(self.timings.get(phase, 0.0) for phase in ("encode", "denoise", "decode"))

    def __repr__(self) -> str:
        sizes = sorted({image.size for image in self.images if hasattr(image, "size")})
        of = ", ".join(f"{width} x {height}" for width, height in sizes)
        seeds = _ranges(self.seeds)
        return (
            f"SampleResult({len(self.images)} image{'s' * (len(self.images) != 1)}{f' of {of}' if of else ''}, "
            f"seed{'s' * (len(self.seeds) != 1)} {seeds}, {self.nfe} NFE an image, {self.seconds:.2f} s)"
        )

    def _repr_html_(self) -> str:
        words = [*self.prompts, *[""] * len(self.images)]
        captions = [": ".join(filter(None, (str(seed), words[k]))) for k, seed in enumerate(self.seeds)]
        further = [one for one in self.pictures.values() if hasattr(one, "size")]
        facts = {
            "NFE an image": f"{self.nfe} ({', '.join(f'{name} {count}' for name, count in self.nfe_by_branch.items())})",
            "seconds": ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in self.timings.items()),
            **{name: ", ".join(f"{score:.4g}" for score in scores[:8]) for name, scores in self.scores.items()},
            "warnings": "; ".join(self.warnings),
        }
        seen = pictures(further, list(self.pictures), side=320) if further else ""
        return pictures(self.images, captions) + seen + card("", facts)


@runtime_checkable
class Sampler(Protocol):
    """Anything that turns a task and seeds into images."""

    def sample(self, task: Task, *, seeds: Sequence[int], steps: int) -> SampleResult: ...


class BatchSampler(Sampler, Protocol):
    """A sampler that jobs run: batch by batch, so that they can be interrupted.

    Attributes:
        candidates: of an image that go through the network together.
        images_together: images that must share a batch.
        loop: what makes candidates.
    """

    @property
    def model(self) -> Any: ...
    @property
    def candidates(self) -> int: ...
    @property
    def images_together(self) -> int: ...
    @property
    def loop(self) -> Any: ...

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
    ) -> Iterator[SampleResult]: ...

    def pictures(self, task: Task, images: Sequence[Any]) -> dict[str, Any]: ...


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in few words: 0-3, 7."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    said = [f"{first}-{last}" if last > first else str(first) for first, last in found]
    return ", ".join([*said[:6], *["..."] * (len(said) > 6)])


def result_of(run: Run, images: list[Any]) -> SampleResult:
    """What one batch of the loop gave."""
    prompts = run.task.prompts
    mine = [prompts] * len(run.rows) if isinstance(prompts, str) else [(prompts or [])[r] for r in run.rows if prompts]
    return SampleResult(
        images=images,
        latents=run.x.detach().float().cpu(),
        seeds=list(run.seeds),
        prompts=mine,
        nfe=sum(run.nfe.values()),
        nfe_by_branch=dict(run.nfe),
        timings=run.timings,
        scores=run.scores,
        trace=run.trace,
        warnings=run.warnings,
        truncated=run.truncated,
    )


def gather(parts: Sequence[SampleResult]) -> SampleResult:
    """One result of the batches', in their order."""
    by_branch: dict[str, int] = {}
    timings: dict[str, float] = {}
    scores: dict[str, list[float]] = {}
    for part in parts:
        # the largest, should a guidance decide by what it sees and so differ from batch to batch
        by_branch = {
            k: max(part.nfe_by_branch.get(k, 0), by_branch.get(k, 0)) for k in {**by_branch, **part.nfe_by_branch}
        }
        timings = {k: part.timings.get(k, 0.0) + timings.get(k, 0.0) for k in {**timings, **part.timings}}
        scores = {k: [*scores.get(k, []), *part.scores.get(k, [])] for k in {**scores, **part.scores}}
    return SampleResult(
        images=[image for part in parts for image in part.images],
        latents=torch.cat([part.latents for part in parts]),
        seeds=[seed for part in parts for seed in part.seeds],
        prompts=[prompt for part in parts for prompt in part.prompts],
        nfe=sum(by_branch.values()),
        nfe_by_branch=by_branch,
        timings=timings,
        scores=scores,
        trace=_traces([part.trace for part in parts]),
        warnings=list(dict.fromkeys(message for part in parts for message in part.warnings)),
        truncated=[entry for part in parts for entry in part.truncated],
        score_evaluations=max(part.score_evaluations for part in parts),
        decoder_calls=max(part.decoder_calls for part in parts),
        gradient_evaluations=max(part.gradient_evaluations for part in parts),
    )


def _traces(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first batch's trace, with what recorders kept of the others, and with tensors [N, ...] of the images of all."""
    whole = dict(traces[0])
    if tensors := [trace["tensors"] for trace in traces if "tensors" in trace]:
        whole["tensors"] = {name: torch.cat([kept[name] for kept in tensors]) for name in tensors[0]}
    for trace in traces[1:]:
        if extras := {key: value for key, value in trace.items() if key not in ("stages", "tensors")}:
            whole.setdefault("batches", []).append(extras)
    return whole
