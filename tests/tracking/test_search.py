"""Searches: Optuna through Hydra, and the sweep for W&B's agents."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb_stub import KEY, Stub

from research.errors import ConfigError
from research.jobs.record import JobResult
from research.jobs.sweep import _number
from research.jobs.sweep_settings import settings_of

ROOT = Path(__file__).parent.parent.parent
RESULT = JobResult(job_id="ab", status="done", metrics={"fid": 7.5, "kid": None}, nfe=20, images_per_second=4.0)


def search(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "research", "-m", "hydra/sweeper=search", f"output_dir={folder}", "sweep_name=s", "tracker=none",
        "prompts=[pizza,cat]", "steps=range(2,5)", "scheduler=ddim,heun", "hydra.sweeper.n_trials=3",
        "hydra.sweeper.sampler.seed=1", *more,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize(("name", "value"), [("fid", 7.5), ("nfe", 20.0), ("seconds", 0.25)])
def test_the_number_of_a_job(name, value):
    assert _number(RESULT, name) == value


def test_a_number_that_no_job_has_ends_the_search(capsys):
    with pytest.raises(SystemExit) as ending:
        _number(RESULT, "fdi")
    assert ending.value.code == 2
    assert "found 'fdi', which job ab has not measured. Did you mean 'fid'?" in capsys.readouterr().err


def test_names_that_cannot_be_used():
    with pytest.raises(ConfigError, match=r"sweep.optimise: found 3; accepted are names"):
        settings_of({"sweep": {"optimise": 3}})
    assert settings_of({"sweep": {"optimise": "fid"}}).optimise == ["fid"]


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed")
@pytest.mark.slow
def test_optuna_searches_and_keeps_its_jobs_like_any_sweep(tmp_path):
    done = search(tmp_path, "sweep.optimise=fid")
    assert done.returncode == 0, done.stderr
    results = [json.loads(file.read_text()) for file in tmp_path.glob("s/*/result.json")]
    best = yaml.safe_load((tmp_path / "s" / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(result["metrics"]["fid"] for result in results)
    assert f"best: {best['best_value']:.4g} at" in done.stdout
    assert (tmp_path / "s" / "report.html").is_file()
    wrong = search(tmp_path, "sweep.optimise=fdi")
    assert (wrong.returncode, "Did you mean 'fid'?" in wrong.stderr) == (2, True)
    silent = search(tmp_path)
    assert silent.returncode == 2
    assert "a search needs a number to improve" in silent.stderr


@pytest.mark.slow
def test_the_sweep_for_agents_names_what_there_is():
    sweep = yaml.safe_load((ROOT / "experiments" / "search" / "wandb_sweep.yaml").read_text())
    assert sweep["metric"]["name"] == "fid"
    point = [
        f"{key}={given['values'][0] if 'values' in given else given['max']}"
        for key, given in sweep["parameters"].items()
    ]
    fixed = [word for word in sweep["command"] if "=" in word]
    done = subprocess.run(
        [sys.executable, "-m", "research", "--plan", "--json", *point, *fixed],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_job_under_an_agent_is_the_run_that_the_agent_named(tmp_path, monkeypatch):
    with Stub() as stub:
        for name, value in {
            "WANDB_API_KEY": KEY, "WANDB_BASE_URL": stub.base_url, "WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "named",
            "WANDB_PROJECT": "research",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        common = ["tracker=wandb_online", "sweep_name=search", f"output_dir={tmp_path}", "prompts=[pizza,cat]"]
        command = [sys.executable, "-m", "research", "guidance.scale=3.5", "steps=2.0", *common]
        assert subprocess.run(command, timeout=600, check=False, capture_output=True).returncode == 0
        assert list(stub.runs) == ["named"]
        assert stub.runs["named"]["summary"]["fid"] > 0
        for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
            monkeypatch.delenv(name)
        sync = [sys.executable, "-m", "research.tracking.cli", "sync", str(tmp_path / "search")]
        said = subprocess.run(sync, timeout=600, check=False, capture_output=True, text=True)
        assert said.stdout.startswith("0 sent, 1 up to date before")
        assert list(stub.runs) == ["named"]
