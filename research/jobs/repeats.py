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
    from research.sampling import LoopSampler
    from research.sampling.interfaces import Task


def time_again(
    sampler: LoopSampler,
    task: Task,
    *,
    seeds: Sequence[int],
    steps: int,
    batch: int,
    repeats: int,
    latency: int,
    between: Callable[[], object] = lambda: None,
) -> TimedAgain:
    """Run a job's first batch, and its first image alone, for their seconds. What they make is dropped.

    Args:
        seeds, steps: of the job.
        batch: images of its first batch.
        repeats: counted runs of that batch; 0 for none.
        latency: counted runs of one image; 0 for none.
        between: called before each run, and may raise to end it all.
    """

    def runs(n_images: int, times: int) -> list[TimedBatch]:
        found = []
        for _ in range(times + 1 if times else 0):
            between()
            (made,) = sampler.batches(task, seeds=seeds, steps=steps, rows=range(n_images))
            seconds = {part: round(made.timings.get(part, 0.0), 6) for part in ("encode", "denoise", "decode")}
            found.append(TimedBatch(n_images=n_images, **seconds))
        return found[1:]

    return TimedAgain(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device=environment.device_name(sampler.model.device),
        batch=runs(batch, repeats),
        one=runs(1, latency),
    )
