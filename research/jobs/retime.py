"""Jobs that are done, timed again: their first batch, and one image alone, are run for their seconds, which the record keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from research.errors import ConfigError, UserError
from research.jobs import job_images, process_cache, record
from research.jobs.build import Origin, sampler_of
from research.jobs.claims import TIMEOUT, claim
from research.jobs.record import DamagedRecord, JobResult, NoRecord, TimedAgain
from research.jobs.repeats import time_again
from research.jobs.scoring import sampler_and_task
from research.jobs.store import JobFolder


def retime(place: Path, times: int, origin: Callable[[Path], Origin]) -> TimedAgain:
    """Time one job and keep it as ``timed`` of its ``result.json``; images, scores and the seconds of the run itself stay.

    Args:
        place: the job's folder.
        times: counted runs, of its first batch and of its first image alone.
        origin: what a record may name, by its file.

    Raises:
        UserError: the job is not done, another process is at work on it, or its record names what is not there or not allowed.
        StoreError: the folder cannot be written.
    """
    folder = JobFolder(place)
    result = record.read_result(place)
    if not result.done:
        raise ConfigError(f"{place}: has the status '{result.status}'; accepted are jobs that are done.")
    held = claim(place, result.settings.runtime.claim_timeout if result.settings else TIMEOUT)
    if held is None:
        raise UserError(f"{place}: another process is at work on it.")
    try:
        found = _timed(place, result, times, origin(place / record.RESULT), held.check)
        held.check()
        # read anew, as a metric may have been scored meanwhile in the same process
        folder.write_result(record.replaced(record.read_result(place), timed=found))
    finally:
        held.release()
    return found


def _timed(place: Path, result: JobResult, times: int, origin: Origin, between: Callable[[], object]) -> TimedAgain:
    config = result.config
    process_cache.libraries()
    process_cache.set_threads((config.get("runtime") or {}).get("threads"))
    loop, task = sampler_and_task(config, origin)
    sampler = sampler_of(config, origin, loop) or loop
    if result.weights_sha256 not in (None, "", sampler.model.weights_sha256):
        raise UserError(
            f"model.path: the weights of {config['model']['path']} are not those that made the images of {place}."
        )
    return time_again(
        sampler,
        task,
        seeds=job_images.seeds(config),
        steps=config["steps"],
        batch=_first_batch(place, result),
        repeats=times,
        latency=times,
        at_once=result.batch_size if sampler.candidates > 1 else None,
        between=between,
    )


def _first_batch(place: Path, result: JobResult) -> int:
    """How many images it had."""
    try:
        known = [batch.n_images for batch in record.read_batch_times(place)]
    except (NoRecord, DamagedRecord):
        known = []
    return known[0] if known else min(result.batch_size or result.n_images, result.n_images)
