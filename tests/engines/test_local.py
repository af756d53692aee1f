"""Workers on this machine: joblib and submitit_local, one of which is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from sweeps import Results, Sweep, at_work, check_loads, check_nothing_left, images


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_killed_worker_loses_what_it_was_at(
    launcher: str, tmp_path: Path, models: list[Path], reference: Results
) -> None:
    more = [f"hydra/launcher={launcher}", "runtime.workers=2"]
    with Sweep(tmp_path / "here", models, *more, pause=0.3, env={"CUDA_VISIBLE_DEVICES": "3,5"}) as sweep:
        sweep.wait_for(lambda: len(sweep.results()) >= 4 and len(at_work(sweep.folder)) == 2, "two at work")
        done, victim = sweep.results(), next(iter(at_work(sweep.folder).values()))
        os.kill(victim, signal.SIGKILL)
        shown = sweep.end()
    results = sweep.results()
    assert images(results) == images(reference)
    assert {job: results[job] for job in done} == done  # nothing that was done is done again
    check_loads(results)
    check_nothing_left(sweep.folder)
    assert "12 jobs in 2 chunks for 2 workers" in shown
    assert "left; they go to" in shown
    # two workers at a time, each with a device of its own
    assert {result["worker"]["visible_devices"] for result in results.values()} == {"3", "5"}
    devices = {(r["worker"]["pid"], r["worker"]["visible_devices"]) for r in results.values()}
    assert len(devices) == len({pid for pid, _ in devices})
