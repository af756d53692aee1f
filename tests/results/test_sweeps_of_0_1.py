"""Sweeps that version 0.1.0 wrote are gone on with, compared, reported and scored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from research.cli import run
from research.compare.cli import main as compare
from research.jobs import environment
from research.report.cli import main as report
from research.results.read import read_sweep
from research.score_cli import main as score

OLD = Path(__file__).parents[1] / "data" / "sweeps_0_1" / "old"
BASE = ["sweep_name=old", "tracker=none", "output_dir=.", "runtime.threads=1"]
DONE = {"0e4a46186852", "6159bc76eb42", "df1390b34fef", "fc1ed800e861"}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_done_jobs_are_reused_as_they_are(old, capsys) -> None:
    jobs = {name: contents(old / name) for name in ("6159bc76eb42", "df1390b34fef")}
    lines = ["steps=3", "prompts=[pizza on a blue background]", "images_per_prompt=2"]
    assert run(["scheduler=ddim", "guidance.scale=1", *lines, *BASE]) == 0
    assert run(["scheduler=euler", "guidance.scale=3", *lines, *BASE]) == 0
    assert {name: contents(old / name) for name in jobs} == jobs
    assert capsys.readouterr().err.count("1 of 1 job done before and reused") == 2


def test_an_interrupted_job_goes_on(old, capsys) -> None:
    partial = json.loads((old / "e538a688c3cc" / "partial.json").read_text())
    before = contents(old / "e538a688c3cc" / "images")
    lines = ["steps=40", "images_per_prompt=6", "batch_size=1", "prompts=[fox on a red background]", "metrics=none"]
    assert run([*lines, *BASE]) == 0
    after = contents(old / "e538a688c3cc" / "images")
    assert len(after) == 6
    if partial["versions"] == environment.versions():
        assert "3 of 6 images were made before" in capsys.readouterr().err
        assert {name: after[name] for name in before} == before


def test_it_is_compared(old, capsys) -> None:
    assert compare([str(old / "6159bc76eb42"), str(old / "df1390b34fef"), "--json"]) == 0
    told = capsys.readouterr().out
    assert "clip_score" in told
    assert json.loads(told)


def test_it_is_reported(old) -> None:
    assert report([str(old)]) == 0
    page = (old / "report.html").read_text()
    assert all(name in page for name in DONE)
    assert "437fe69cd3dc" in page  # the failed one


@pytest.mark.slow
def test_it_is_scored(old, capsys) -> None:
    assert score([str(old), "metrics=clip_score"]) == 1  # one job had failed
    assert "437fe69cd3dc: " in capsys.readouterr().err
    done = read_sweep(old).done
    assert {row.job_id for row in done} > DONE  # with other metrics it is another job, beside the old one
    by_images: dict[tuple[str | None, ...], list[float]] = {}
    for row in done:
        by_images.setdefault(tuple(i.sha256 for i in row.images), []).append(row.metrics["clip_score"])
    assert all(max(values) - min(values) < 1e-3 and len(values) > 1 for values in by_images.values())
