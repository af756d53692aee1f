"""Batches that are run again for their time alone: seconds want several runs, and the latency of one image a batch of one.

Each is run once more than it is counted, so that what is done once (compiling, choosing kernels, filling caches) counts nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from research.jobs import environment
from research.jobs.record import TimedAgain, TimedBatch

if TYPE_CHECKING:
    from research.sampling.interfaces import Task
    from research.sampling.result import BatchSampler


def time_again(
    sampler: BatchSampler,
    task: Task,
    *,
    seeds: Sequence[int],
    steps: int,
    batch: int,
    repeats: int,
    latency: int,
    at_once: int | None = None,
    between: Callable[[], object] = lambda: None,
) -> TimedAgain:
    """Run a job's first batch, and its first image alone, for their seconds. What they make is dropped.

    Args:
        seeds, steps: of the job.
        batch: images of its first batch.
        repeats: counted runs of that batch; 0 for none.
        latency: counted runs of one image; 0 for none.
        at_once: candidates at a time, of a sampler that makes several of each image; those of all images by default.
        between: called before each run, and may raise to end it all.
    """

    def runs(n_images: int, times: int) -> list[TimedBatch]:
        found = []
        for _ in range(times + 1 if times else 0):
            between()
            size = max(n_images * sampler.candidates if at_once is None else at_once, sampler.images_together)
            made = list(sampler.batches(task, seeds=seeds, steps=steps, rows=range(n_images), batch_size=size))
            seconds = {
                part: round(sum(each.timings.get(part, 0.0) for each in made), 6)
                for part in ("encode", "denoise", "decode")
            }
            found.append(TimedBatch(n_images=n_images, **seconds))
        return found[1:]

    return TimedAgain(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=environment.device_name(sampler.model.device),
        batch=runs(batch, repeats),
        one=runs(1, latency),
    )
