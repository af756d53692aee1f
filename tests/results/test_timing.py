"""Seconds of a job with their spread, the first batch apart, and jobs that are out of line; of records with given timings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.sweep_samples import write_job

from research.errors import UserError
from research.jobs.record import JobResult, read_result, write_result
from research.results.budget import INSIDE, OVER, UNKNOWN, Budget, read_budget
from research.results.read import read_row, read_sweep
from research.results.timing import BATCHES, MEAN, ONCE, REPEATS, Spread, Timing, out_of_line


def job(place: Path, batches: list[tuple[int, float]] | None = None, number: int = 0, **record: Any) -> Path:
    """A job with these batches, of so many images and seconds."""
    folder = write_job(place, number=number, images=False, prompts=[f"p{k}" for k in range(8)], steps=10 + number)
    if batches is not None:
        first, *later = [{"n_images": n, "encode": 0.0, "denoise": s, "decode": 0.0} for n, s in batches]
        trace = {"stages": [], "timings": first, "batches": [{"timings": batch} for batch in later], "warnings": []}
        (folder / "trace.json").write_text(json.dumps(trace))
    content = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**content, **record}))
    return folder


def test_the_first_batch_stands_apart(tmp_path):
    timed = read_row(job(tmp_path, [(2, 8.0), (2, 2.0), (2, 4.0), (2, 3.0)])).timing
    assert (timed.by, timed.batch, timed.first) == (BATCHES, 2, 4.0)
    assert timed.seconds == Spread(1.5, 1.0, 2.0, 3)
    assert str(timed.seconds) == "1.50 (1–2)"
    assert timed.seconds.inverse == Spread(1 / 1.5, 0.5, 1.0, 3)
    assert timed.said == "3 batches of 2 after the first"
    assert timed.latency is None


def test_a_smaller_last_batch_is_no_measurement_of_the_others(tmp_path):
    timed = read_row(job(tmp_path, [(3, 9.0), (3, 3.0), (2, 9.0)])).timing
    assert (timed.by, timed.seconds) == (BATCHES, Spread(1.0, 1.0, 1.0, 1))
    assert str(timed.seconds) == "1 (once)"
    alone = read_row(job(tmp_path / "b", [(6, 6.0), (2, 9.0)])).timing
    assert (alone.by, alone.batch, alone.seconds, alone.first) == (ONCE, 6, Spread(1.0, 1.0, 1.0, 1), None)
    assert alone.said == "one batch of 6, its warm-up included"


def test_without_a_whole_trace_there_is_a_mean(tmp_path):
    folder = job(tmp_path, [(4, 4.0)], timings={"encode": 1.0, "denoise": 6.0, "decode": 1.0, "total": 20.0})
    assert read_row(folder).timing.by == MEAN  # four of eight images
    (folder / "trace.json").write_text("{")
    assert read_row(folder).timing.seconds == Spread(1.0, 1.0, 1.0, 1)
    nothing = read_row(job(tmp_path / "b", timings={})).timing
    assert (nothing.seconds, nothing.said) == (None, "not recorded")


def test_runs_for_the_time_come_first_and_give_latency(tmp_path):
    runs = [{"n_images": 4, "encode": 0.4, "denoise": 4.0 * k, "decode": 0.4} for k in (1, 2, 3)]
    one = [{"n_images": 1, "denoise": s} for s in (0.5, 0.6, 0.9)]
    timed = {"created": "2026-01-01", "device": "gpu", "batch": runs, "one": one}
    row = read_row(job(tmp_path, [(4, 40.0), (4, 40.0)], timed=timed))
    assert (row.timing.by, row.timing.batch, row.timing.device) == (REPEATS, 4, "gpu")
    assert row.timing.seconds.median == pytest.approx(2.2)
    assert row.timing.latency == Spread(0.6, 0.5, 0.9, 3)
    assert row.timing.made_alone
    assert row.seconds_per_image == row.timing.seconds.median


def test_batches_of_one_give_latency(tmp_path):
    timed = read_row(job(tmp_path, [(1, 5.0), *[(1, 1.0)] * 7])).timing
    assert timed.latency == timed.seconds == Spread(1.0, 1.0, 1.0, 7)
    shared = read_row(job(tmp_path / "b", [(1, 5.0), *[(1, 1.0)] * 7], together=["a", "b"], batch_size=16)).timing
    assert (shared.latency, shared.shared, shared.batch) == (None, True, 16)


def test_runs_for_the_time_outlive_the_record(tmp_path):
    folder = job(
        tmp_path, timed={"created": "x", "device": "cpu", "batch": [{"n_images": 2, "denoise": 1.5}], "one": []}
    )
    before = read_result(folder)
    write_result(folder, before)
    assert read_result(folder).timed == before.timed
    before.timed = None
    write_result(folder, before)
    assert "timed" not in json.loads((folder / "result.json").read_text())


# -- out of line


def judged(evaluations: list[float], **record: Any) -> list[str]:
    return out_of_line([(result(**record), Timing(evaluation=s, batch=4, device="cpu")) for s in evaluations])


def result(**record: Any) -> JobResult:
    return JobResult(job_id="a", status="done", **record)


def test_a_job_far_from_those_like_it_is_out_of_line():
    found = judged([0.10, 0.11, 0.10, 0.09, 0.10, 0.24])
    assert found == [""] * 5 + ["2.4 times the median seconds an evaluation of the 6 jobs like it"]
    assert judged([0.10, 0.11, 0.10, 0.09, 0.10, 0.04])[-1].startswith("0.40 times")


@pytest.mark.parametrize(
    "evaluations",
    [
        [0.1, 0.1, 0.1, 0.124],  # a quarter is nothing, however equal the others are
        [0.1, 0.1, 0.3],  # too few to say which of them it is
        [0.1, 0.15, 0.2, 0.3, 0.4, 0.5],  # a machine that was never quiet
        [0.1, 0.1, 0.1, 0.0],  # not measured
    ],
)
def test_what_is_not_out_of_line(evaluations):
    assert not any(judged([s or 0.1 for s in evaluations]))


def test_jobs_are_held_against_their_like_alone():
    def of(seconds: float, **more: Any) -> tuple[JobResult, Timing]:
        timed = {"batch": more.pop("batch", 4), "by": more.pop("by", ONCE)}
        return result(**more), Timing(evaluation=seconds, device="cpu", **timed)

    like = [of(0.1) for _ in range(5)]
    for other in (
        {"batch": 1},
        {"by": REPEATS},
        {"dtype": "float16"},
        {"nfe_by_branch": {"cond": 5, "uncond": 5}},
        {"config": {"task": {"height": 64, "width": 64}}},
        {"config": {"hooks": {"cache": {"_target_": "research.hooks.FeatureCache"}}}},
        {"config": {"guidance": {"_target_": "research.guidance.PAG"}}},
    ):
        assert not any(out_of_line([*like, of(0.4, **other)]))
    assert out_of_line([*like, of(0.4)])[-1]


def test_a_sweep_marks_them(tmp_path):
    for number in range(5):
        folder = job(tmp_path, number=number)
        record = json.loads((folder / "result.json").read_text())
        record["timings"]["denoise"] *= 4 if number == 3 else 1
        (folder / "result.json").write_text(json.dumps(record))
    marked = [row for row in read_sweep(tmp_path).rows if row.out_of_line]
    assert [row.settings["steps"] for row in marked] == [13]


# -- budgets


def test_a_budget_is_held_against_the_most_that_was_measured():
    budget = read_budget("budget", {"nfe": 20, "seconds": "1.5", "latency": None})
    assert budget == Budget(nfe=20, seconds=1.5)
    assert str(budget) == "at most 20 NFE and 1.50 s an image"
    timed = Timing(seconds=Spread(1.0, 0.9, 1.5, 3), latency=Spread(0.5, 0.4, 0.9, 3))
    assert budget.judge(20, timed) == {"nfe": INSIDE, "seconds": INSIDE}
    assert Budget(seconds=1.4).judge(20, timed) == {"seconds": OVER}
    assert budget.judge(None, timed, "out of line") == {"nfe": UNKNOWN, "seconds": UNKNOWN}
    assert Budget(latency=0.8).judge(1, timed) == {"latency": OVER}
    assert Budget(latency=1).judge(1, Timing()) == {"latency": UNKNOWN}
    assert not Budget()


@pytest.mark.parametrize("value", [0, -1, True, "much", "", float("nan"), float("inf"), [1]])
def test_what_is_no_limit(value):
    with pytest.raises(UserError, match=r"budget\.nfe: found .*accepted is a number above 0"):
        read_budget("budget", {"nfe": value})


def test_what_is_no_budget():
    with pytest.raises(UserError, match=r"budget\.second: unknown key\. Did you mean 'seconds'\?"):
        read_budget("budget", {"second": 1})
    with pytest.raises(UserError, match="budget: found 20; accepted are limits"):
        read_budget("budget", 20)
