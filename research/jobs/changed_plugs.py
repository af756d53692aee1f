"""Jobs on disk that were made with another version of a plug of the user's own: found for a plan, and among records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from research.jobs.identity import settings_digest
from research.jobs.job import Job
from research.jobs.plug_sources import targets_of
from research.jobs.record import RESULT, JobResult, find_result


@dataclass(frozen=True)
class ChangedJob:
    """A job on disk, and the classes whose source is another now."""

    job_id: str
    plugs: tuple[str, ...]


def changed_since(jobs: Sequence[Job]) -> list[ChangedJob]:
    """The jobs in the folders of a plan's jobs that have the settings of one of these, and were made with another source."""
    if not any(job.sources for job in jobs):
        return []
    wanted = {(job.folder.path.parent, settings_digest(job.config)): job for job in jobs if job.sources}
    ids = {job.folder.path for job in jobs}
    found = []
    for sweep_dir in dict.fromkeys(folder for folder, _ in wanted):
        for file in sorted(sweep_dir.glob(f"*/{RESULT}")):
            if file.parent in ids or (result := find_result(file.parent)) is None or not targets_of(result.config):
                continue
            job = wanted.get((sweep_dir, settings_digest(result.config)))
            if job is not None and (plugs := differing(result.plug_sources, job.sources)):
                found.append(ChangedJob(result.job_id, plugs))
    return found


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """The classes whose source is another; a record of before there were sources says of none what it was."""
    return tuple(target for target in now if before.get(target) != now[target])


def changed_lines(changed: Iterable[ChangedJob]) -> list[str]:
    """A sentence a class: how many jobs were made with another version of it."""
    count = Counter(plug for job in changed for plug in job.plugs)
    return [f"{n} job{'s were' if n > 1 else ' was'} made with another version of {plug}" for plug, n in count.items()]


def made_before(results: Sequence[JobResult], asked: Iterable[str] = ()) -> list[ChangedJob]:
    """Of the jobs of a folder, those whose plugs have changed since: another job has a later version of a class.

    Args:
        results: of a folder.
        asked: ids of the jobs that were last asked for. These count as they are, also where they were made earlier.
    """
    last = set(asked)
    versions = {
        result.job_id: _versions(result) for result in results if result.plug_sources or targets_of(result.config)
    }
    ordered = sorted(results, key=lambda result: (result.job_id in last, _when(result)))
    newest: dict[str, str | None] = {}
    for result in ordered:
        newest |= versions.get(result.job_id, {})
    found = []
    for result in results:
        plugs = tuple(t for t, digest in versions.get(result.job_id, {}).items() if digest != newest[t])
        if plugs and result.job_id not in last:
            found.append(ChangedJob(result.job_id, plugs))
    return found


def _versions(result: JobResult) -> dict[str, str | None]:
    return dict.fromkeys(targets_of(result.config)) | dict(result.plug_sources)


def _when(result: JobResult) -> str:
    return max(result.created or "", result.scored.created if result.scored is not None else "")
