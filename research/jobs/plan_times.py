"""How long jobs will take, told from the timings of jobs that are done. Needs no torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.jobs.estimate import estimate
from research.jobs.job import Job
from research.jobs.job_images import image_count
from research.jobs.record import RESULT, JobResult, find_result

_MOST = 300  # records read, the latest first: they tell the time of thousands
_MODEL = ("path", "config", "dtype", "device")


class Times:
    """Seconds an evaluation, and seconds an image besides, of each model, task and size that jobs have been done with.

    Args:
        jobs: whose output folders are looked at: first those of their own sweeps, then the other sweeps beside them.
    """

    def __init__(self, jobs: Sequence[Job]):
        known: dict[str, list[tuple[float, float]]] = {}
        for result in _results(jobs):
            found = _measured(result)
            if found is not None:
                known.setdefault(_kind(result.config), []).append(found)
        self._known = {
            kind: (statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs))
            for kind, pairs in known.items()
        }

    def of(self, job: Job) -> float | None:
        """Seconds of a job, the loading of its model aside; None where nothing like it has been done."""
        found = self._known.get(_kind(job.config))
        if found is None:
            return None
        return image_count(job.config) * (found[0] * estimate(job.config).nfe + found[1])


def _kind(config: Mapping[str, Any]) -> str:
    model, task = config["model"], config["task"]
    size = [task.get("height"), task.get("width")]
    return repr([[model.get(key) for key in _MODEL], task.get("_target_"), size, sorted(config["metrics"])])


def _measured(result: JobResult) -> tuple[float, float] | None:
    timings, images, nfe = result.timings, result.n_images, result.nfe
    if not images or not nfe or not {"total", "denoise", "load"} <= timings.keys():
        return None
    rest = timings["total"] - timings["denoise"] - timings["load"]
    return timings["denoise"] / (nfe * images), max(rest, 0.0) / images


def _results(jobs: Iterable[Job]) -> Iterable[JobResult]:
    own = list(dict.fromkeys(job.folder.path.parent for job in jobs))
    left = _MOST
    for places in ([(sweep, "*") for sweep in own], [(root, "*/*") for root in dict.fromkeys(s.parent for s in own)]):
        files = [file for place, pattern in places for file in place.glob(f"{pattern}/{RESULT}")]
        stamped = sorted(((_stamp(file), file) for file in files), reverse=True)
        for _, file in stamped[:left]:
            result = find_result(file.parent)
            left -= 1
            if result is not None and result.done and result.settings is not None:
                yield result


def _stamp(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
