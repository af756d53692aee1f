"""Brings a W&B server up to date with the jobs in a folder: what it lacks is sent, and nothing twice."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from research.errors import UserError
from research.jobs.record import DamagedRecord, JobResult, NoRecord, read_result
from research.tracking.mirrored_run import MirroredRun, run_of, section
from research.tracking.wandb_process import WorkerProcess
from research.tracking.wandb_server import server

NEW, CHANGED, CURRENT, UNKNOWN = "new", "changed", "up to date", "unknown"
FAILURES_AT_MOST = 3  # in a row over all workers; then the server is taken to be down


@dataclass(frozen=True)
class Options:
    """How to sync; None where each job's own ``tracker`` section says it."""

    project: str | None = None
    entity: str | None = None
    max_images: int | None = None
    artifacts: bool | None = None
    workers: int = 4
    time_limit: float = 120.0  # seconds a job
    request_timeout: float = 30.0
    limit: float = 3600.0  # seconds in all
    retries: int = 2
    force: bool = False


@dataclass
class Entry:
    """A job and what is to become of it."""

    folder: Path
    record: MirroredRun
    settings: dict[str, Any]
    state: str = UNKNOWN
    run_id: str = ""
    error: str | None = None
    sent: bool = False

    @property
    def to_send(self) -> bool:
        return self.state != CURRENT


@dataclass
class SyncPlan:
    """All jobs of a folder."""

    entries: list[Entry] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # one line each
    unfinished: int = 0  # without a result yet

    @property
    def failed(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.error]


def plan(folder: Path, options: Options) -> SyncPlan:
    """The finished jobs of a job's folder, of a sweep's, or of one that holds sweeps; their state is not known yet.

    Raises:
        UserError: no such folder, or no finished job in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; accepted is one of a job, of a sweep, or one that holds sweeps.")
    made = SyncPlan()
    for job in _jobs(folder, made):
        try:
            result = read_result(job)
            settings = _settings(result, options)
            run = run_of(job, result, tags=settings["tags"], max_images=settings["max_images"])
        except (NoRecord, DamagedRecord) as error:
            made.damaged.append(str(error))
        else:
            made.entries.append(Entry(job, run, settings, run_id=run.run_id))
    made.entries.sort(key=lambda entry: (str(entry.record.config.get("created")), entry.record.job_id))
    if not made.entries and not made.damaged:
        more = f" ({made.unfinished} without a result yet)" if made.unfinished else ""
        raise UserError(f"{folder}: has no finished jobs{more}; accepted is a folder with jobs that have ended.")
    return made


def compare(made: SyncPlan, options: Options) -> None:
    """Ask the server which jobs it holds as they are.

    Raises:
        UserError: it cannot be asked.
    """
    for (project, entity), entries in _by_project(made.entries).items():
        request = {"groups": sorted({entry.record.group for entry in entries})}
        limit = 3 * options.request_timeout
        worker = WorkerProcess({**entries[0].settings, "project": project, "entity": entity})
        try:
            answer = worker.ask(request, limit)
        except (OSError, ValueError, TimeoutError) as error:
            answer = {"ok": False, "warning": str(error)}
        finally:
            worker.kill()
        if not answer["ok"]:
            raise UserError(f"{server()} cannot be asked: {answer['warning']}")
        held = {run["run_id"]: run for run in answer["runs"]}
        # a run that an agent of W&B has named is known by its job
        named = {(run["group"], run["job_id"]): run for run in answer["runs"]}
        for entry in entries:
            run = held.get(entry.record.run_id) or named.get((entry.record.group, entry.record.job_id))
            entry.run_id = run["run_id"] if run else entry.record.run_id
            if run is None:
                entry.state = NEW
            elif run["digest"] == entry.record.digest and not options.force:
                entry.state = CURRENT
            else:
                entry.state = CHANGED


def send(made: SyncPlan, options: Options, tell: Callable[[Entry], None]) -> None:
    """Send what the server lacks, some jobs at a time; an entry's ``error`` says why it is not there.

    Args:
        made: compared before.
        options: how long it may take.
        tell: called with each entry that has ended, from any thread.
    """
    left = iter([entry for entry in made.entries if entry.to_send])
    shared = _Shared(left, time.monotonic() + options.limit)
    count = max(1, min(options.workers, sum(entry.to_send for entry in made.entries)))
    pool = ThreadPoolExecutor(count)
    try:
        for done in [pool.submit(_work, shared, options, tell) for _ in range(count)]:
            done.result()
    except BaseException:
        shared.stop("interrupted")
        for worker in list(shared.workers):
            worker.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    for entry in shared.rest():
        entry.error = shared.why


class _Shared:
    """What the threads of one `send` have in common."""

    def __init__(self, entries: Iterator[Entry], deadline: float):
        self.entries, self.deadline = entries, deadline
        self.workers: set[WorkerProcess] = set()
        self.why: str | None = None  # nothing more is begun
        self._failures, self._lock = 0, threading.Lock()

    def next_entry(self) -> tuple[Entry, float] | None:
        """The next entry, and the seconds left."""
        with self._lock:
            left = self.deadline - time.monotonic()
            if left <= 0:
                self.why = self.why or "out of time (--limit)"
            entry = None if self.why else next(self.entries, None)
            return (entry, left) if entry else None

    def ended(self, entry: Entry) -> None:
        with self._lock:
            self._failures = self._failures + 1 if entry.error else 0
            if self._failures >= FAILURES_AT_MOST:
                self.why = self.why or f"not tried, after {FAILURES_AT_MOST} failures in a row"

    def stop(self, why: str) -> None:
        with self._lock:
            self.why = self.why or why

    def rest(self) -> list[Entry]:
        return list(self.entries)


def _work(shared: _Shared, options: Options, tell: Callable[[Entry], None]) -> None:
    worker: WorkerProcess | None = None
    try:
        while (following := shared.next_entry()) is not None:
            entry, left = following
            if worker is None:
                worker = WorkerProcess({**entry.settings, "mode": "online"})
                shared.workers.add(worker)
            own = {**entry.settings, "mode": "online", "run_id": entry.run_id}
            try:
                answer = worker.ask(
                    {"job": str(entry.folder.resolve()), "settings": own}, min(options.time_limit, left)
                )
            except (OSError, ValueError, TimeoutError) as error:
                answer = {"ok": False, "warning": str(error)}
            if answer["ok"] and not answer.get("warning"):
                entry.sent = True
                _mark_offline_run(entry)
            else:
                entry.error = str(answer["warning"])
                worker.kill()
                shared.workers.discard(worker)
                worker = None
            shared.ended(entry)
            tell(entry)
    finally:
        if worker is not None:
            worker.end()


def _mark_offline_run(entry: Entry) -> None:
    """Tell ``wandb sync`` that an offline run of the job has been brought over; its own mark says so."""
    directory = Path(entry.settings["directory"] or entry.folder.parent)
    for file in (directory / "wandb").glob(f"offline-run-*-{entry.record.run_id}/*.wandb"):
        with contextlib.suppress(OSError):
            file.with_name(f"{file.name}.synced").touch()


def _jobs(folder: Path, made: SyncPlan) -> list[Path]:
    """Folders with a result: this one, its own, or theirs."""
    if (folder / "result.json").exists():
        return [folder]
    found = []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "wandb"):
        if (inner / "result.json").exists():
            found.append(inner)
        elif (inner / "config.yaml").exists():
            made.unfinished += 1
        else:
            for job in sorted(path for path in inner.iterdir() if path.is_dir()):
                if (job / "result.json").exists():
                    found.append(job)
                elif (job / "config.yaml").exists():
                    made.unfinished += 1
    return found


class _TrackerSection(msgspec.Struct, frozen=True):
    """What of a job's tracker section says how it is sent."""

    project: str | None = None
    entity: str | None = None
    tags: str | list[str] | None = None
    max_images: int = 16
    artifacts: bool = False
    directory: str | None = None


def _settings(result: JobResult, options: Options) -> dict[str, Any]:
    """Of the job's tracker, with what was asked for instead.

    Raises:
        DamagedRecord: the section holds something else.
    """
    given = section(result.config, "tracker")
    try:
        own = msgspec.convert(given if "Wandb" in str(given.get("_target_")) else {}, _TrackerSection)
    except msgspec.ValidationError as error:
        raise DamagedRecord(f"job {result.job_id}: config.tracker cannot be used: {error}.") from error
    asked = {
        key: value
        for key in ("project", "entity", "max_images", "artifacts")
        if (value := getattr(options, key)) is not None
    }
    found = {
        "project": own.project or os.environ.get("WANDB_PROJECT") or "research",
        "entity": own.entity or os.environ.get("WANDB_ENTITY") or None,
        "tags": [own.tags] if isinstance(own.tags, str) else own.tags or [],
        "max_images": max(0, own.max_images),
        "artifacts": own.artifacts,
        "directory": own.directory,
    }
    limits = {key: getattr(options, key) for key in ("time_limit", "request_timeout", "retries")}
    return {**found, **asked, **limits}


def _by_project(entries: Sequence[Entry]) -> dict[tuple[str, str | None], list[Entry]]:
    found: dict[tuple[str, str | None], list[Entry]] = {}
    for entry in entries:
        found.setdefault((entry.settings["project"], entry.settings["entity"]), []).append(entry)
    return found
