"""A comparison as Python asks for it: of folders, and of sweeps and jobs that were loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.compare.comparing import compare as compare_request
from research.compare.outcome import Comparison, Request
from research.errors import UserError
from research.jobs.record import RESULT


def compare(
    *places: Any,
    axis: str | None = None,
    baseline: Any = None,
    metrics: str | Sequence[str] = (),
    where: str | Sequence[str] = (),
    **settings: Any,
) -> Comparison:
    """Compare sides pair by pair, metric by metric, over the prompts and seeds that they share: what ``research-compare`` prints.

    Args:
        places: two or more folders of jobs or sweeps, or what `research.load_sweep` and `research.sweep` return, or jobs of it;
            or one sweep, of which all jobs, or the values of ``axis``, are compared.
        axis: a setting whose values are the sides.
        baseline: the side that all others are set against: a job, its id, a folder or a value of the axis.
        metrics: which numbers; all that the sides share by default.
        where: keep only jobs with these settings, ``"scheduler=ddim"``.
        settings: any other field of `research.compare.Request`.

    Raises:
        UserError: one line: nothing to compare or to pair, a metric that is missing, numbers of different provenance.
    """
    if len(places) == 1 and isinstance(places[0], Request):
        return compare_request(places[0])
    known = Request.__dataclass_fields__
    if unknown := [key for key in settings if key not in known]:
        raise UserError(
            f"compare: found {unknown[0]!r}; accepted: {', '.join(key for key in known if key != 'places')}."
        )
    words = [word for place in places for word in _words(place, alone=len(places) == 1, axis=axis)]
    return compare_request(
        Request(
            tuple(words),
            axis=axis,
            baseline=None if baseline is None else _words(baseline, alone=False, axis=None)[0],
            metrics=(metrics,) if isinstance(metrics, str) else tuple(metrics),
            where=(where,) if isinstance(where, str) else tuple(where),
            **settings,
        )
    )


def _words(place: Any, *, alone: bool, axis: str | None) -> list[str]:
    """A place as the command line names it; the jobs of a part of a sweep one by one."""
    jobs, folder = getattr(place, "jobs", None), getattr(place, "folder", getattr(place, "directory", None))
    if jobs is not None and folder is not None:
        whole = {file.parent for file in Path(folder).glob(f"*/{RESULT}")}
        if whole <= {job.folder for job in jobs} or (alone and len(whole) == 1):
            return [str(folder)]
        if alone and axis is None:
            return [str(job.folder) for job in jobs]
        raise UserError(
            f"compare: found {len(jobs)} of the {len(whole)} jobs of {folder}; accepted with an axis, or against another "
            "sweep is a whole one, with where=[KEY=VALUE] for a part of it."
        )
    if folder is not None:
        return [str(folder)]
    return [os.fspath(place) if isinstance(place, str | os.PathLike) else str(place)]
