"""What a job took: seconds an image and the latency of one, each with its spread, and whether they are in line with its sweep.

Seconds an image (encode, denoise and decode, without loading and scoring) are the median of what was timed, with the least and
the most. What is timed are, of the following, the first that there are:

1. runs of the first batch that were made for their time (``runtime.repeats``, ``research again JOB --time N``);
2. the batches after the first that are as large as the largest: the first has what is done once (compiling, choosing kernels,
   filling caches) in it, and stands apart;
3. the only batch of its size, once, with all of that in it;
4. of records without a trace, the mean over the job.

Latency is that of a batch of one, and of nothing else: from runs of one image (``runtime.latency``), or of a job whose batches
are of one image.

Model evaluations cost the same in jobs that are alike (`_likeness`). One whose seconds of denoising an evaluation lie further
from the median of those like it than `FACTOR` scaled median absolute deviations, of their logarithms (Iglewicz and Hoaglin
1993, "How to detect and handle outliers": 3.5), and than `LEAST_AWAY` times, was timed while something else happened: it is out
of line.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.jobs.record import DamagedRecord, JobResult, NoRecord, TimedBatch, read_batch_times
from research.labels import count, number

FACTOR = 3.5  # median absolute deviations, scaled to a standard deviation
LEAST_AWAY = 1.25  # times as long, or as short, as the median
LEAST_ALIKE = 4  # jobs, of which one may be out of line
_TO_DEVIATION = 1.4826  # of normal numbers
_OF_MODEL = ("path", "config", "attention_slicing", "compile", "channels_last")
_OF_MEMORY = ("quantize", "offload", "drop_text_encoders", "vae_tiling", "vae_slicing")
_PARTS = ("encode", "denoise", "decode")
REPEATS, BATCHES, ONCE, MEAN = "repeats", "batches after the first", "one batch", "mean over the job"


@dataclass(frozen=True)
class Spread:
    """Measurements of one quantity.

    Attributes:
        median, low, high: of them; `low` is the least and `high` the most.
        n: how many; 1 where it was measured once, and there is no spread.
    """

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    @property
    def inverse(self) -> Spread:
        """Of one over each."""
        return Spread(1 / self.median, 1 / self.high, 1 / self.low, self.n)

    @property
    def range(self) -> str:
        """The least and the most; ``once`` where there is no spread."""
        return f"{number(self.low)}–{number(self.high)}" if self.n > 1 else "once"

    def __str__(self) -> str:
        return f"{number(self.median)} ({self.range})"


@dataclass(frozen=True)
class Timing:
    """What a job took.

    Attributes:
        seconds: an image, in batches of `batch` images; None where nothing is recorded.
        by: from what: `REPEATS`, `BATCHES`, `ONCE` or `MEAN`.
        batch: images at a time.
        first: seconds an image of the first batch, where it stands apart.
        latency: seconds of one image made alone; None where none was.
        made_alone: `latency` is of runs that were made for it, and not of the job's own batches.
        evaluation: seconds of denoising an image and model evaluation.
        shared: jobs shared batches, so that all seconds are shares.
        device: where it was timed.
    """

    seconds: Spread | None = None
    by: str = ""
    batch: int = 0
    first: float | None = None
    latency: Spread | None = None
    made_alone: bool = False
    evaluation: float | None = None
    shared: bool = False
    device: str = ""

    @property
    def said(self) -> str:
        """What `seconds` are of, in words."""
        if self.seconds is None:
            return "not recorded"
        size = f" of {self.batch}" if self.batch else ""
        if self.by == REPEATS:
            return f"{count(self.seconds.n, 'run')} of a batch{size}"
        if self.by == BATCHES:
            batches = "batch" if self.seconds.n == 1 else "batches"
            return f"{self.seconds.n} {batches}{size} after the first"
        return f"one batch{size}, its warm-up included" if self.by == ONCE else "the mean over the job"


def timing(folder: Path, result: JobResult) -> Timing:
    """What a job took, by its record and its trace."""
    shared = len(result.together) > 1
    batches = batch_times(folder)
    timed, by = _timed(result, batches)
    once_more = result.timed
    device = (once_more.device if once_more is not None and by == REPEATS else result.device) or ""
    alone = [run for run in once_more.one if run.n_images == 1] if once_more is not None else []
    ones = [run for run in timed if run.n_images == 1] if not shared and by != MEAN else []
    latency = [run.seconds for run in alone or ones if run.seconds > 0]
    if not timed:
        found = Spread.of(latency) if latency else None
        return Timing(latency=found, made_alone=bool(alone), shared=shared, device=device)
    size = timed[0].n_images
    evaluations = [run.denoise / run.n_images / result.nfe for run in timed if result.nfe and run.denoise > 0]
    at_a_time = result.batch_size if shared or by == MEAN else size
    return Timing(
        seconds=Spread.of([run.seconds / run.n_images for run in timed]),
        by=by,
        batch=at_a_time or 0,
        first=batches[0].seconds / batches[0].n_images if by == BATCHES else None,
        latency=Spread.of(latency) if latency else None,
        made_alone=bool(alone),
        evaluation=statistics.median(evaluations) if evaluations else None,
        shared=shared,
        device=device,
    )


def batch_times(folder: Path) -> list[TimedBatch]:
    """Seconds of each batch of a job; empty where its trace does not say."""
    try:
        return read_batch_times(folder)
    except (NoRecord, DamagedRecord):
        return []


def _timed(result: JobResult, batches: Sequence[TimedBatch]) -> tuple[list[TimedBatch], str]:
    """The measurements that count, all of one size, and what they are."""
    again = [run for run in result.timed.batch if run.n_images and run.seconds > 0] if result.timed is not None else []
    if again:
        return again, REPEATS
    whole = [batch for batch in batches if batch.seconds > 0]
    if whole and len(whole) == len(batches) and sum(batch.n_images for batch in whole) == result.n_images:
        largest = max(batch.n_images for batch in whole)
        later = [batch for batch in whole[1:] if batch.n_images == largest]
        return (later, BATCHES) if later else ([next(b for b in whole if b.n_images == largest)], ONCE)
    parts = {part: result.timings.get(part, 0.0) for part in _PARTS}
    whole_job = TimedBatch(n_images=result.n_images, **parts)
    return ([whole_job], MEAN) if result.n_images and whole_job.seconds > 0 else ([], "")


def out_of_line(jobs: Sequence[tuple[JobResult, Timing]]) -> list[str]:
    """For each of some jobs why its seconds say nothing of its setting; empty for those that are in line, or not to be judged."""
    found = [""] * len(jobs)
    alike: dict[str, list[int]] = {}
    for place, (result, timed) in enumerate(jobs):
        if result.done and timed.evaluation:
            alike.setdefault(_likeness(result, timed), []).append(place)
    for places in alike.values():
        if len(places) < LEAST_ALIKE:
            continue
        logs = {place: math.log(jobs[place][1].evaluation or 1.0) for place in places}
        middle = statistics.median(logs.values())
        deviation = _TO_DEVIATION * statistics.median(abs(value - middle) for value in logs.values())
        for place, value in logs.items():
            if abs(value - middle) > max(FACTOR * deviation, math.log(LEAST_AWAY)):
                times = number(math.exp(value - middle), 2)
                found[place] = f"{times} times the median seconds an evaluation of the {len(places)} jobs like it"
    return found


def _likeness(result: JobResult, timed: Timing) -> str:
    """What the seconds of an evaluation depend on besides the machine's load."""
    config = result.config
    model, task, guidance, hooks, runtime = (
        _section(config, k) for k in ("model", "task", "guidance", "hooks", "runtime")
    )
    modifiers = _section(guidance, "modifiers")
    return repr(
        [
            [
                result.weights_sha256,
                *(model.get(key) for key in _OF_MODEL),
                *((key, value) for key in _OF_MEMORY if (value := model.get(key)) not in (None, False, "none")),
            ],
            [result.dtype, timed.device, timed.batch, timed.shared, timed.by == REPEATS],
            [task.get("_target_"), task.get("height"), task.get("width")],
            [guidance.get("_target_"), sorted(result.nfe_by_branch)],
            sorted(str(_section(modifiers, name).get("_target_")) for name in modifiers),
            sorted(str(_section(hooks, name).get("_target_")) for name in hooks),
            [bool(runtime.get("parity")), runtime.get("threads")],
        ]
    )


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}
