"""The group `sigmas` on the command line: an axis of sweeps, part of a job's identity, short lists, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from research.cli import run
from research.errors import ConfigError
from research.jobs.compose import Composer
from research.jobs.job import Job
from research.jobs.planning import plan
from research.models import load_model
from research.package import config_dir
from research.sampling import LoopSampler
from research.sigmas import Given, Karras
from research.tasks import TextToImage

QUIET = ["metrics=none", "tracker=none", "prompts=[pizza on a blue background]", "runtime.threads=1"]
GRIDS = sorted(file.stem for file in (config_dir() / "sigmas").glob("*.yaml"))


def jobs(*points: str) -> list[Job]:
    """The jobs of some points, each a line of overrides."""
    with Composer() as composer:
        master = composer.master([])
        return [plan(composer, master, [composer.normalise([*QUIET, *point.split()])])[0] for point in points]


def test_each_choice_composes_and_is_a_job_of_its_own() -> None:
    more = {"list": " sigmas.sigmas=[14,1] steps=2"}
    points = [f"sigmas={name}{more.get(name, '')}" for name in GRIDS if name != "file"]
    assert len({job.id for job in jobs(*points)}) == len(points) > 15


def test_defaults_said_and_names_make_no_other_job() -> None:
    plain, said, karras, by_default, other = jobs(
        "steps=5",
        "steps=5 sigmas=model",
        "sigmas=karras",
        "sigmas=karras sigmas.rho=7 sigmas.name=mine",
        "sigmas=karras sigmas.rho=5",
    )
    assert plain.id == said.id
    assert karras.id == by_default.id != other.id


def test_a_short_list_is_the_choice_list_and_brings_its_steps() -> None:
    sigmas, timesteps = jobs("sigmas=[14.6,6.5,1,0]", "timesteps=[999,500]")
    assert sigmas.config["steps"] == 3
    assert sigmas.config["sigmas"]["sigmas"] == [14.6, 6.5, 1, 0]
    assert timesteps.config["steps"] == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["sigmas=karas"], "sigmas: unknown sigmas 'karas'. Did you mean 'karras'"),
        (["sigmas=karras", "sigmas.rh=3"], "sigmas.rh: unknown key"),
        (["sigmas=karras", "sigmas.rho=-1"], "sigmas.rho: found -1"),
        (["sigmas.rho=3"], "sigmas.rho: found without sigmas._target_"),
        (["timesteps=[999,500]", "steps=4"], "steps: found 4 with sigmas of 2 steps; accepted is 2"),
        (["sigmas=[14,1]", "timesteps=[999,500]"], "timesteps: found with sigmas"),
        (["sigmas=[1,2,0]"], "rises"),
    ],
)
def test_bad_input_is_one_line_at_planning(lines, said, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*QUIET, *lines]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_levels_beyond_the_model_are_refused_before_anything_runs(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*QUIET, "sigmas=[80,1,0]"]) == 2
    assert (
        "found 80, beyond what the model knows; accepted are sigmas from 0.02917 to 14.615" in capsys.readouterr().err
    )
    assert run([*QUIET, "sigmas=flow_shift"]) == 2
    assert "this model predicts noise" in capsys.readouterr().err


def test_a_file_is_a_job_by_what_is_in_it(tmp_path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("sigmas: [14.6, 2.0, 0.0]\n")
    second.write_text(first.read_text())
    one, same = jobs(*(f"sigmas=file sigmas.path={file} steps=2" for file in (first, second)))
    assert one.id == same.id
    second.write_text("sigmas: [14.6, 3.0, 0.0]\n")
    (other,) = jobs(f"sigmas=file sigmas.path={second} steps=2")
    assert other.id != one.id


def test_a_sweep_has_them_as_an_axis_and_pictures_carry_them(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["-m", *QUIET, "sigmas=karras,model", "steps=2", "scheduler=euler", "guidance=none"]) == 0
    table = capsys.readouterr().out
    assert "sigmas" in table
    assert "karras" in table
    from research.jobs.images import recipe

    carried = [recipe(file)["sigmas"]["name"] for file in sorted(Path("outputs/default").glob("*/images/*.png"))]
    assert sorted(carried) == ["karras", "model"]
    results = [json.loads(file.read_text()) for file in Path("outputs/default").glob("*/result.json")]
    assert sorted(result["config"]["sigmas"]["name"] for result in results) == ["karras", "model"]


def test_a_sweep_may_be_over_lists(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["-m", "--plan", *QUIET, "sigmas=[14.6,6.5,0],[14.6,2.0,0]", "steps=2"]) == 0
    told = capsys.readouterr().out
    assert "[14.6,6.5,0]" in told
    assert "[14.6,2.0,0]" in told


def test_the_sampler_takes_lists_arrays_and_grids() -> None:
    model = load_model("emoji")
    task = TextToImage("pizza on a blue background")
    values = [level.sigma for level in Karras().levels(model.solvers("euler").trained, 3)]

    def latents(sigmas):
        return LoopSampler(model, "euler", sigmas=sigmas).sample(task, seeds=[0], steps=3).latents

    expected = latents(Karras())
    for given in (values, torch.tensor(values, dtype=torch.float64), Given(values)):
        torch.testing.assert_close(latents(given), expected, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="steps: found 5 with the list of 3 steps"):
        LoopSampler(model, "euler", sigmas=values).sample(task, seeds=[0], steps=5)
    with pytest.raises(ConfigError, match="sigmas: found 'karras'"):
        LoopSampler(model, "euler", sigmas="karras")


@pytest.mark.slow
def test_the_solver_error_of_a_list_has_a_finer_list_as_its_reference(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for line in QUIET if not line.startswith("metrics")]
    assert (
        run(
            [*lines, "sigmas=[14.6,3,0.5,0]", "metrics=solver_error", "metrics.solver_error.times=4", "scheduler=euler"]
        )
        == 0
    )
    (file,) = Path("outputs/default").glob("*/result.json")
    assert json.loads(file.read_text())["metrics"]["solver_error"] > 0
