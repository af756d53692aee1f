"""Jobs dealt out to workers, chunks on disk, and devices for workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from research.errors import ConfigError
from research.jobs import environment
from research.jobs.engines import chunks, engines, ranks, workers
from research.jobs.job import Job
from research.jobs.job_status import JobStatus
from research.jobs.overrides import normalise


def job(name: str, model: str = "a", steps: int = 10, folder: Path = Path("out")) -> Job:
    config: dict[str, Any] = {
        "model": {"path": model},
        "task": {},
        "prompts": ["fox"],
        "images_per_prompt": 1,
        "steps": steps,
        "seed": 0,
        "guidance": {"scale": None},
        "hooks": {},
        "batch_size": 1,
        "runtime": {},
        "output_dir": str(folder),
        "sweep_name": "s",
        "resume": True,
    }
    return Job(config, ["++a=1e-05"], id=name, digest=name)


@pytest.fixture(autouse=True)
def _one_image_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "image_count", lambda config: 1)


def names(dealt: list[list[Job]]) -> list[list[str]]:
    return [[job.id for job in chunk] for chunk in dealt]


def test_a_chunk_has_one_model() -> None:
    jobs = [job(f"{model}{k}", model) for model in "abc" for k in range(4)]
    for count in (1, 2, 3, 5, 12, 50):
        dealt = chunks.chunks(jobs, count)
        assert sorted(j.id for chunk in dealt for j in chunk) == sorted(j.id for j in jobs)
        assert all(len({j.config["model"]["path"] for j in chunk}) == 1 for chunk in dealt)
        assert 3 <= len(dealt) <= max(3, count)


def test_work_is_dealt_evenly_and_in_order() -> None:
    jobs = [job(str(k), steps=steps) for k, steps in enumerate([50, 10, 10, 10, 10, 10])]
    assert names(chunks.chunks(jobs, 2)) == [["0"], ["1", "2", "3", "4", "5"]]
    assert names(chunks.chunks(jobs, 1)) == [["0", "1", "2", "3", "4", "5"]]


def test_a_model_with_more_work_gets_more_workers() -> None:
    jobs = [job(f"a{k}", "a") for k in range(9)] + [job(f"b{k}", "b") for k in range(3)]
    dealt = chunks.chunks(jobs, 4)
    assert [len(chunk) for chunk in dealt] == [3, 3, 3, 3]


def test_what_is_sampled_together_stays_together(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job(str(k)) for k in range(6)]
    monkeypatch.setattr(chunks.SharedBatches, "units", lambda self, jobs: [jobs[:4], jobs[4:5], jobs[5:]])
    assert names(chunks.chunks(jobs, 3)) == [["0", "1", "2", "3"], ["4"], ["5"]]


def test_a_chunk_on_disk_holds_jobs_as_they_were_planned(tmp_path: Path) -> None:
    jobs = [job("x", folder=tmp_path), job("y", folder=tmp_path)]
    jobs[0].config["guidance"] = {"scale": 1e-05, "many": [1, 2.0, None, "été: 雪", float("inf")]}
    (tmp_path / "s").mkdir()
    before = {jobs[0].folder.path: JobStatus(stamp=(5, 6)), jobs[1].folder.path: JobStatus()}
    chunk = chunks.make("joblib", jobs, before, ["/mine"], devices=["0"])
    file = chunk.save()
    assert chunks.Chunk.load(file) == chunk
    assert chunk.before == [[5, 6], None]
    chunks.tidy(tmp_path / "s")
    assert not list((tmp_path / "s").iterdir())
    assert chunks.Chunk.load(file) is None
    assert workers.run_chunk(OmegaConf.create({"chunk": str(file)})) == {"jobs": 0, "stopped": None}


@pytest.mark.parametrize(
    ("name", "settings", "asked", "devices", "count"),
    [
        ("joblib", {"n_jobs": 3}, "auto", [], 3),
        ("joblib", {"n_jobs": -1}, "auto", ["0", "1", "2", "3"], 4),
        ("joblib", {"n_jobs": -1}, 7, ["0", "1"], 7),
        ("submitit_local", {}, "auto", ["0", "1"], 2),
        ("submitit_slurm", {"array_parallelism": 256}, "auto", [], 25),
        ("submitit_slurm", {"array_parallelism": 8}, "auto", [], 8),
        ("submitit_slurm", {"array_parallelism": 256}, 50, [], 50),
    ],
)
def test_how_many_workers(name: str, settings: Any, asked: Any, devices: list[str], count: int) -> None:
    assert engines.workers(name, OmegaConf.create(settings), asked, 100, devices) == count


DEVICE = """
import sys
from research.jobs import machine_slots
from research.jobs.engines import workers
print(workers.take_device(machine_slots.visible_devices(), sys.argv[1]), flush=True)
sys.stdin.read()
"""


def take(name: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", DEVICE, name],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "4, GPU-5d,-1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.slow
def test_each_worker_has_a_device_of_its_own(tmp_path: Path) -> None:
    sweep = tmp_path.name + str(os.getpid())
    running = [take(sweep) for _ in range(2)]
    assert {device for _, device in running} == {"4", "GPU-5d"}
    third, shared = take(sweep)  # one more than there are devices
    assert shared in ("4", "GPU-5d")
    victim, freed = running[0]
    victim.kill()  # its place is free again, without a word of its own
    victim.wait()
    assert take(sweep)[1] == freed
    for process, _ in [*running, (third, "")]:
        process.kill()
        process.wait()


def test_devices_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert (environment.world(), environment.rank()) == (1, 0)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (environment.world(), environment.rank()) == (4, 3)
    ranks.take_device()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    with pytest.raises(ConfigError, match="accepted is basic"):
        ranks.check_launcher("some.JoblibLauncher", "some.BasicLauncher")


@pytest.mark.parametrize(
    ("launcher", "extra"),
    [("joblib", "joblib"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm"), ("ray", "ray")],
)
def test_a_launcher_that_is_not_installed_names_its_extra(launcher: str, extra: str) -> None:
    with pytest.raises(ConfigError, match=rf"not installed: pip install '.*\[{extra}\]'") as found:
        normalise([f"hydra/launcher={launcher}"], {"hydra/launcher": ["basic"]})
    assert "\n" not in str(found.value)
