"""A real Ray: a head and a worker node, of which one worker process is killed at work."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import HEAD, Ray, missing
from sweeps import Results, Sweep, at_work, check_loads, check_nothing_left, images, pythonpath


@pytest.fixture(scope="module")
def cluster() -> Iterator[Ray]:
    absent = missing() + [n for n in ("ray", "hydra_plugins.hydra_ray_launcher") if not importlib.util.find_spec(n)]
    if absent:
        pytest.fail(
            f"missing: {', '.join(absent)}; apt-get install iproute2 util-linux, pip install '.[ray]', run as root"
        )
    # a short path: Ray keeps sockets below it, whose names may have 107 letters
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    try:
        with Ray(folder / "r", {"PAUSE": "0.3", "PYTHONPATH": pythonpath()}) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_killed_worker_loses_what_it_was_at(
    cluster: Ray, tmp_path: Path, models: list[Path], reference: Results
) -> None:
    more = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={HEAD}", "runtime.workers=2"]
    sweep = Sweep(tmp_path / "here", models, *more, pause=0.3, env=cluster.env)
    sweep.command = cluster.inside(*sweep.command)
    with sweep:
        sweep.wait_for(lambda: len(sweep.results()) >= 4 and len(at_work(sweep.folder)) == 2, "two at work")
        done, victim = sweep.results(), next(iter(at_work(sweep.folder).values()))
        os.kill(victim, signal.SIGKILL)
        shown = sweep.end()
    results = sweep.results()
    assert images(results) == images(reference)
    assert {job: results[job] for job in done} == done  # nothing that was done is done again
    check_loads(results)
    check_nothing_left(sweep.folder)
    assert "ray: 12 jobs in 2 chunks for 2 workers" in shown
    pids = {result["worker"]["pid"] for result in results.values()}
    assert victim in pids
    assert len(pids) in (2, 3)
