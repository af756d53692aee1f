"""Solver error and convergence order: known answers, and the embedded model through the command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.metric_samples import pictures

from research.errors import ConfigError
from research.jobs import scoring
from research.jobs.compose import Composer
from research.jobs.sweep import plan
from research.metrics import ScoredJob, SolverError, check_metric, fit_order, per_image
from research.metrics.job import Grid
from research.metrics.saved_features import read_features


@settings(max_examples=50, deadline=None)
@given(order=st.floats(0.3, 4), constant=st.floats(1e-3, 1e3))
def test_the_order_of_a_power_law_is_found(order, constant):
    steps = [5, 10, 20, 40]
    found = fit_order(steps, [constant * n**-order for n in steps])
    assert found.order == pytest.approx(order, rel=1e-9)
    assert found.constant == pytest.approx(constant, rel=1e-8)
    assert found.error(80) == pytest.approx(constant * 80**-order, rel=1e-8)
    assert found.r2 == pytest.approx(1)
    assert found.se == pytest.approx(0, abs=1e-6)


def test_the_standard_error_is_the_scatter_of_fits():
    generator = torch.Generator().manual_seed(0)
    steps = [4, 8, 16, 32, 64]
    noisy = [
        fit_order(steps, [n**-2 * math.exp(0.1 * float(torch.randn((), generator=generator))) for n in steps])
        for _ in range(500)
    ]
    orders = torch.tensor([fit.order for fit in noisy])
    assert float(orders.mean()) == pytest.approx(2, abs=0.01)
    rms = math.sqrt(sum(fit.se**2 for fit in noisy) / len(noisy))
    assert rms == pytest.approx(float(orders.std()), rel=0.1)


@pytest.mark.parametrize(
    ("steps", "errors", "pattern"),
    [
        ([5], [0.1], "two different ones"),
        ([5, 5], [0.1, 0.2], "two different ones"),
        ([5, 10], [0.1], "one error each"),
        ([5, 10], [0.1, 0.0], "errors: found 0.0"),
        ([0, 10], [0.1, 0.1], "steps: found 0"),
        ([5, 10], [0.1, math.nan], "errors: found nan"),
    ],
)
def test_what_has_no_order_is_one_line(steps, errors, pattern):
    with pytest.raises(ConfigError, match=pattern):
        fit_order(steps, errors)


def test_a_reference_that_begins_below_the_job_gives_no_number():
    def grid(steps, scheduler):
        return Grid({0: 3.0 if steps == 100 else 10.0, 1: 0.1}, 0.0)

    for wanted, count in ((100, 1), (99, 0)):
        one = replace(job(10, 400, Trajectories()), grid=grid)
        result = SolverError(steps=wanted).compute(pictures(3, seed=0), device="cpu", job=one)
        assert len(result.info["warnings"]) == count
        assert ("solver_error" in result.values) == (count == 0)
        assert all("begins at noise level 3, below the job's own 10" in line for line in result.info["warnings"])
    nothing = replace(job(10, 401, Trajectories()), grid=grid, finer=lambda *asked: None)
    result = SolverError().compute(pictures(3, seed=0), device="cpu", job=nothing)
    assert result.values == {}
    assert "no reference of 20 to 1000 steps begins at" in result.info["warnings"][0]


def test_what_the_grid_never_reaches_is_told_apart():
    """The reference's path ends at 0; by one step from the job's last level, 1, it would end at 0.25."""
    sample = Trajectories()
    grids = {
        4: Grid({0: 10.0, 3: 1.0}, 0.0),
        40: Grid({0: 10.0, 20: 1.0, 39: 0.1}, 0.0),
        50: Grid({0: 10.0, 20: 4.0, 21: 0.25}, 0.0),
    }

    def path(steps, scheduler, at):
        assert at == {40: (20,), 50: (20, 21)}[steps]
        return sample.ends, [
            sample.ends + 0.25 if len(at) == 1 else sample.ends + share for share in (0.2, 0.3)[: len(at)]
        ]

    for count in (40, 50):
        one = replace(
            job(4, 500, sample), grid=lambda steps, scheduler: grids[steps], finer=lambda *asked, n=count: n, path=path
        )
        values = SolverError().compute(pictures(3, seed=0), device="cpu", job=one).values
        assert values["solver_error"] == pytest.approx(0.25, rel=1e-5)
        assert values["solver_error_grid"] == pytest.approx(0, abs=1e-6)
        assert values["solver_error_grid_se"] == pytest.approx(0, abs=1e-6)


@pytest.mark.spread(1)
@pytest.mark.parametrize(("scheduler", "steps"), [("ddim", 51), ("dpmpp_2m", 10), ("ddim_trailing", 4)])
def test_the_reference_of_the_embedded_model_begins_where_the_job_does(scheduler, steps):
    with Composer(None, "config", None) as composer:
        lines = composer.normalise(
            ["model=emoji", f"scheduler={scheduler}", f"steps={steps}", "prompts=[pizza]", "metrics=[]", "tracker=none"]
        )
        config = plan(composer, composer.master(lines), [lines])[0].config
    found = scoring._finer(config, steps, None, 10 * steps, (2 * steps, 1000))
    own, reference = (scoring._grid(config, count, None) for count in (steps, found))
    assert reference.first == pytest.approx(own.first, rel=1e-3)
    assert reference.last <= own.last
    if steps == 4:  # and the metric of it, by the exact model
        images = pictures(1, seed=0)
        result = scoring.ask(
            config | {"metrics": {"solver_error": {}}},
            "solver_error",
            SolverError(times=3),
            images,
            ["pizza"],
            [0],
            "cpu",
            NoFolder,
        )
        assert 0 < result.values["solver_error_grid"] < 10 * result.values["solver_error"]
        assert result.info["reference_steps"] == 12


class NoFolder:
    """Where a job's folder is asked for, and nothing is kept."""

    path = None


class Trajectories:
    """Latents that lie ``1 / steps`` (times the scheduler's factor) off their end, in every number."""

    def __init__(self):
        self.asked = []
        self.ends = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    def __call__(self, steps, scheduler=None):
        self.asked.append((steps, scheduler))
        return self.ends + (0.5 if scheduler == "heun" else 1.0) / steps


def job(steps, seed, sample=None, **scheduler) -> ScoredJob:
    named = {"name": "ddim", "class_name": "DDIMScheduler", "options": {}, **scheduler}
    config = {"steps": steps, "seed": seed, "scheduler": named, "task": {"_target_": "x"}, "prompts": ["a"]}
    return ScoredJob(config, [seed, seed + 1, seed + 2], sample)


def test_the_error_is_the_distance_to_the_reference_image_by_image():
    sample = Trajectories()
    result = SolverError().compute(pictures(3, seed=0), device="cpu", job=job(10, 100, sample))
    assert sample.asked == [(10, None), (100, None)]
    assert result.values["solver_error"] == pytest.approx(1 / 10 - 1 / 100, rel=1e-5)
    assert result.info["per_image"] == pytest.approx([0.09] * 3, rel=1e-4)
    assert (result.info["reference_scheduler"], result.info["reference_steps"]) == ("ddim", 100)
    orders = [
        SolverError(steps=1000)
        .compute(pictures(3, seed=0), device="cpu", job=job(n, 200, sample))
        .values["solver_error"]
        for n in (5, 10, 20, 40)
    ]
    assert fit_order([5, 10, 20, 40], orders).order == pytest.approx(1, abs=0.03)


def test_jobs_with_one_reference_share_it_and_others_do_not():
    sample, metric = Trajectories(), SolverError(steps=500, scheduler="heun")
    for steps, name in ((5, "ddim"), (10, "ddim"), (5, "dpmpp_2m")):
        metric.compute(pictures(3, seed=0), device="cpu", job=job(steps, 300, sample, name=name))
    assert sample.asked.count((500, "heun")) == 1
    metric.compute(pictures(3, seed=0), device="cpu", job=job(5, 301, sample))
    assert sample.asked.count((500, "heun")) == 2

    def mark(about):
        return metric.compute(pictures(3, seed=0), device="cpu", job=about).info["comparable"]

    assert mark(job(5, 300, sample)) == mark(job(10, 300, sample, name="euler"))
    assert mark(job(5, 300, sample)) != mark(job(5, 301, sample))


@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "ddpm", "class_name": "DDPMScheduler"},
        {"name": "euler_a", "class_name": "EulerAncestralDiscreteScheduler"},
        {"options": {"eta": 1.0}},
        {"name": "sde", "class_name": "DPMSolverMultistepScheduler", "options": {"algorithm_type": "sde-dpmsolver++"}},
    ],
)
def test_schedulers_that_draw_noise_are_refused_when_the_job_is_planned(scheduler):
    with pytest.raises(ConfigError, match="draws noise at its steps"):
        check_metric(SolverError(), 3, job(10, 0, **scheduler).config)


def test_a_reference_that_is_no_finer_is_refused_and_a_little_finer_one_is_told():
    with pytest.raises(ConfigError, match="found a reference of 15 steps for a job of 10; accepted is at least twice"):
        check_metric(SolverError(steps=15), 3, job(10, 0).config)
    with pytest.raises(ConfigError, match="found a reference of 1000 steps for a job of 600"):
        check_metric(SolverError(), 3, job(600, 0).config)
    result = SolverError().compute(pictures(3, seed=0), device="cpu", job=job(200, 400, Trajectories()))
    assert "the reference has 1000 steps, 5.0 times the job's" in result.info["warnings"][0]
    with pytest.raises(ConfigError, match="needs to sample the job again"):
        SolverError().compute(pictures(3, seed=0), device="cpu", job=job(10, 0))


@pytest.mark.slow
def test_jobs_of_the_embedded_model_get_all_of_this_from_the_command_line(tmp_path):
    """One sweep of two jobs: the error falls with the steps; values of each image and features are left."""
    records = _sweep(tmp_path)
    few, many = records[2][1], records[6][1]
    assert many["metrics"]["solver_error"] < 0.6 * few["metrics"]["solver_error"]
    names = "fid kid kid_se cmmd precision recall density coverage"
    assert few["metrics"].keys() >= set(names.split())
    assert len(per_image(few)["solver_error"]) == 5
    for folder, record in records.values():
        for name in ("fid", "kid", "cmmd", "prdc"):
            vectors = read_features(folder, record["metrics_info"][name]).vectors
            assert vectors.shape == (5, 128)


@pytest.mark.slow
def test_scoring_again_agrees_and_what_a_task_cannot_have_is_refused_before_anything_is_made(tmp_path):
    folder, few = _sweep(tmp_path)[2]
    done = _python("research.score_cli", str(tmp_path / "s"), "--again")
    assert done.returncode == 0, done.stderr
    again = json.loads((folder / "result.json").read_text())
    assert again["metrics"] == pytest.approx(few["metrics"], rel=1e-5)
    assert again["metrics_info"]["fid"]["features_sha256"] == few["metrics_info"]["fid"]["features_sha256"]
    done = _python("research", "metrics=ssim", "tracker=none", f"output_dir={tmp_path}/none")
    assert done.returncode != 0
    assert "metrics.ssim: compares images with the picture they were started from, and task" in done.stderr
    assert not (tmp_path / "none").exists()


def _sweep(tmp_path: Path) -> dict[int, tuple[Path, dict]]:
    """Folders and records by steps."""
    settings = ["model=emoji", "steps=2,6", "prompts=[pizza on a blue background]", "images_per_prompt=5"]
    settings += [
        "metrics=[set,solver_error]",
        "metrics.prdc.k=3",
        "metrics.solver_error.times=4",
        "tracker=none",
        "runtime.threads=1",
    ]
    done = _python("research", "-m", *settings, f"output_dir={tmp_path}", "sweep_name=s")
    assert done.returncode == 0, done.stderr
    found = {}
    for file in tmp_path.glob("s/*/result.json"):
        record = json.loads(file.read_text())
        found[record["config"]["steps"]] = (file.parent, record)
    return found


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=600)
