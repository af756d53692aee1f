"""Chunks: the jobs that a worker is given at once. Those of a chunk share a model, so that the worker loads it once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from research.jobs.job import Job
from research.jobs.job_images import image_count
from research.jobs.job_status import JobStatus
from research.jobs.record import write
from research.jobs.shared_batches import SharedBatches

FOLDER = ".chunks"  # in the folder of a sweep; gone when the sweep has ended
_dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def chunks(jobs: Sequence[Job], workers: int) -> list[list[Job]]:
    """Deal jobs out to workers, the largest chunk first.

    A chunk holds jobs of one model; jobs that are sampled together stay together. There are as many chunks as workers, or as
    models if there are more of these.

    Args:
        jobs: in the order in which they would run one after the other; each chunk keeps it.
        workers: how many there are, from 1.
    """
    by_model: dict[str, list[Job]] = {}
    for job in jobs:
        by_model.setdefault(repr(job.config["model"]), []).append(job)
    groups = [SharedBatches().units(group) for group in by_model.values()]
    shares = [1] * len(groups)
    for _ in range(workers - len(groups)):
        # one more chunk for the model whose chunks are the largest
        loads = [
            sum(sum(map(work, unit)) for unit in group) / share if share < len(group) else 0
            for group, share in zip(groups, shares, strict=True)
        ]
        if not any(loads):
            break
        shares[loads.index(max(loads))] += 1
    found = [chunk for group, share in zip(groups, shares, strict=True) for chunk in _dealt(group, share)]
    return sorted(found, key=lambda chunk: -sum(map(work, chunk)))


def work(job: Job) -> int:
    """How much a job is to do, next to others of its model: steps times images."""
    return int(job.config["steps"]) * image_count(job.config)


def _dealt(together: Sequence[list[Job]], count: int) -> list[list[Job]]:
    """The largest first, each to who has the least."""
    hands: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    sizes = [sum(map(work, unit)) for unit in together]
    for place in sorted(range(len(together)), key=lambda place: -sizes[place]):
        lightest = loads.index(min(loads))
        hands[lightest].append(place)
        loads[lightest] += sizes[place]
    return [[job for place in sorted(hand) for job in together[place]] for hand in hands if hand]


@dataclass
class Chunk:
    """What a worker is told: which jobs, as they were planned, and where.

    Nothing is composed again in a worker, so that a YAML file edited meanwhile changes no job.

    Attributes:
        launcher: by Hydra's name, for the record.
        jobs: in the order in which they run.
        before: for each job, what tells a result that was there before the launch from one made since; see `JobStatus.stamp`.
        folder: the working folder, to which relative paths refer.
        sys_path: where classes of the user's own are found.
        devices: visible devices of which the worker shall take a free one; empty where the engine sees to that.
    """

    launcher: str
    jobs: list[Job]
    before: list[list[int] | None]
    folder: str = field(default_factory=os.getcwd)
    sys_path: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)

    def save(self) -> Path:
        """Write it into the folder of its first job's sweep, under a name that equal chunks share.

        Raises:
            StoreError: the disk does not take it.
        """
        plain = {**vars(self), "jobs": [asdict(job) for job in self.jobs]}
        content = yaml.dump(plain, Dumper=_dumper, sort_keys=False, allow_unicode=True).encode()
        file = self.jobs[0].folder.path.parent.absolute() / FOLDER / f"{_name(content)}.yaml"
        file.parent.mkdir(exist_ok=True)
        write(file, content)
        return file

    @classmethod
    def load(cls, file: Path) -> Chunk | None:
        """Read what `save` wrote; None if it is gone, as its sweep has ended without it."""
        try:
            plain = yaml.load(file.read_bytes(), Loader=_loader)
        except FileNotFoundError:
            return None
        return cls(**{**plain, "jobs": [Job(**job) for job in plain["jobs"]]})


def make(
    launcher: str, jobs: Sequence[Job], before: Mapping[Path, JobStatus], sys_path: Sequence[str], **more: Any
) -> Chunk:
    """A chunk of jobs that stood as `before` says when they were launched."""
    stamps = [before[job.folder.path].stamp for job in jobs]
    return Chunk(launcher, list(jobs), [s and list(s) for s in stamps], sys_path=list(sys_path), **more)


def tidy(sweep_dir: Path) -> None:
    """Remove the chunks of a sweep that has ended; a worker that comes too late finds nothing to do."""
    folder = sweep_dir / FOLDER
    for file in folder.glob("*"):
        file.unlink(missing_ok=True)
    if folder.is_dir():
        folder.rmdir()


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
