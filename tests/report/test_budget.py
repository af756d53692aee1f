"""What table, page and advice say of seconds and of a budget; of records with given timings."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.sweep_samples import write_job

from research.report import build_report, read_sweep
from research.report.advice import advise
from research.report.build import judged_by
from research.report.cli import main
from research.report.columns import LATENCY, SECONDS
from research.report.plots import figures
from research.results.budget import read_budget

SCORES = 70 + np.random.default_rng(0).normal(0, 5, 40)


def job(place: Path, steps: int, gain: float, number: int, factor: float = 1.0, **record: Any) -> Path:
    """A job that scores so much more than the others, and takes 0.01 s an evaluation, times a factor."""
    folder = write_job(place, steps=steps, scale=1.0, number=number, prompts=[f"p{k}" for k in range(40)])
    content = json.loads((folder / "result.json").read_text())
    wobble = np.sin(np.arange(40.0) + number)
    scores = SCORES + gain + wobble - wobble.mean()
    content["metrics"] = {"clip_score": float(scores.mean())}
    content["metrics_info"]["clip_score"]["per_image"] = scores.tolist()
    content["timings"]["denoise"] = 0.01 * steps * 40 * factor
    (folder / "result.json").write_text(json.dumps({**content, **record}))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Five step counts, better from one to the next; the fourth was disturbed."""
    for number, (steps, gain) in enumerate([(5, 0.0), (10, 4.0), (20, 8.0), (25, 12.0), (50, 16.0)]):
        job(tmp_path, steps, gain, number, factor=3.0 if steps == 25 else 1.0)
    return tmp_path


def advised(place: Path, **budget: float) -> Any:
    return advise(replace(read_sweep(place), budget=read_budget("budget", budget)))


def test_advice_is_of_the_settings_inside(sweep):
    assert advise(read_sweep(sweep)).use.settings["steps"] == 50
    advice = advised(sweep, nfe=20)
    assert advice.use.settings["steps"] == 20
    assert advice.headline == "Inside the budget (at most 20 NFE): Use steps 20."
    assert "2 settings cost more than the budget." in advice.reasons
    assert any("The highest CLIP score beyond it is" in line and "of steps 50" in line for line in advice.reasons)
    assert {rung.row.settings["steps"] for rung in advice.ladder} <= {5, 10, 20}
    assert {row.settings["steps"] for _, row in advice.cards} <= {5, 10, 20}


def test_one_or_none_inside(sweep):
    advice = advised(sweep, nfe=9)
    assert advice.use.settings["steps"] == 5
    assert advice.headline == "Inside the budget (at most 9 NFE) there is steps 5 alone."
    none = advised(sweep, nfe=4)
    assert none.use is None
    assert none.headline == "No setting is inside the budget (at most 4 NFE)."
    assert "The least NFE is 5, of steps 5." in none.reasons


def test_seconds_out_of_line_are_not_inside(sweep):
    advice = advised(sweep, seconds=0.3)
    assert advice.use.settings["steps"] == 20
    (line,) = (r for r in advice.reasons if r.startswith("Seconds of 1 setting not known"))
    disturbed = next(row for row in read_sweep(sweep).rows if row.out_of_line)
    assert f"research again {disturbed.folder} --time 5" in line
    assert any("measured once" in doubt for doubt in advice.doubts)


def test_latency_that_was_not_measured_is_said(sweep):
    advice = advised(sweep, latency=1)
    assert advice.use is None
    assert advice.headline.endswith("; of 5 settings it is not known.")
    assert any(f"research again {sweep} --time 5" in line for line in advice.reasons)


def test_the_budget_is_of_the_command_that_was_run_last(sweep, capsys):
    (sweep / "sweep.json").write_text(json.dumps({"format": 1, "budget": {"nfe": 10}}))
    asked = read_sweep(sweep)
    assert advise(asked).use.settings["steps"] == 10
    assert advise(judged_by(asked, budget={"nfe": None})).use.settings["steps"] == 50
    assert main([str(sweep), "--budget", "nfe=20"]) == 0
    assert "Inside the budget (at most 20 NFE)" in (sweep / "report.html").read_text()
    assert main([str(sweep), "--budget", "nfe=none"]) == 0
    assert "Inside the budget" not in (sweep / "report.html").read_text()
    capsys.readouterr()
    assert main([str(sweep), "--budget", "steps=20"]) == 2
    assert "--budget.steps: unknown key" in capsys.readouterr().err
    assert main([str(sweep), "--budget", "20"]) == 2
    assert "--budget: found '20'; accepted is NAME=LIMIT" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.figures  # a caption of theirs
def test_out_of_line_is_marked_and_ranked_nowhere(sweep):
    read = read_sweep(sweep)
    (disturbed,) = (row for row in read.rows if row.out_of_line)
    assert disturbed not in SECONDS.alike(read.done)
    by_seconds = next(p for p in figures(read) if p.name == "clip_score_vs_seconds")
    assert disturbed not in by_seconds.front(read.done)
    text = io.StringIO()
    build_report(sweep, console=Console(file=text, width=200))
    assert "0.751 (once) !" in text.getvalue()
    assert f"To measure them again: research again {disturbed.folder} --time 5" in text.getvalue()
    page = (sweep / "report.html").read_text()
    assert 'title="out of line, and left out: 3.0 times the median seconds an evaluation of the 5 jobs like it"' in page
    assert f"research again {disturbed.folder} --time 5" in page
    assert "Latency was not measured in 5 jobs." in page
    assert "1 job whose seconds are out of line" in page
    with (sweep / "results.csv").open(newline="") as file:
        lines = {line["job_id"]: line for line in csv.DictReader(file)}
    assert lines[disturbed.job_id]["seconds_out_of_line"].startswith("3.0 times")
    assert [line["latency"] for line in lines.values()] == [""] * 5


def test_times_show_their_spread_and_rank_only_with_one(tmp_path):
    for number, seconds in enumerate((1.0, 1.02, 3.0)):
        runs = [{"n_images": 4, "denoise": 4 * seconds * k} for k in (0.9, 1.0, 1.1)]
        one = [{"n_images": 1, "denoise": 2 * seconds}] * 2
        timed = {"created": "x", "device": "cpu", "batch": runs, "one": one}
        job(tmp_path, (5, 10, 20)[number], number, number, timed=timed)
    sweep = read_sweep(tmp_path)
    assert SECONDS.text(sweep.rows[0]) == "1 (0.900–1.10)"
    assert SECONDS.best(sweep.done) is sweep.rows[0]
    build_report(tmp_path, console=Console(file=io.StringIO()))
    page = (tmp_path / "report.html").read_text()
    assert '<span title="best measured">★</span> 1 <span class="ci">(0.900–1.10)</span>' in page
    assert '<span title="not told apart from the best">≈</span> 1.02' in page
    assert LATENCY.text(sweep.rows[2]) == "6 (6–6)"
    assert "s / image: median (least–most) of 3 runs of a batch of 4." in page
    advice = advised(tmp_path, latency=2.5)
    assert {row.settings["steps"] for _, row in advice.cards} <= {5, 10}
