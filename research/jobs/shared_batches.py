"""Which jobs are sampled together, and how.

Jobs that differ in ``guidance.scale`` alone, with plugs that say they can (``vectorises``), are made as one batch with a scale
an image. Each keeps its own record: its images, counts and share of the time are its own, and ``together`` names the jobs
that shared its batches. Images equal those of the job run alone to rounding: latents to 1e-5 of their largest value in
float32, so that a pixel may now and then differ by one level of 255. ``runtime.vectorise=off`` runs each alone, as parity
always does.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from research import caches
from research.errors import UserError, one_line
from research.jobs import job_images, process_cache
from research.jobs.build import build, guidance_of
from research.jobs.claims import ClaimLost
from research.jobs.faults import batches_that_fit, check
from research.jobs.job import Job
from research.jobs.progress import StepsMade
from research.jobs.record import PARTIAL, JobResult, MadeSoFar, StoreError
from research.jobs.run_job import JobRun, Observer, OneByOne, run_job
from research.jobs.schema import MODEL_IDENTITY
from research.jobs.signals import Interrupted

if TYPE_CHECKING:
    from research.sampling import SampleResult
    from research.sampling.interfaces import Task
    from research.sampling.result import BatchSampler

_log = logging.getLogger(__name__)
_LARGEST = 64  # images of all jobs of a unit
# of a model's settings, what is loaded anew for less than another model: changed faster
_CHEAPER = (
    *("dtype", "device", "attention_slicing", "compile", "channels_last", "loras", "quantize", "offload"),
    *("drop_text_encoders", "vae_tiling", "vae_slicing"),
)


class SharedBatches(OneByOne):
    """The jobs of this process: those that can share their batches do, the others are run one by one."""

    def units(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """The jobs in groups that are sampled together, in an order in which what costs most to change changes least.

        That is the model, then its dtype and device; apart from that, groups and jobs in them stand as they were given.
        """
        groups: dict[str, list[Job]] = {}
        for job in by_cost(jobs):
            groups.setdefault(_likeness(job) or f"by itself {job.folder.path}", []).append(job)
        return [unit for group in groups.values() for unit in _parts(group)]

    def run(self, unit: Sequence[Job], observer: Observer | None = None) -> list[JobResult]:
        """Run the jobs of a unit and return their results, in their order.

        Should sampling them together fail, each is run by itself, and fails or not. A job of which a part was made before
        goes on by itself.

        Raises:
            StoreError, KeyboardInterrupt, ClaimLost: see `run_job`; jobs of the unit that were complete before are done.
        """
        fresh = [job for job in unit if not (job.folder.path / PARTIAL).exists()]
        found = _run_in_shared_batches(fresh, observer) if len(fresh) > 1 else {}
        return [found.get(job.id) or run_job(job, observer) for job in unit]


def by_cost(jobs: Sequence[Job]) -> list[Job]:
    """Jobs of one model stand together, and among them those of one dtype and device, in the order in which they come first."""
    keys = []
    for job in jobs:
        model = job.config["model"]
        loaded = {key: value for key, value in model.items() if key not in MODEL_IDENTITY}
        file = {key: value for key, value in loaded.items() if key not in _CHEAPER}
        keys.append((json.dumps(file, sort_keys=True), json.dumps(loaded, sort_keys=True)))
    first: dict[str, int] = {}
    for place, key in enumerate(keys):
        for part in key:
            first.setdefault(part, place)
    order = sorted(range(len(jobs)), key=lambda k: (first[keys[k][0]], first[keys[k][1]], k))
    return [jobs[k] for k in order]


# -- which


def _likeness(job: Job) -> str | None:
    """What jobs have in common that may be sampled together; None for one that may not."""
    config = job.config
    runtime, scale = config["runtime"], config["guidance"].get("scale")
    if runtime.get("parity") or runtime.get("vectorise", "auto") != "auto":
        return None
    if runtime.get("repeats") or runtime.get("latency"):  # times are of a job by itself
        return None
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        return None
    if "_target_" in (config.get("sampler") or {}):  # which makes batches of its own
        return None
    guidance = {key: value for key, value in config["guidance"].items() if key != "scale"}
    return json.dumps({**config, "guidance": guidance}, sort_keys=True, default=str)


def _parts(group: Sequence[Job]) -> Iterator[list[Job]]:
    """Units of jobs that are alike: as many together as make a batch."""
    if len(group) == 1:
        yield list(group)
        return
    images = job_images.image_count(group[0].config)
    asked = group[0].config["batch_size"]
    at_once = (_LARGEST if asked == "auto" else min(asked, _LARGEST)) // images
    can = _vectorising(group) if at_once > 1 else []
    shared = {job.id for job in can} if len(can) > 1 else set()
    yield from ([job] for job in group if job.id not in shared)
    if shared:
        size = -(-len(can) // -(-len(can) // at_once))  # all of about one size
        yield from (can[first : first + size] for first in range(0, len(can), size))


def _vectorising(group: Sequence[Job]) -> list[Job]:
    """Of jobs that are alike those whose plugs all say that images of several scales may share a batch."""
    process_cache.libraries()
    config = group[0].config

    def says(make: Callable[[], Any]) -> bool:
        try:
            plug = make()
        except UserError:  # the job says it where it runs
            return False
        return bool(getattr(plug, "vectorises", lambda: False)())

    shared = [partial(build, node, f"hooks.{name}") for name, node in config["hooks"].items()]
    shared.append(partial(build, config["task"], "task", **job_images.task_arguments(config)))
    if not all(says(make) for make in shared):
        return []
    return [job for job in group if says(partial(guidance_of, job.config))]


# -- how


def _run_in_shared_batches(jobs: Sequence[Job], observer: Observer | None) -> dict[str, JobResult]:
    """Results by id of the jobs that came out of common batches. Those that are missing are to be run by themselves."""
    runs = [JobRun(job, observer) for job in jobs]
    for run in runs:
        run.prepare_folder()
        run.watch.pause()
    found: dict[str, JobResult] = {}
    lost: ClaimLost | None = None
    try:
        for sampler, task, run in _complete(runs):
            run.watch.resume()
            try:
                found[run.job.id] = run.conclude(lambda: run.keep_pictures(sampler, task))  # noqa: B023  # called at once
            except ClaimLost as error:
                lost = error
            run.watch.pause()
    except (StoreError, ClaimLost):
        raise
    except Exception as error:
        _log.warning("sampling %d jobs together failed (%s); each is run by itself", len(jobs), one_line(error))
    if lost:
        raise lost
    return found


def _complete(runs: Sequence[JobRun]) -> Iterator[tuple[BatchSampler, Task, JobRun]]:
    """Sample; give sampler, task and run of each job as its images are complete."""
    from research.guidance import Scales

    head, start = runs[0], time.perf_counter()
    n_images = len(head.seeds)
    scales = [run.settings.guidance["scale"] for run in runs for _ in range(n_images)]
    sampler = head.sampler(Scales(guidance_of(head.job.config), scales))
    task = head.task(sampler.model)
    size = head.batch_size(sampler, task, len(scales))
    for run in runs:
        run.note_model(sampler.model)
        run.result.batch_size = size
    head.watch.resume(time.perf_counter() - start)
    head.watch.pause()
    start = time.perf_counter()

    progress = StepsMade(head.observer, len(scales), size, head.settings.steps)

    def halved(event: dict[str, Any]) -> None:
        for run in runs:
            run.note_halved(event)

    batches = batches_that_fit(
        sampler,
        task,
        seeds=head.seeds,
        steps=head.settings.steps,
        size=size,
        rows=list(range(n_images)) * len(runs),
        progress=progress,
        halved=halved,
    )
    for places, result in batches:
        spent = time.perf_counter() - start
        of_jobs = range(places.start // n_images, (places.stop - 1) // n_images + 1)
        complete: list[JobRun] = []
        for k in of_jobs:
            mine = range(max(places.start, k * n_images), min(places.stop, (k + 1) * n_images))
            within = slice(mine.start - places.start, mine.stop - places.start)
            run = runs[k]
            run.watch.resume(spent * len(mine) / len(places))
            run.keep_batch(_share(result, within), range(mine.start - k * n_images, mine.stop - k * n_images))
            if len(of_jobs) > 1:
                run.result.add(MadeSoFar(together=[runs[j].job.id for j in of_jobs]))
            run.watch.pause()
            if mine.stop == (k + 1) * n_images:
                complete.append(run)
        for run in complete:
            # a kill between the first result and the last loses none, and no image is made in another batch
            run.checkpoint.write(run)
        for run in complete:
            if run is not head:  # what was loaded for all of them stands in the first one's record
                run.caches = caches.counts()
            yield sampler, task, run
        _between_batches([run for run in runs if len(run.saved) < n_images])
        start = time.perf_counter()


def _share(result: SampleResult, within: slice) -> SampleResult:
    """The part of a batch's result that is of some of its images, with their share of the time."""
    part = len(result.images[within]) / len(result.images)
    return dataclasses.replace(
        result,
        images=result.images[within],
        latents=result.latents[within],
        seeds=result.seeds[within],
        prompts=result.prompts[within],
        timings={name: seconds * part for name, seconds in result.timings.items()},
        scores={name: numbers[within] for name, numbers in result.scores.items()},
        trace=dict(result.trace),
    )


def _between_batches(runs: Sequence[JobRun]) -> None:
    """See whether the jobs may go on; if not, each writes down what is complete of it."""
    stopped: Interrupted | None = None
    for run in runs:
        try:
            if len(run.saved):
                run.checkpoint.between_batches(run)
            else:
                check(run.folder.path)
        except Interrupted as asked:
            stopped = asked
    if stopped:
        raise stopped
