"""Report, comparison and studies say the same of the same two jobs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from support.sweep_samples import PROMPTS, write_job

from research.compare.comparing import compare
from research.compare.outcome import Request
from research.results.intervals import difference, interval
from research.results.read import read_row

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import common


def scored(sweep: Path, number: int, steps: int, per_prompt: int) -> Path:
    """A job of eight prompts with several images each, whose scores are alike within a prompt."""
    folder = write_job(sweep, steps=steps, number=number, prompts=[p for p in PROMPTS for _ in range(per_prompt)])
    file = folder / "result.json"
    record = json.loads(file.read_text())
    rng = np.random.default_rng(number)
    hard = np.repeat(np.random.default_rng(9).normal(70, 8, len(PROMPTS)), per_prompt)
    scores = hard + np.repeat(rng.normal(number, 2, len(PROMPTS)), per_prompt) + rng.normal(0, 2, len(hard))
    record["metrics"]["clip_score"] = float(scores.mean())
    record["metrics_info"]["clip_score"]["per_image"] = scores.tolist()
    for place, image in enumerate(record["images"]):
        image["seed"] = place % per_prompt
        image.pop("scores", None)
    file.write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("per_prompt", [1, 6])
def test_the_same_two_jobs_have_the_same_interval_everywhere(tmp_path: Path, per_prompt: int) -> None:
    a, b = (scored(tmp_path / "s", number, steps, per_prompt) for number, steps in ((0, 5), (1, 10)))
    rows = read_row(a), read_row(b)
    in_report = difference(rows[1], rows[0], "clip_score")
    in_study = common.difference(common.scores(rows[1], "clip_score"), common.scores(rows[0], "clip_score"))
    (outcome,) = compare(Request(places=(str(a), str(b)), metrics=("clip_score",))).outcomes
    assert in_report == in_study
    assert in_report is not None
    assert in_report.n == outcome.n == len(PROMPTS)
    assert outcome.unit == ("prompts" if per_prompt > 1 else "images")
    found = (outcome.difference, outcome.low, outcome.high, outcome.p)
    assert found == pytest.approx((in_report.value, in_report.low, in_report.high, in_report.p))


def test_a_jobs_own_interval_is_over_prompts(tmp_path: Path) -> None:
    row = read_row(scored(tmp_path / "s", 0, 5, 6))
    found, in_study = interval(row, "clip_score"), common.mean(common.scores(row, "clip_score"))
    assert found is not None
    assert (found.n, found.value) == (8, pytest.approx(row.metrics["clip_score"]))
    assert (found.low, found.high) == pytest.approx((in_study.low, in_study.high))
