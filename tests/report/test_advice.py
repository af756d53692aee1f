from __future__ import annotations

import io
import itertools
import json
import math
import shlex
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.sweep_samples import PROMPTS, write_job, write_sweep

from research.directions import direction, front
from research.errors import UserError
from research.report import build_report, read_row, read_sweep
from research.report.advice import advise, fronts, near_fronts
from research.report.build import judged_by
from research.report.columns import metric, pairs_of, quality, verdicts
from research.report.script_data import image_command
from research.results.intervals import difference, interval, unit_in_words
from research.results.pairs import LEAST_UNITS
from research.results.scales import read_margins


def edit(folder, change):
    """Change a record in place."""
    record = json.loads((folder / "result.json").read_text())
    change(record)
    (folder / "result.json").write_text(json.dumps(record))


def scored(directory, number, scores, *, steps=10, fid=None, **job):
    """A job whose CLIP scores are these, one an image."""
    folder = write_job(directory, steps=steps, number=number, prompts=[f"p{i}" for i in range(len(scores))], **job)

    def change(record):
        record["metrics"] = {"clip_score": float(np.mean(scores))} | ({} if fid is None else {"fid": fid})
        record["metrics_info"]["clip_score"]["per_image"] = list(map(float, scores))

    edit(folder, change)
    return folder


def test_the_cheapest_of_what_is_shown_to_be_as_good_as_the_best(tmp_path):
    hard = np.random.default_rng(0).normal(0, 10, 80)  # what makes a prompt hard is shared
    jitter = np.random.default_rng(1).normal(0, 1, (3, 80))
    jitter -= jitter.mean(1, keepdims=True)
    cheap = scored(tmp_path, 0, 67 + hard + jitter[0], steps=5)
    middle = scored(tmp_path, 1, 70 + hard + jitter[1], steps=10)
    dear = scored(tmp_path, 2, 70.1 + hard + jitter[2], steps=50)
    sweep = read_sweep(tmp_path)
    advice = advise(sweep)
    assert advice.use.folder == middle
    assert "margin or more (CLIP score 1;" in advice.reasons[-1]
    # unpaired, the spread of the prompts would hide that 5 steps are worse
    a, b = read_row(cheap), read_row(dear)
    assert interval(a, "clip_score").high > interval(b, "clip_score").low
    pairs = pairs_of(sweep, metric("clip_score"))
    by_folder = {row.folder: row for row in sweep.done}
    assert pairs.told_apart(by_folder[cheap], by_folder[dear])
    assert pairs.told_apart(by_folder[middle], by_folder[dear]) is False
    assert [r.gain.split(",")[0] for r in advice.ladder][:2] == ["the cheapest measured", "better"]


def test_too_few_images_to_tell_are_said_to_be(tmp_path):
    poor, good = [95, 80, 99, 20, 98, 97, 60, 92], [96, 95, 97, 85, 99, 98, 73, 85]
    scored(tmp_path, 0, poor, steps=2)
    scored(tmp_path, 1, good, steps=25)
    sweep = read_sweep(tmp_path)
    advice = advise(sweep)
    assert advice.use is None
    assert advice.headline == "8 images a setting cannot tell which setting to use."
    assert advice.reasons[0].startswith("Measured best by CLIP score: steps 25 (91")
    assert "its CLIP score is worse by" in advice.reasons[1]
    (settled,) = (r for r in advice.reasons if "would decide" in r)
    needed = int(settled.split()[1])
    assert needed >= LEAST_UNITS
    assert f"({needed - 8} more)" in settled
    for row in sweep.done:
        found = interval(row, "clip_score")
        assert 0 <= found.low < found.high <= 100


def test_the_margin_is_the_readers(tmp_path):
    scores = np.random.default_rng(0).normal(70, 5, 40)
    wobble = np.sin(np.arange(40.0)) - np.sin(np.arange(40.0)).mean()
    scored(tmp_path, 0, scores, steps=5)
    scored(tmp_path, 1, scores + 3 + wobble, steps=50)
    sweep = read_sweep(tmp_path)
    assert advise(sweep).use.settings["steps"] == 50
    wider = replace(sweep, margins=read_margins("report.margin", {"clip_score": 4}), derived={})
    assert advise(wider).use.settings["steps"] == 5
    share = replace(sweep, margins=read_margins("report.margin", {"clip_score": "10%", "fdi": 1}), derived={})
    assert advise(share).use.settings["steps"] == 5
    assert "CLIP score 10 %" in advise(share).reasons[-1]
    assert any("report.margin names fdi" in d for d in advise(share).doubts)
    # of the command that was run last, where the report is given none
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "margin": {"clip_score": 4}}))
    assert advise(read_sweep(tmp_path)).use.settings["steps"] == 5


def test_the_unit_is_the_readers(tmp_path):
    """Prompts differ in what a setting gains, seeds of a prompt hardly: over seeds it is known which is better."""
    gains = np.repeat(np.linspace(-5, 7, 8), 8) + np.random.default_rng(0).normal(0, 0.1, 64)
    for number, added in enumerate((np.zeros(64), gains)):
        folder = write_job(
            tmp_path, steps=(5, 50)[number], number=number, prompts=[f"p{i}" for i in range(8) for _ in range(8)]
        )
        edit(folder, lambda record, scores=60 + added: rescored(record, scores))
    sweep = read_sweep(tmp_path)
    assert advise(sweep).use is None
    assert unit_in_words(sweep.rows[0]).startswith("over 8 prompts")
    assert advise(judged_by(sweep, unit="seeds")).use.settings["steps"] == 50
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 1, "unit": "seeds"}))
    asked = read_sweep(tmp_path)
    assert advise(asked).use.settings["steps"] == 50
    assert unit_in_words(asked.rows[0]).startswith("over the seeds of 8 prompts")
    assert advise(judged_by(asked, unit="auto")).use is None
    build_report(tmp_path, console=Console(file=io.StringIO()))
    assert "95 % interval over the seeds of 8 prompts" in (tmp_path / "report.html").read_text()


def rescored(record, scores):
    record["metrics"] = {"clip_score": float(np.mean(scores))}
    record["metrics_info"]["clip_score"]["per_image"] = list(map(float, scores))


@pytest.mark.parametrize("value", [0, -1, True, "much", "100%", "", None, float("nan")])
def test_what_is_no_margin(value):
    with pytest.raises(UserError, match=r"report\.margin\.fid: found .*accepted is a number above 0"):
        read_margins("report.margin", {"fid": value})


def test_equal_scores_have_an_interval_within_the_bounds(tmp_path):
    row = read_row(scored(tmp_path, 0, [100.0] * 8))
    found = interval(row, "clip_score")
    assert found.high == 100 > found.low > 0
    assert found.low == pytest.approx(100 * (0.025 ** (1 / 8)))  # Clopper and Pearson: 8 of 8


def test_jobs_with_the_same_pictures_are_equally_good_however_few(tmp_path):
    for number, steps in enumerate((5, 6)):
        folder = scored(tmp_path, number, [60.0, 70.0, 90.0], steps=steps)
        edit(folder, lambda r: [image.update(sha256=f"{k:064}") for k, image in enumerate(r["images"])])
    assert advise(read_sweep(tmp_path)).use.settings["steps"] == 5


def test_equal_settings_are_told_apart_in_no_more_than_one_sweep_in_twenty(tmp_path):
    for number in range(20):
        scored(tmp_path, number, np.zeros(12), steps=number + 1)
    sweep = read_sweep(tmp_path)
    rng, wrong, cases = np.random.default_rng(0), 0, 200
    for _ in range(cases):
        hard = rng.normal(70, 10, 12)
        for row in sweep.done:
            row.derived.clear()
            scores = hard + rng.normal(0, 3, 12)
            row.metrics["clip_score"] = float(scores.mean())
            row.scores["clip_score"] = dict(zip(row.scores["clip_score"], scores.tolist(), strict=True))
        sweep.derived.clear()
        pairs = pairs_of(sweep, metric("clip_score"))
        wrong += any(pairs.told_apart(a, b) for a, b in itertools.combinations(sweep.done, 2))
    assert wrong / cases <= 0.08


def test_fid_without_an_interval_decides_nothing_and_is_said_to(tmp_path):
    scores = np.random.default_rng(0).normal(70, 5, 30)
    scored(tmp_path, 0, scores, steps=5, fid=90.0)
    scored(tmp_path, 1, scores + 1.01, steps=10, fid=20.0)
    advice = advise(read_sweep(tmp_path))
    assert advice.use.settings["steps"] == 10  # more than the margin, on every image
    assert any("FID is one number" in d for d in advice.doubts)


def test_fid_with_an_interval_decides(tmp_path):
    scores = np.random.default_rng(0).normal(70, 5, 30)
    for number, (steps, fid) in enumerate(((5, 90.0), (10, 20.0))):
        folder = scored(tmp_path, number, scores + np.sin(np.arange(30) + number), steps=steps, fid=fid)
        edit(folder, lambda r, fid=fid: r["metrics_info"]["fid"].update(interval=[fid - 2, fid + 2]))
    assert advise(read_sweep(tmp_path)).use.settings["steps"] == 10


def test_metrics_that_pull_apart_give_no_single_answer(tmp_path):
    rng = np.random.default_rng(0)
    for number, (steps, clip, fid) in enumerate(((5, 60, 20.0), (10, 80, 60.0))):
        folder = scored(tmp_path, number, rng.normal(clip, 1, 30), steps=steps, fid=fid)
        edit(folder, lambda r, fid=fid: r["metrics_info"]["fid"].update(interval=[fid - 2, fid + 2]))
    advice = advise(read_sweep(tmp_path))
    assert advice.use is None
    assert "pull apart" in advice.headline
    assert len(advice.reasons) == 2


def test_no_advice_from_one_job_or_no_metric(tmp_path):
    write_job(tmp_path / "one")
    assert advise(read_sweep(tmp_path / "one")) is None
    for number in range(2):
        folder = write_job(tmp_path / "none", steps=5 + number, number=number)
        edit(folder, lambda r: r.update(metrics={}, metrics_info={}))
    assert advise(read_sweep(tmp_path / "none")) is None
    build_report(tmp_path / "none", console=Console(file=io.StringIO()))


def test_numbers_of_another_provenance_are_neither_ranked_nor_hidden(tmp_path):
    write_sweep(tmp_path, ("ddim",), (3.0,), (5, 10, 25, 50), prompts=PROMPTS[:4])
    last = read_sweep(tmp_path).done[0]
    edit(
        last.folder,
        lambda r: (
            r["metrics"].update(fid=0.001),
            r["metrics_info"]["fid"]["reference"].update(name="other", sha256="00" * 32),
        ),
    )
    sweep = read_sweep(tmp_path)
    fid = next(m for m in quality(sweep.done) if m.key == "fid")
    assert fid.best(sweep.done).settings["steps"] == 50  # 0.001 is of another reference
    assert last.job_id not in fronts(sweep)
    paths = build_report(tmp_path, console=Console(file=io.StringIO()))
    page = paths.report_html.read_text()
    assert "FID is not of one provenance" in page
    assert "reference other" in page
    assert "NOT OF ONE PROVENANCE" in page
    assert "<sup>b</sup>" in page


@pytest.mark.parametrize(
    ("key", "better"),
    [
        *[(k, -1) for k in ("fid", "fd_dinov2", "kid", "cmmd", "fid_infinity", "lpips", "perceptual", "solver_error")],
        *[
            (k, 1)
            for k in ("clip_score", "clip_directional", "precision", "coverage", "aesthetic", "psnr_kept", "ssim")
        ],
        *[(k, 0) for k in ("kid_std", "steps_taken", "inverted_noise_std")],
    ],
)
def test_directions(key, better):
    assert direction(key) == better
    assert direction(key, {"better": "higher"}) == 1  # what the metric says itself comes first


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_front_is_what_nothing_beats(points):
    def beaten(p):
        return any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)

    assert set(front(points)) == {i for i, p in enumerate(points) if not beaten(p)}


def test_intervals_cover_the_truth_about_as_often_as_they_say(tmp_path):
    folder = write_job(tmp_path, prompts=[f"p{i}" for i in range(12)])
    row = read_row(folder)
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        scores = rng.normal(50, 5, 12)
        row.metrics["clip_score"] = float(scores.mean())
        row.scores["clip_score"] = dict(zip(row.scores["clip_score"], scores.tolist(), strict=True))
        row.derived.clear()
        found = interval(row, "clip_score")
        hits += found.low <= 50 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_a_mean_of_other_numbers_than_the_metric_makes_no_interval(tmp_path):
    a, b = (write_job(tmp_path, steps=s, number=s) for s in (5, 10))
    for folder in (a, b):
        edit(folder, lambda r: (r["metrics"].pop("clip_score_se"), r["metrics"].update(clip_score=3.0)))
    assert interval(read_row(a), "clip_score") is None
    assert difference(read_row(a), read_row(b), "clip_score") is None


def test_scores_beside_the_images_are_read_too(tmp_path):
    folder = write_job(tmp_path, prompts=PROMPTS[:4])

    def change(record):
        record["metrics"]["lpips"] = 2.5
        for k, image in enumerate(record["images"]):
            image["scores"] = {"lpips": 1.0 + k}

    edit(folder, change)
    found = interval(read_row(folder), "lpips")
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert found.low == pytest.approx(2.5 - half, rel=1e-5)
    assert metric("lpips").better == -1


def test_the_command_for_a_picture_names_its_file(tmp_path):
    row = read_row(write_job(tmp_path / "two words", prompts=PROMPTS[:1]))
    words = shlex.split(image_command(row, row.images[0].file))
    assert words == ["research", "again", (row.folder / row.images[0].file).as_posix()]
    row.result.plug_sources["mine.Plug"] = "0"
    assert shlex.split(image_command(row, row.images[0].file)) == [*words, "--trust-plugs"]


def test_jobs_scored_apart_from_each_other_are_advised_on_by_what_most_have(tmp_path):
    for number, steps in enumerate((5, 10, 25)):
        for kept in ("fid", "clip_score"):
            folder = write_job(tmp_path / kept, steps=steps, number=number, prompts=PROMPTS[:4])
            edit(folder, lambda r, kept=kept: r.update(metrics={kept: r["metrics"][kept]}))
            folder.rename(tmp_path / f"{steps}-{kept}")
        (tmp_path / "fid").rmdir()
        (tmp_path / "clip_score").rmdir()
    advice = advise(read_sweep(tmp_path))
    assert advice.ladder_by.key == "clip_score"
    assert any("3 done jobs left out" in d for d in advice.doubts)


def test_warnings_that_differ_in_their_numbers_are_said_once(tmp_path):
    for number, steps in enumerate((5, 10, 25)):
        folder = write_job(tmp_path, steps=steps, number=number, prompts=PROMPTS[:4])
        edit(folder, lambda r, n=number: r["metrics_info"]["fid"].update(warnings=[f"fid: biased by {n}.5"]))
    doubts = [d for d in advise(read_sweep(tmp_path)).doubts if "biased" in d]
    assert doubts == ["fid: biased by 0.5 (so or alike in 3 settings)."]


def test_off_the_front_but_not_told_apart(tmp_path):
    hard = np.random.default_rng(0).normal(70, 10, 40)
    noise = np.random.default_rng(1).normal(0, 1, (4, 40))
    for number, (steps, better) in enumerate(((5, 0.0), (10, 8.0), (20, 7.9), (50, 3.0))):
        scored(tmp_path, number, hard + better + noise[number] - noise[number].mean(), steps=steps)
    sweep = read_sweep(tmp_path)
    steps = {row.job_id: row.settings["steps"] for row in sweep.done}
    assert {steps[job] for job in fronts(sweep)} == {5, 10}
    assert {steps[job] for job in near_fronts(sweep)} == {20}
    page = build_report(tmp_path, console=Console(file=io.StringIO())).report_html.read_text()
    assert page.count('<td class="c">◇</td>') == 1
    # pairs (5, 10) (5, 20) (5, 50) (10, 20) (10, 50) (20, 50)
    assert verdicts(sweep, metric("clip_score")) == "111011"
