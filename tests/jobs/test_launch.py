"""What a launch does about workers that die, never begin, or meet a job that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from research.errors import UserError
from research.jobs.engines import chunks
from research.jobs.engines.chunks import Chunk
from research.jobs.engines.launch import launch
from research.jobs.job import Job


def make_jobs(folder: Path, count: int, **more: Any) -> list[Job]:
    common = {"model": {"path": "a"}, "steps": 1, "runtime": {"workers": 2}, "resume": True, "on_failure": "continue"}
    common |= {
        "scheduler": {"name": "ddim", "class_name": "DDIMScheduler"},
        "guidance": {},
        "task": {},
        "prompts": [],
        "seed": 0,
    }
    places = {"output_dir": str(folder), "sweep_name": "s"}
    (folder / "s").mkdir()
    return [Job({**common, **places, **more}, id=f"job{k}", digest=f"job{k}") for k in range(count)]


class Engine:
    """Stands for a launcher: `worker` is given each chunk's jobs, and raises to die."""

    def __init__(self, worker: Callable[[list[Job]], None]):
        self.worker, self.launches = worker, []

    def launch(self, points: Any, initial_job_idx: int) -> list[Any]:
        given = [Chunk.load(Path(point[0].partition("=")[2])).jobs for point in points]
        self.launches.append([[job.id for job in jobs] for jobs in given])
        for jobs in given:
            self.worker(jobs)
        return [SimpleNamespace(return_value={"stopped": None}) for _ in given]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    monkeypatch.setattr(chunks, "image_count", lambda config: 1)
    monkeypatch.setattr(chunks.SharedBatches, "units", lambda self, jobs: [[job] for job in jobs])

    def run(jobs: list[Job], worker: Callable[[list[Job]], None]) -> tuple[Any, Engine]:
        engine = Engine(worker)
        monkeypatch.setattr(Plugins.instance(), "instantiate_launcher", lambda *args: engine)
        hydra = {"launcher": {"_target_": "an.Engine"}, "sweep": {"dir": str(tmp_path)}, "overrides": {}}
        return launch(jobs, OmegaConf.create({"hydra": hydra})), engine

    return run


def begin(job: Job) -> None:
    job.folder.path.mkdir(exist_ok=True)
    (job.folder.path / "config.yaml").touch()


def end(job: Job, status: str = "done") -> None:
    begin(job)
    result = {"job_id": job.id, "status": status, "error": None, "images": [], "metrics": {}}
    (job.folder.path / "result.json").write_text(json.dumps(result))


def test_what_a_dead_worker_left_is_run_and_what_was_done_is_not(tmp_path: Path, run: Any) -> None:
    died = []

    def worker(jobs: list[Job]) -> None:
        for job in jobs:
            begin(job)
            if job.id == "job2" and not died:
                died.append(job.id)
                raise RuntimeError("killed")
            end(job)

    outcome, engine = run(make_jobs(tmp_path, 6), worker)
    assert not outcome.failed
    assert len(outcome.results) == 6
    # the first chunk was dealt job0, job2, job4; its worker died at the second, and the other chunk was never begun
    again = [job for chunk in engine.launches[1] for job in chunk]
    assert sorted(again) == ["job1", "job2", "job3", "job4", "job5"]
    assert any(chunk[-1] == "job2" for chunk in engine.launches[1])  # last, so that it harms no other
    assert not (tmp_path / "s" / ".chunks").exists()


def test_a_job_that_kills_its_workers_is_given_up(tmp_path: Path, run: Any) -> None:
    def worker(jobs: list[Job]) -> None:
        for job in jobs:
            begin(job)
            if job.id == "job1":
                raise RuntimeError("killed")
            end(job)

    outcome, engine = run(make_jobs(tmp_path, 4), worker)
    assert [result.job_id for result in outcome.failed] == ["job1"]
    assert "worker ended" in str(outcome.failed[0].error)
    assert sum("job1" in chunk for launched in engine.launches for chunk in launched) == 3


def test_workers_that_never_begin_end_the_launch(tmp_path: Path, run: Any) -> None:
    def worker(jobs: list[Job]) -> None:
        raise OSError("no such interpreter")

    with pytest.raises(UserError, match="before they begin a job: OSError: no such interpreter"):
        run(make_jobs(tmp_path, 4), worker)


def test_a_failed_job_stops_the_launch_if_it_shall(tmp_path: Path, run: Any) -> None:
    def worker(jobs: list[Job]) -> None:
        for job in jobs:
            end(job, "failed" if job.id == "job0" else "done")
            if job.id == "job0":
                return

    outcome, engine = run(make_jobs(tmp_path, 4, on_failure="stop"), worker)
    assert len(engine.launches) == 1
    assert [result.job_id for result in outcome.failed] == ["job0"]
    assert outcome.left_out == 1
