"""A real Slurm: an array of chunks, of which one task is cancelled, one is requeued, and one has its node die."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Slurm, missing
from sweeps import Results, Sweep, check_loads, check_nothing_left, images


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if absent := missing():
        pytest.fail(f"not installed: {', '.join(absent)}; apt-get install slurm-wlm munge")
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def running(slurm: Slurm) -> list[str]:
    return [task for task, state in slurm.tasks().items() if state == "RUNNING"]


def release(slurm: Slurm) -> None:
    """Start requeued tasks now: Slurm itself would let them wait for two minutes."""
    for task, state in slurm.tasks().items():
        if state == "PENDING":
            with contextlib.suppress(AssertionError):
                slurm("scontrol", "update", f"JobId={task}", "StartTime=now")


def test_a_sweep_outlives_what_happens_to_its_tasks(
    slurm: Slurm, tmp_path: Path, models: list[Path], reference: Results
) -> None:
    more = ["hydra/launcher=submitit_slurm", "runtime.workers=3", "runtime.grace=5"]
    with Sweep(tmp_path / "here", models, *more, pause=0.5, env=slurm.env) as sweep:

        def worked(task: str) -> bool:
            """Whether a task has done a job, and is at another."""
            own = [f"{r['worker']['slurm_job']}" for r in sweep.results().values()]
            return slurm("squeue", "--noheader", f"--jobs={task}", "--format=%A").strip() in own

        def one_at_work() -> str | None:
            return next((task for task in running(slurm) if task not in disturbed and worked(task)), None)

        disturbed: list[str] = []
        done: Results = {}

        cancelled = sweep.wait_for(one_at_work, "a task to cancel")
        done.update(sweep.results())
        slurm("scancel", cancelled)
        disturbed.append(cancelled)

        requeued = sweep.wait_for(one_at_work, "a task to requeue")
        done.update(sweep.results())
        slurm("scontrol", "requeue", requeued)
        disturbed.append(requeued)
        release(slurm)

        def node_at_work() -> str | None:
            release(slurm)
            return next((node for node in ("n1", "n2") if slurm.steps_of(node)), None)

        node = sweep.wait_for(node_at_work, "a node at work")
        done.update(sweep.results())
        slurm.kill_node(node)
        sweep.wait_for(lambda: any(s.startswith("down") for s in slurm.states()), "the node down")
        slurm.start_node(node)
        while sweep.process is not None and sweep.process.poll() is None:
            release(slurm)
            with contextlib.suppress(Exception):
                sweep.process.wait(1)
        shown = sweep.end()
    results = sweep.results()
    assert images(results) == images(reference)
    assert {job: results[job] for job in done} == done  # nothing that was done is done again
    check_loads(results)
    check_nothing_left(sweep.folder)
    assert "12 jobs in 3 chunks" in shown
    assert {result["worker"]["launcher"] for result in results.values()} == {"submitit_slurm"}
    assert any(result["worker"]["restarts"] != "0" for result in results.values() if "restarts" in result["worker"])
