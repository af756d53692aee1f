"""One big job on several processes at once, as ``torchrun`` starts them: the batches of its seeds are dealt out over the ranks.

Rank 0 leads: it holds the claim, says which job is next, and writes the record. Each rank makes every n-th batch, so that the
batches, and with them the images, are those of a single process. A batch is noted on the shared disk as soon as its images are
there; whatever happens to a rank, the next run goes on from these notes, with as many ranks as it has. Metrics that are sums
over images (FID) are summed by each rank over its own images and added up; others are computed by rank 0.

Between the ranks go a few numbers and error lines only, by gloo, on CPUs and GPUs alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.errors import ConfigError
from research.jobs import environment, job_images, record, signals
from research.jobs.build import build, guidance_of
from research.jobs.checkpoint import checkpoint_of
from research.jobs.engines.collective import RankFailed, add, broadcast, connected, on_all_ranks
from research.jobs.faults import batches_that_fit, check
from research.jobs.images import SavedImages
from research.jobs.job import Job
from research.jobs.machine_slots import VISIBLE, visible_devices
from research.jobs.progress import StepsMade
from research.jobs.record import Checkpoint, DamagedRecord, JobResult, MadeSoFar, NoRecord, Trace
from research.jobs.run_job import JobRun, JobRunner, Observer, run_job
from research.jobs.run_jobs import Outcome
from research.jobs.shared_batches import by_cost
from research.metrics.base import AdditiveMetric, Metric, MetricResult, as_metric
from research.metrics.score import save

if TYPE_CHECKING:
    from research.sampling import SampleResult
    from research.sampling.interfaces import Task
    from research.sampling.result import BatchSampler

_NOTE = ".batch-"  # beginning of the names of notes, in a job's folder


def take_device() -> None:
    """Make the device of this rank the only one that it sees. To be called before CUDA is set up."""
    if environment.world() > 1 and (devices := visible_devices()):
        os.environ[VISIBLE] = devices[int(os.environ.get("LOCAL_RANK", 0)) % len(devices)]


def run_rank0(jobs: Sequence[Job], work: Callable[[JobRunner], Outcome]) -> Outcome:
    """On rank 0: do the work, the loop over jobs, with a runner that deals them out; tell the others when there is no more."""
    with connected():
        outcome = work(OverRanks())
        broadcast({"end": int(bool(outcome.failed))})
    return outcome


def run_other_rank(jobs: Sequence[Job]) -> int:
    """On the other ranks: make a share of each job that rank 0 names, until it names none; return the exit code."""
    by_digest = {job.digest: job for job in jobs}
    with connected(), signals.listening(jobs[0].settings.runtime.grace):
        while "end" not in (told := broadcast(None)):
            job = dataclasses.replace(by_digest[told["job"]], id=told["id"])
            with contextlib.suppress(RankFailed):
                _Share(job).sample()
    return int(told["end"])


class OverRanks:
    """On rank 0: each job by itself, its images dealt out over all ranks where they can be made apart."""

    def units(self, jobs: Sequence[Job]) -> list[list[Job]]:
        return [[job] for job in by_cost(jobs)]

    def run(self, unit: Sequence[Job], observer: Observer | None = None) -> list[JobResult]:
        return [self._run(job, observer) for job in unit]

    def _run(self, job: Job, observer: Observer | None) -> JobResult:
        if not can_be_dealt(job):
            return run_job(job, observer)
        share = _Share(job, observer)
        share.prepare_folder()
        broadcast({"job": job.digest, "id": job.id})
        return share.conclude(share.sample)


def can_be_dealt(job: Job) -> bool:
    """Whether a job's images can be made apart: some keep something of all batches, and frames of a path go together."""
    return not job_images.keeps_batches(job.config) and not job_images.makes_frames(job.config)


class _Share(JobRun):
    """What one rank does of a job."""

    def __init__(self, job: Job, observer: Observer | None = None):
        super().__init__(job, observer)
        self.rank, self.world = environment.rank(), environment.world()
        self.result.worker = {**(environment.worker or {}), "launcher": "torchrun", "ranks": self.world}
        self.sums: dict[str, tuple[AdditiveMetric, Any]] = {}  # metric and sums, by name

    def prepare_folder(self) -> None:
        """Make the job's folder ready: empty, or with the batches that are complete."""
        notes = self._notes() if self.settings.resume else {}
        keep = [image.file for note in notes.values() for image in note.images]
        self.folder.clear(keep=[*keep, *(_note(self.folder.path, first).name for first in notes)])
        self.folder.write_config(self.job.config)

    def sample(self) -> None:
        """Sample this rank's batches and add up its part of the metrics; on rank 0, put all of it together.

        Raises:
            RankFailed: some rank could not; the message says which and why.
        """
        sampler, task = on_all_ranks(self._load)
        told = on_all_ranks(lambda: self._plan(sampler, task) if self.rank == 0 else None)
        told = broadcast(told)
        on_all_ranks(lambda: self._batches(sampler, task, told["size"], told["at_once"], set(told["done"])))
        notes = on_all_ranks(self._notes)  # each reads them all, once all are there
        on_all_ranks(lambda: self._add_up(notes, told["size"]))
        self._reduce()
        if self.rank == 0:
            self._merge(notes)
            self.result.batch_size = told["at_once"]
            self.keep_pictures(sampler, task)
            self.time_again(sampler, task)

    def measure(self, name: str, metric: Metric) -> MetricResult:
        if name in self.sums:
            additive, sums = self.sums[name]
            return save(self.folder.path, additive.conclude(sums, device=self.device or "cpu"))
        return super().measure(name, metric)

    def keep_result(self) -> None:
        super().keep_result()
        for file in self.folder.path.glob(f"{_NOTE}*"):
            file.unlink(missing_ok=True)

    # -- steps, each of which all ranks take

    def _load(self) -> tuple[BatchSampler, Task]:
        sampler = self.sampler(guidance_of(self.job.config))
        self.note_model(sampler.model)
        return sampler, self.task(sampler.model)

    def _plan(self, sampler: BatchSampler, task: Task) -> dict[str, Any]:
        """How large batches are, and the first images of those that are there already. Notes that do not fit are removed."""
        at_once = self.batch_size(sampler, task, -(-len(self.seeds) // self.world))
        size = max(1, at_once // sampler.candidates)
        made_with = (self.result.weights_sha256, self.result.device)
        done = []
        for first, note in self._notes().items():
            end = min(first + size, len(self.seeds))
            fits = (note.weights_sha256, note.device) == made_with
            # batches as they would be made now: another size would leave images between them
            if fits and first % size == 0 and len(note.images) == end - first:
                done.append(first)
            else:
                _note(self.folder.path, first).unlink()
        return {"size": size, "at_once": at_once, "done": done}

    def _batches(self, sampler: BatchSampler, task: Task, size: int, at_once: int, done: set[int]) -> None:
        mine = [first for first in self._mine(size) if first not in done]
        own = [min(first + size, len(self.seeds)) - first for first in mine]
        progress = StepsMade(
            self.observer, max(sum(own), 1), size, self.settings.steps, f" on each of {self.world} ranks"
        )
        for first, count in zip(mine, own, strict=True):
            check(self.folder.path)
            batches = batches_that_fit(
                sampler,
                task,
                seeds=self.seeds,
                steps=self.settings.steps,
                size=at_once,
                rows=range(first, first + count),
                progress=progress,
                halved=self.note_halved,
            )
            for places, made in batches:
                self._keep_noted(made, range(first + places.start, first + places.stop))
            progress.add(count)
        progress.complete()

    def _keep_noted(self, made: SampleResult, rows: range) -> None:
        """Write a batch's images, and then, that they are there."""
        before = self.watch.seconds
        self.watch.seconds = dict.fromkeys(before, 0.0)
        self.saved, self.trace = SavedImages(0), Trace()
        # batches that did not fit, and what was said of them, belong to the next one that did
        self._made_so_far(MadeSoFar(out_of_memory=self.result.out_of_memory, warnings=self.result.warnings))
        self.keep_batch(made, rows)
        record.write_checkpoint(_note(self.folder.path, rows[0]), checkpoint_of(self.job, self))
        self._made_so_far(MadeSoFar())
        self.watch.seconds = before

    def _made_so_far(self, made: MadeSoFar) -> None:
        for name, value in made.made_so_far().items():
            setattr(self.result, name, value)

    def _add_up(self, notes: dict[int, Checkpoint], size: int) -> None:
        """This rank's part of those metrics that are sums over images."""
        entries = {first + k: image for first, note in notes.items() for k, image in enumerate(note.images)}
        if missing := len(self.seeds) - len(entries):
            raise RuntimeError(f"{missing} images are not there")
        own, total = SavedImages(0), len(self.seeds)
        rows = [row for first in self._mine(size) for row in range(first, min(first + size, total))]
        for row in rows:
            own.add_saved(self.folder.path / entries[row].file)
        for name, node in self.settings.metrics.items():
            metric = as_metric(build(node, f"metrics.{name}"), name)
            if isinstance(metric, AdditiveMetric):
                self.observer(0, 0, f"scoring {name}")
                with self.watch.phase("metrics", self.device):
                    self.sums[name] = metric, metric.add_up(own, device=self.device or "cpu", rows=rows, total=total)

    def _reduce(self) -> None:
        for metric, sums in self.sums.values():
            for tensor in metric.parts(sums):
                add(tensor)

    def _merge(self, notes: dict[int, Checkpoint]) -> None:
        """The record of all batches, as if one process had made them."""
        self._made_so_far(MadeSoFar(warnings=list(self.job.warnings)))
        self.saved, self.trace = SavedImages(), Trace()
        for _, note in sorted(notes.items()):
            self.result.add(note)
            self.trace.add_batch(Trace.of(note.trace))
            self.watch.add(note.seconds)
        for image in self.result.images:
            self.saved.add_saved(self.folder.path / image.file)

    def _mine(self, size: int) -> list[int]:
        """The first image of each of this rank's batches."""
        return list(range(0, len(self.seeds), size))[self.rank :: self.world]

    def _notes(self) -> dict[int, Checkpoint]:
        """The batches that are there whole, by their first image."""
        found = {}
        for file in sorted(self.folder.path.glob(f"{_NOTE}*.json")):
            try:
                note = record.read_checkpoint(file)
            except (NoRecord, DamagedRecord):
                continue
            same = note.identity == self.job.digest and note.versions == environment.versions()
            if same and note.images and not self.folder.flaw(note.images):
                found[int(file.stem.removeprefix(_NOTE))] = note
        return found


def _note(folder: Path, first: int) -> Path:
    return folder / f"{_NOTE}{first:05d}.json"


def check_launcher(target: str, accepted: str) -> None:
    """See that only one of the two hands jobs out.

    Raises:
        ConfigError: a launcher is named under ``torchrun``.
    """
    if environment.world() > 1 and target != accepted:
        raise ConfigError(
            f"hydra/launcher: found {target.rpartition('.')[2]} under torchrun, which starts the processes itself; "
            "accepted is basic."
        )
