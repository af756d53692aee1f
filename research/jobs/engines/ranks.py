"""One big job on several processes at once, as ``torchrun`` starts them: the batches of its seeds are dealt out over the ranks.

Rank 0 leads: it holds the claim, says which job is next, and writes the record. Each rank makes every n-th batch, so that the
batches, and with them the images, are those of a single process. A batch is noted on the shared disk as soon as its images are
there; whatever happens to a rank, the next run goes on from these notes, with as many ranks as it has. Metrics that are sums
over images (FID) are summed by each rank over its own images and added up; others are computed by rank 0.

Between the ranks go a few numbers and error lines only, by gloo, on CPUs and GPUs alike.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from research.errors import ConfigError
from research.jobs import environment, job_images, signals
from research.jobs.build import build, guidance_of
from research.jobs.checkpoint import GROWN
from research.jobs.engines.collective import Failed, add, broadcast, connected, together
from research.jobs.faults import batches_that_fit, check
from research.jobs.images import Saved
from research.jobs.job import Job
from research.jobs.machine_slots import VISIBLE, visible_devices
from research.jobs.run_job import Observer, Record
from research.jobs.run_jobs import Outcome
from research.jobs.store import write
from research.metrics.base import AdditiveMetric, as_metric
from research.metrics.score import save

_NOTE = ".batch-"  # beginning of the names of notes, in a job's folder


def take_device() -> None:
    """Make the device of this rank the only one that it sees. To be called before CUDA is set up."""
    if environment.world() > 1 and (devices := visible_devices()):
        os.environ[VISIBLE] = devices[int(os.environ.get("LOCAL_RANK", 0)) % len(devices)]


def alone(jobs: Sequence[Job]) -> Sequence[Job]:
    """The jobs, set so that each is sampled by itself, over all ranks."""
    for job in jobs:
        job.config["runtime"] = {**job.config["runtime"], "vectorise": "off"}
    return jobs


def lead(jobs: Sequence[Job], work: Callable[[], Outcome]) -> Outcome:
    """On rank 0: do the work, the loop over jobs, and tell the others when there is no more."""
    with connected():
        alone(jobs)
        outcome = work()
        broadcast({"end": int(bool(outcome.failed))})
    return outcome


def follow(jobs: Sequence[Job]) -> int:
    """On the other ranks: make a share of each job that rank 0 names, until it names none; return the exit code."""
    by_id = {job.digest: job for job in alone(jobs)}
    with connected(), signals.listening(jobs[0].config["runtime"].get("grace", signals.GRACE)):
        while "end" not in (told := broadcast(None)):
            job = by_id[told["job"]]
            job.id = told["id"]
            with contextlib.suppress(Failed):
                _Share(job).make()
    return int(told["end"])


def run_job(job: Job, observer: Observer | None = None) -> dict[str, Any]:
    """On rank 0: run a job over all ranks; see `runner.run_job`."""
    if not splits(job.config):
        record = Record(job, observer)
        record.begin()
        return record.conclude(record.sample)
    share = _Share(job, observer)
    share.begin()
    broadcast({"job": job.digest, "id": job.id})
    return share.conclude(share.make)


def splits(config: dict[str, Any]) -> bool:
    """Whether a job's images can be made apart: hooks may keep something of all batches, and frames of a path go together."""
    return not config["hooks"] and not job_images.makes_frames(config)


class _Share(Record):
    """What one rank does of a job."""

    def __init__(self, job: Job, observer: Observer | None = None):
        super().__init__(job, observer)
        self.rank, self.world = environment.rank(), environment.world()
        self.result["worker"] = {**(environment.worker or {}), "launcher": "torchrun", "ranks": self.world}
        self.sums: dict[str, tuple[Any, Any]] = {}  # metric and sums, by name

    def begin(self) -> None:
        """Make the job's folder ready: empty, or with the batches that are complete."""
        notes = self._notes() if self.config["resume"] else {}
        keep = [entry["file"] for note in notes.values() for entry in note["images"]]
        self.folder.clear(keep=[*keep, *(_note(self.folder.path, first).name for first in notes)])
        self.folder.write_config(self.config)

    def make(self) -> None:
        """Sample this rank's batches and add up its part of the metrics; on rank 0, put all of it together.

        Raises:
            RuntimeError: some rank could not; the message says which and why.
        """
        sampler, task = together(self._load)
        told = together(lambda: self._first_word(sampler, task) if self.rank == 0 else None)
        told = broadcast(told)
        together(lambda: self._batches(sampler, task, told["size"], set(told["done"])))
        notes = together(self._notes)  # each reads them all, once all are there
        together(lambda: self._add_up(notes, told["size"]))
        self._reduce()
        if self.rank == 0:
            self._merge(notes)
            self.result["batch_size"] = told["size"]
            self.draw(sampler, task)

    def measure(self, name: str, metric: Any) -> Any:
        if name in self.sums:
            own, sums = self.sums[name]
            return save(self.folder.path, own.conclude(sums, device=self.device))
        return super().measure(name, metric)

    def finish(self) -> None:
        super().finish()
        for file in self.folder.path.glob(f"{_NOTE}*"):
            file.unlink(missing_ok=True)

    # -- steps, each of which all ranks take

    def _load(self) -> tuple[Any, Any]:
        sampler = self.sampler(guidance_of(self.config))
        self.use(sampler.model)
        return sampler, self.task(sampler.model)

    def _first_word(self, sampler: Any, task: Any) -> dict[str, Any]:
        """How large batches are, and the first images of those that are there already."""
        size = self.batch_size(sampler, task, -(-len(self.seeds) // self.world))
        done = []
        for first, note in self._notes().items():
            end = min(first + size, len(self.seeds))
            fits = all(note[key] == self.result[key] for key in ("weights_sha256", "device"))
            # batches as they would be made now: another size would leave images between them
            if fits and first % size == 0 and len(note["images"]) == end - first:
                done.append(first)
            else:
                _note(self.folder.path, first).unlink()
        return {"size": size, "done": done}

    def _batches(self, sampler: Any, task: Any, size: int, done: set[int]) -> None:
        mine = [first for first in self._mine(size) if first not in done]
        for place, first in enumerate(mine):

            def progress(step: int, total: int, info: Any, place: int = place) -> None:
                where = f"batch {place + 1} of {len(mine)} on each of {self.world} ranks"
                self.observer(place * total + step, len(mine) * total, where)

            check(self.folder.path)
            batches = batches_that_fit(
                sampler,
                task,
                seeds=self.seeds,
                steps=self.config["steps"],
                size=size,
                rows=range(first, min(first + size, len(self.seeds))),
                progress=progress,
                halved=self.halved,
            )
            for places, made in batches:
                self._keep_noted(made, range(first + places.start, first + places.stop))

    def _keep_noted(self, made: Any, rows: range) -> None:
        """Write a batch's images, and then, that they are there."""
        before, self.watch.seconds = self.watch.seconds, dict.fromkeys(self.watch.seconds, 0.0)
        own: dict[str, Any] = {"images": [], "nfe": None, "nfe_by_branch": {}, "truncated": [], "warnings": []}
        self.result.update(own)
        self.saved, self.trace = Saved(0), {}
        self.keep(made, rows)
        note = {key: self.result[key] for key in (*GROWN, "identity", "versions", "weights_sha256", "device")}
        note.update(trace=self.trace, seconds=self.watch.seconds)
        self.watch.seconds = before
        self.result["out_of_memory"] = []
        write(_note(self.folder.path, rows[0]), json.dumps(note, ensure_ascii=False).encode())

    def _add_up(self, notes: dict[int, dict[str, Any]], size: int) -> None:
        """This rank's part of those metrics that are sums over images."""
        entries = {first + k: e for first, note in notes.items() for k, e in enumerate(note["images"])}
        if missing := len(self.seeds) - len(entries):
            raise RuntimeError(f"{missing} images are not there")
        own, total = Saved(0), len(self.seeds)
        rows = [row for first in self._mine(size) for row in range(first, min(first + size, total))]
        for row in rows:
            own.take(self.folder.path / entries[row]["file"])
        for name, node in self.config["metrics"].items():
            metric = as_metric(build(node, f"metrics.{name}"), name)
            if isinstance(metric, AdditiveMetric):
                self.observer(0, 0, f"scoring {name}")
                with self.watch.phase("metrics", self.device):
                    self.sums[name] = metric, metric.add_up(own, device=self.device, rows=rows, total=total)

    def _reduce(self) -> None:
        for metric, sums in self.sums.values():
            for tensor in metric.parts(sums):
                add(tensor)

    def _merge(self, notes: dict[int, dict[str, Any]]) -> None:
        """The record of all batches, as if one process had made them."""
        self.result.update(images=[], nfe=None, nfe_by_branch={}, truncated=[], warnings=list(self.job.warnings))
        self.saved, self.trace = Saved(), {}
        for _, note in sorted(notes.items()):
            self.result["images"] += note["images"]
            self.result["nfe"] = max(self.result["nfe"] or 0, note["nfe"])
            for branch, count in note["nfe_by_branch"].items():
                by_branch = self.result["nfe_by_branch"]
                by_branch[branch] = max(by_branch.get(branch, 0), count)
            for key in ("truncated", "warnings", "out_of_memory"):
                self.result[key] += [entry for entry in note[key] if entry not in self.result[key]]
            if not self.trace:
                self.trace = note["trace"]
            elif extras := {key: value for key, value in note["trace"].items() if key != "stages"}:
                self.trace.setdefault("batches", []).append(extras)
            self.watch.add(note["seconds"])
        for entry in self.result["images"]:
            self.saved.take(self.folder.path / entry["file"])

    def _mine(self, size: int) -> list[int]:
        """The first image of each of this rank's batches."""
        return list(range(0, len(self.seeds), size))[self.rank :: self.world]

    def _notes(self) -> dict[int, dict[str, Any]]:
        """The batches that are there whole, by their first image."""
        found = {}
        for file in sorted(self.folder.path.glob(f"{_NOTE}*.json")):
            try:
                note = json.loads(file.read_text(encoding="utf-8"))
                same = note["identity"] == self.job.digest and note["versions"] == environment.versions()
                if same and note["images"] and not self.folder.flaw(note):
                    found[int(file.stem.removeprefix(_NOTE))] = note
            except (OSError, ValueError, KeyError, TypeError):
                continue
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
