"""``research-compare`` over real sweeps of a tiny model: what it prints and writes, and one clear line where it cannot."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from research.cli import run
from research.compare.cli import main
from research.results.intervals import difference, unit_in_words
from research.results.read import read_sweep
from research.score_cli import main as score

SWEPT = [
    *("-m", "tracker=none", "steps=2", "images_per_prompt=8", "runtime.vectorise=off", "batch_size=4"),
    "prompts=[fox on a red background,pizza on a blue background]",
    "metrics=[clip_score,kid,fid]",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sweeps ``ddim`` and ``euler`` (two guidance scales each), a second run of both, and ``late`` (other seeds)."""
    place = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, more in {
            "ddim": ["scheduler=ddim", "guidance.scale=1,3"],
            "euler": ["scheduler=euler_a", "guidance.scale=1,3"],
            "late": ["scheduler=ddim", "guidance.scale=1", "seed=500"],
        }.items():
            assert run([*SWEPT, *more, f"sweep_name={name}"]) == 0
    for name in ("ddim", "euler"):  # a second run, which took a tenth longer
        shutil.copytree(place / "outputs" / name, place / "outputs" / f"{name}2")
        for file in (place / "outputs" / f"{name}2").glob("*/trace.json"):
            trace = json.loads(file.read_text())
            for timings in (trace["timings"], *(batch["timings"] for batch in trace["batches"])):
                timings["denoise"] *= 1.1
            file.write_text(json.dumps(trace))
    return place / "outputs"


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(made, tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


@pytest.fixture
def told(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, Any]]:
    """What a command says as JSON. Over images where a test does not say: two prompts are few units."""

    def ask(*words: str) -> dict[str, Any]:
        words = words if "--over" in words else (*words, "--over", "images")
        if Path.cwd() != Path(words[0]).resolve().parent and not Path(words[0].rpartition("=")[2]).exists():
            monkeypatch.chdir(made.parent)
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return ask


def outcome(said: dict[str, Any], metric: str, place: int = 0) -> dict[str, Any]:
    return [o for o in said["outcomes"] if o["metric"] == metric][place]


def records(sweep: Path) -> dict[str, dict[str, Any]]:
    return {f.parent.name: json.loads(f.read_text()) for f in sorted(sweep.glob("*/result.json"))}


def change(sweep: Path, spoil: Callable[[dict[str, Any]], object]) -> None:
    for file in sweep.glob("*/result.json"):
        record = json.loads(file.read_text())
        spoil(record)
        file.write_text(json.dumps(record))


def line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refusal."""
    assert main(list(words)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (said,) = told.err.splitlines()
    return said


@pytest.mark.slow
def test_two_sweeps_are_paired_over_their_other_settings(told, made):
    said = told("outputs/ddim", "outputs/euler")
    assert [s["name"] for s in said["sides"]] == ["ddim", "euler"]
    clip = outcome(said, "clip_score")
    assert (clip["n"], clip["unit"], clip["paired"]) == (16, "images", True)
    # by hand: the same prompt and seed, averaged over both guidance scales
    by_scale: dict[float, dict[str, list[float]]] = {}
    for name in ("ddim", "euler"):
        for record in records(made / name).values():
            scores = record["metrics_info"]["clip_score"]["per_image"]
            by_scale.setdefault(record["config"]["guidance"]["scale"], {})[name] = scores
    gaps = [y - x for pair in by_scale.values() for x, y in zip(pair["ddim"], pair["euler"], strict=True)]
    assert clip["difference"] == pytest.approx(sum(gaps) / len(gaps))
    assert clip["low"] <= clip["difference"] <= clip["high"]
    assert any("Averaged over guidance.scale" in note for note in said["notes"])


@pytest.mark.slow
def test_prompts_are_the_units_where_several_have_several_images(told):
    said = told("outputs/ddim", "outputs/euler", "--over", "auto")
    clip, by_prompt = (
        outcome(said, "clip_score"),
        outcome(told("outputs/ddim", "outputs/euler", "--over", "prompts"), "clip_score"),
    )
    assert clip == by_prompt
    assert (clip["n"], clip["unit"]) == (2, "prompts")
    assert any("over prompts, as images of one prompt are alike" in note for note in said["notes"])


def test_seeds_are_the_units_where_that_is_asked_for(told, made):
    sides = "outputs/ddim", "outputs/euler"
    said = told(*sides, "--over", "seeds", "--metrics", "clip_score,kid")
    assert {o["unit"] for o in said["outcomes"]} == {"seeds"}
    by_images = outcome(told(*sides), "clip_score")
    assert outcome(said, "clip_score")["n"] == by_images["n"] == 16
    assert outcome(said, "clip_score")["difference"] == pytest.approx(by_images["difference"])
    assert any("over the seeds of these prompts" in note for note in said["notes"])
    record = json.loads((made / "ddim" / "sweep.json").read_text())
    for name in ("ddim", "euler"):
        (made / name / "sweep.json").write_text(json.dumps(record | {"unit": "seeds"}))
    assert told(*sides, "--over", "auto", "--metrics", "clip_score,kid")["outcomes"] == said["outcomes"]
    sweep = read_sweep(made / "ddim")
    assert unit_in_words(sweep.rows[0]).startswith("over the seeds of 2 prompts")
    for name in ("ddim", "euler"):
        (made / name / "sweep.json").write_text(json.dumps(record))


def test_swapping_the_sides_flips_everything(told):
    forth, back = told("outputs/ddim", "outputs/euler"), told("outputs/euler", "outputs/ddim")
    flipped = {"better": "worse", "worse": "better", "higher": "lower", "lower": "higher"}
    for a, b in zip(forth["outcomes"], back["outcomes"], strict=True):
        if a["difference"] is not None:
            assert b["difference"] == pytest.approx(-a["difference"])
        if a["p"] is not None:
            assert (b["low"], b["high"], b["p"]) == pytest.approx((-a["high"], -a["low"], a["p"]))
        assert b["verdict"] == flipped.get(a["verdict"], a["verdict"])


def test_a_sweep_with_itself_is_equal(told, made, tmp_path):
    shutil.copytree(made / "ddim", tmp_path / "again")
    said = told("outputs/ddim", f"again={tmp_path / 'again'}", "--metrics", "clip_score,kid,fid,nfe")
    assert {o["verdict"] for o in said["outcomes"]} == {"equal"}


def test_an_axis_is_paired_over_the_others(told):
    said = told("outputs/ddim", "outputs/euler", "--axis", "guidance.scale", "--baseline", "3")
    assert [s["name"] for s in said["sides"]] == ["guidance scale 1", "guidance scale 3"]
    assert {(o["a"], o["b"]) for o in said["outcomes"]} == {("guidance scale 3", "guidance scale 1")}
    assert [len(s["jobs"]) for s in said["sides"]] == [2, 2]
    nfe = outcome(said, "nfe")
    assert (nfe["value_a"], nfe["value_b"], nfe["verdict"]) == (4, 2, "lower")
    assert told("outputs/ddim", "outputs/euler", "--axis", "scheduler")["sides"][0]["name"] == "scheduler ddim"


def test_all_jobs_of_a_sweep_and_holm(told):
    said = told("outputs/ddim", "outputs/euler", "--each")
    assert len(said["sides"]) == 4
    clip = [o for o in said["outcomes"] if o["metric"] == "clip_score"]
    assert len(clip) == 6
    assert all(o["p_holm"] >= o["p"] for o in clip)
    assert max(o["p_holm"] / o["p"] for o in clip if o["p"] > 0 and o["p_holm"] < 1) > 1
    assert any("Holm" in note and "6 pairs" in note for note in said["notes"])
    base = records(Path("outputs/ddim"))
    against = told("outputs/ddim", "outputs/euler", "--each", "--baseline", next(iter(base)))
    assert len({(o["a"], o["b"]) for o in against["outcomes"]}) == 3


def test_sets_are_compared_by_their_kept_features(told, made):
    kid, fid = (outcome(told("outputs/ddim", "outputs/euler"), m) for m in ("kid", "fid"))
    assert kid["method"] == fid["method"] == "jackknife"
    recorded = [sum(r["metrics"]["kid"] for r in records(made / s).values()) / 2 for s in ("ddim", "euler")]
    assert (kid["value_a"], kid["value_b"]) == pytest.approx(recorded, rel=5e-3)
    # 16 images for 128 features: the number is told, a verdict is not
    assert (fid["verdict"], fid["settle"]["needed"], fid["settle"]["more"]) == ("too few images", 64, 48)


def test_seconds_by_batches_and_by_repeated_runs(told):
    alone = outcome(told("outputs/ddim", "outputs/euler"), "seconds_per_image")
    assert (alone["n"], alone["unit"], alone["paired"]) == (6, "batches", True)
    assert "of one run each, pair by pair, the first left out" in alone["note"]
    repeated = told("outputs/ddim", "outputs/euler", "--repeats", "outputs/ddim2", "--repeats", "outputs/euler2")
    seconds = outcome(repeated, "seconds_per_image")
    assert (seconds["n"], seconds["unit"], seconds["method"]) == (2, "runs", "Welch t")
    ddim = [outcome(told("outputs/ddim", "outputs/ddim2"), "seconds_per_image")[k] for k in ("value_a", "value_b")]
    assert seconds["value_a"] == pytest.approx(sum(ddim) / 2)


def test_seconds_have_their_spread(here, told):
    def timed(record: dict[str, Any], seconds: float) -> None:
        runs = [{"n_images": 4, "denoise": 4 * (seconds + k / 100)} for k in range(4)]
        one = [{"n_images": 1, "denoise": seconds}]
        record["timed"] = {"created": "2026-01-01", "device": "cpu", "batch": runs, "one": one}

    for sweep, seconds in (("ddim", 0.5), ("euler", 0.9)):
        change(here / sweep, lambda record, seconds=seconds: timed(record, seconds))
    said = told("outputs/ddim", "outputs/euler")
    seconds = outcome(said, "seconds_per_image")
    assert (seconds["n"], seconds["unit"], seconds["verdict"]) == (4, "repeats", "worse")
    assert seconds["difference"] == pytest.approx(0.4)
    ddim = said["sides"][0]
    assert [ddim["seconds"][k] for k in ("median", "low", "high", "n")] == pytest.approx([0.515, 0.5, 0.53, 4])
    assert ddim["latency"]["median"] == 0.5
    assert any("median (least to most) of 4 runs of a batch of 4" in note for note in said["notes"])


def test_seconds_out_of_line_are_not_compared(here, told, capsys):
    for place, factor in enumerate((1, 1.02, 1, 3)):
        folder = here / "many" / f"job{place}"
        shutil.copytree(next((here / "euler").glob("*/result.json")).parent, folder)
        (folder / "trace.json").unlink()
        record = json.loads((folder / "result.json").read_text())
        record.update(job_id=folder.name)
        record["timings"]["denoise"] = factor
        (folder / "result.json").write_text(json.dumps(record))
    said = told("outputs/many/job0", "outputs/many/job3")
    seconds = outcome(said, "seconds_per_image")
    assert (seconds["verdict"], seconds["note"]) == (
        "no interval",
        "seconds are out of line with their sweep, and are not compared",
    )
    assert said["sides"][1]["out_of_line"] == "3.0 times the median seconds an evaluation of the 4 jobs like it"
    assert any("research again outputs/many/job3 --time 5" in note for note in said["notes"])
    by_seconds = [f for f in said["pareto"] if f["cost"] == "seconds_per_image"]
    assert "job3" not in {p["side"] for f in by_seconds for p in f["points"]}


def test_shared_batches_give_no_seconds(here, told):
    change(here / "euler", lambda r: r.update(together=[r["job_id"], "other"]))
    seconds = outcome(told("outputs/ddim", "outputs/euler"), "seconds_per_image")
    assert seconds["verdict"] == "no interval"
    assert "shares, not times measured alone" in seconds["note"]


def test_jobs_of_other_seeds_are_more_images_of_one_side(told):
    said = told("outputs/ddim", "outputs/late", "outputs/euler", "--axis", "scheduler", "--where", "guidance.scale=1")
    assert [s["n_images"] for s in said["sides"]] == [32, 16]
    assert outcome(said, "kid")["n"] == 16
    assert any("16 of 32 images of scheduler ddim have no image" in note for note in said["notes"])
    each = told("outputs/ddim", "outputs/late", "--each")
    assert [len(s["jobs"]) for s in each["sides"]] == [2, 1]


def test_prompts_as_samples(told):
    said = outcome(told("outputs/ddim", "outputs/euler", "--over", "prompts"), "clip_score")
    assert (said["n"], said["unit"]) == (2, "prompts")


def test_independent_samples_only_when_asked(made, told, capsys, monkeypatch):
    monkeypatch.chdir(made.parent)
    said = line(capsys, "outputs/ddim", "outputs/late", "--where", "guidance.scale=1")
    assert "nothing to pair: found no common seeds" in said
    assert "--unpaired" in said
    apart = told("outputs/ddim", "outputs/late", "--where", "guidance.scale=1", "--unpaired")
    clip = outcome(apart, "clip_score")
    assert (clip["paired"], clip["method"]) == (False, "Welch t")
    assert any("independent samples" in note for note in apart["notes"])


def test_what_cannot_be_paired_is_said(told):
    said = told("outputs/ddim", "outputs/euler", "--where", "guidance.scale=1")
    assert not any("left out" in note for note in said["notes"])
    job = next(i for i, r in records(Path("outputs/euler")).items() if r["config"]["guidance"]["scale"] == 3)
    said = told("outputs/ddim", f"one=outputs/euler/{job}")
    assert any("1 settings of ddim have no counterpart in one (guidance.scale=1)" in note for note in said["notes"])


def test_images_that_one_side_lacks_are_left_out(here, told):
    def fewer(record: dict[str, Any]) -> None:
        record["images"] = [i for i in record["images"] if i["seed"] < 14]
        record["n_images"] = len(record["images"])
        kept = range(14)
        scores = record["metrics_info"]["clip_score"]["per_image"]
        record["metrics_info"]["clip_score"]["per_image"] = [scores[k] for k in kept]
        record["metrics"]["clip_score"] = sum(scores[k] for k in kept) / 14

    change(here / "euler", fewer)
    said = told("outputs/ddim", "outputs/euler", "--metrics", "clip_score")
    assert outcome(said, "clip_score")["n"] == 14
    assert any(
        "4 of 32 images of ddim have no image of the same prompt and seed in euler" in note for note in said["notes"]
    )


@pytest.mark.slow
def test_jobs_scored_apart_are_one_job(here, told, capsys):
    assert score(["outputs/ddim", "metrics=[clip_score]"]) == 0
    assert len(records(here / "ddim")) == 4
    capsys.readouterr()
    said = told("outputs/ddim", "outputs/euler")
    assert outcome(said, "clip_score")["n"] == 16
    assert {o["metric"] for o in said["outcomes"]} >= {"kid", "clip_score"}
    assert len(told("outputs/ddim")["sides"]) == 2


# --- provenance


def test_numbers_of_another_provenance_are_refused_and_marked_by_force(here, capsys):
    def other(record: dict[str, Any]) -> None:
        for info in record["metrics_info"].values():
            info.pop("comparable", None)
        record["metrics_info"]["clip_score"]["model"] = "another"
        record["metrics_info"]["clip_score"]["weights_sha256"] = "0" * 64

    change(here / "euler", other)
    said = line(capsys, "outputs/ddim", "outputs/euler")
    assert "clip_score: ddim and euler have numbers of different provenance (model emoji-eval and another" in said
    assert "--force" in said
    assert "--metrics fid,kid,nfe,seconds_per_image" in said
    assert main(["outputs/ddim", "outputs/euler", "--metrics", "kid"]) == 0
    capsys.readouterr()
    assert main(["outputs/ddim", "outputs/euler", "--force", "--md"]) == 0
    out = capsys.readouterr().out
    assert "†" in next(row for row in out.splitlines() if "| CLIP score ↑ |" in row and "against" in row)
    assert "†" not in next(row for row in out.splitlines() if "| KID ↓ |" in row and "against" in row)
    assert "marks numbers of different provenance" in out


def test_seconds_of_other_machines_are_not_compared(here, told, capsys):
    change(here / "euler", lambda r: r.update(device="another machine"))
    said = told("outputs/ddim", "outputs/euler")
    assert outcome(said, "seconds_per_image")["difference"] is None
    assert any("is not compared: device cpu and another machine" in note for note in said["notes"])
    assert "different provenance" in line(capsys, "outputs/ddim", "outputs/euler", "--metrics", "seconds_per_image")


@pytest.mark.slow
def test_features_that_are_gone_or_others(here, told, capsys):
    folder = next((here / "euler").glob("*/features"))
    shutil.rmtree(folder)
    kid = outcome(told("outputs/ddim", "outputs/euler"), "kid")
    assert kid["verdict"] == "no interval"
    assert "research-score" in kid["note"]
    said = line(capsys, "outputs/ddim", "outputs/euler", "--metrics", "kid")
    assert "cannot be read" in said
    assert f"research-score outputs/euler/{folder.parent.name} --again" in said
    assert score([f"outputs/euler/{folder.parent.name}", "--again"]) == 0
    capsys.readouterr()
    assert outcome(told("outputs/ddim", "outputs/euler", "--metrics", "kid"), "kid")["p"] is not None


def test_features_that_give_another_number_are_not_believed(here, capsys):
    change(here / "euler", lambda r: r["metrics"].update(kid=r["metrics"]["kid"] + 1))
    assert "in the record and" in line(capsys, "outputs/ddim", "outputs/euler", "--metrics", "kid")


# --- outputs


def test_every_format(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(made.parent)
    files = [f"--{f}={tmp_path / f'x.{f}'}" for f in ("json", "md", "csv", "tex")]
    assert main(["outputs/ddim", "outputs/euler", *files]) == 0
    assert "to settle it" in capsys.readouterr().out
    told = json.loads((tmp_path / "x.json").read_text())
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["metric"] for r in rows] == [o["metric"] for o in told["outcomes"]]
    assert float(rows[0]["difference"]) == pytest.approx(told["outcomes"][0]["difference"])
    tables = [row for row in (tmp_path / "x.md").read_text().splitlines() if row.startswith("|")]
    assert {row.count("|") for row in tables[:4]} == {10}
    tex = (tmp_path / "x.tex").read_text()
    assert tex.count("\\begin{tabular}") == tex.count("\\end{tabular}") == 2
    assert all(c not in tex for c in "↑↓−–†•")


def test_a_folder_after_an_option_is_a_side(made, monkeypatch, capsys):
    monkeypatch.chdir(made.parent)
    assert main(["--csv", "outputs/ddim", "outputs/euler"]) == 0
    assert capsys.readouterr().out.startswith("a,b,metric")


def test_names_with_marks_of_tables_change_nothing(made, monkeypatch, capsys):
    monkeypatch.chdir(made.parent)
    for option in ("--md", "--tex", "--csv", "--json"):
        assert main(["a|b [red]_$%&=outputs/ddim", "é🙂<script>=outputs/euler", option]) == 0
        out = capsys.readouterr().out
        assert {"--md": "a\\|b", "--tex": "\\_\\$\\%\\&", "--csv": "a|b [red]", "--json": "a|b [red]"}[option] in out
    assert main(["a|b [red]_$%&=outputs/ddim", "é🙂=outputs/euler"]) == 0
    assert "a|b [red]_$%&" in capsys.readouterr().out


def test_a_metric_that_some_jobs_lack(here, told, capsys):
    change(here / "euler", lambda r: [r[part].pop("kid") for part in ("metrics", "metrics_info")])
    said = told("outputs/ddim", "outputs/euler")
    assert "Not in all jobs, and left out: kid; research-score computes them from the images." in said["notes"]
    assert "--metrics: kid is missing in jobs of euler" in line(
        capsys, "outputs/ddim", "outputs/euler", "--metrics", "kid"
    )


def test_a_number_that_says_its_own_interval_is_judged_as_on_the_page(here, told):
    def own(record: dict[str, Any]) -> None:
        better = "euler" in record["config"]["scheduler"]["name"]
        images = len(record["images"])
        record["metrics"] |= {
            "mine": 0.2 if better else 0.8,
            "bare": 0.5,
            "whole": 0.5,
            "whole_grid": 0.2 + 0.1 * better,
        }
        record["metrics_info"]["mine"] = {"better": "lower", "interval": [0.1, 0.3] if better else [0.7, 0.9]}
        # of one metric two numbers, each the mean of those of its images
        of_images = [0.2 + 0.1 * better] * images
        record["metrics_info"]["whole"] = {"per_image": [0.5] * images, "per_image_of": {"whole_grid": of_images}}

    for sweep in (here / "ddim", here / "euler"):
        change(sweep, own)
    said = told("outputs/ddim", "outputs/euler", "--metrics", "mine,bare,whole_grid")
    mine, bare, grid = (outcome(said, name) for name in ("mine", "bare", "whole_grid"))
    assert mine["difference"] == pytest.approx(-0.6)
    assert mine["low"] < -0.6 < mine["high"] < 0
    assert bare["low"] is None
    assert "one number a job" in bare["note"]
    assert grid["difference"] == pytest.approx(0.1)
    assert grid["low"] is not None
    a, b = (
        "outputs/ddim/" + next(iter(records(here / "ddim"))),
        "outputs/euler/" + next(iter(records(here / "euler"))),
    )
    if len(records(here / "ddim")) == 1:
        [x], [y] = (read_sweep(here / name).rows for name in ("ddim", "euler"))
        page = difference(y, x, "mine")
        one = outcome(told(a, b, "--metrics", "mine"), "mine")
        assert (one["low"], one["high"]) == pytest.approx((page.low, page.high))


def test_pareto_fronts(told):
    said = told("outputs/ddim", "outputs/euler", "--each")
    front = next(f for f in said["pareto"] if (f["metric"], f["cost"]) == ("clip_score", "nfe"))
    points = {p["side"]: p for p in front["points"]}
    best = max(p["value"] for p in points.values())
    assert next(p for p in points.values() if p["value"] == best)["on_front"]
    for p in points.values():
        beaten = [q for q in points.values() if q["cost"] <= p["cost"] and q["value"] >= p["value"] and q != p]
        strictly = [q for q in beaten if (q["cost"], q["value"]) != (p["cost"], p["value"])]
        assert p["on_front"] == (not strictly)


# --- refusals


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["outputs/none", "outputs/ddim"], "outputs/none: found no such folder"),
        (["outputs/eulr", "outputs/ddim"], "Did you mean 'euler'?"),
        (["outputs/late"], "found one job; accepted are two jobs"),
        (["outputs/ddim", "outputs/ddim"], "found twice"),
        (["outputs"], "found sweeps inside"),
        (["outputs/ddim", "outputs/euler", "--metrics", "fdi"], "'fdi', which no job has. Did you mean 'fid'?"),
        (["outputs/ddim", "--axis", "guidance.scal"], "Did you mean 'guidance.scale'?"),
        (
            ["outputs/ddim", "--axis", "steps"],
            "found one value (2) in 2 jobs; accepted are axes that vary: guidance.scale",
        ),
        (["outputs/ddim", "--baseline", "9"], "--baseline: found '9'. Accepted: guidance scale 1; guidance scale 3"),
        (["outputs/ddim", "--where", "guidance.scale=9"], "accepted are values of guidance.scale there are: 1, 3"),
        (["outputs/ddim", "--where", "steps"], "accepted is KEY=VALUE"),
        (["outputs/ddim", "--level", "95"], "--level: found 95"),
        (["outputs/ddim", "--json", "--md"], "found two formats for the standard output"),
        (["outputs/ddim", "--json", "none/x.json"], "there is no folder none"),
        (["outputs/ddim", "outputs/euler", "--repeats", "outputs/late"], "found no run of a job that is compared"),
        (["outputs/ddim", "outputs/ddim2", "--repeats", "outputs/ddim2"], "which is on 2 sides"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_one_clear_line(words, said, made, monkeypatch, capsys):
    monkeypatch.chdir(made.parent)
    assert said in line(capsys, *words)


def test_half_deleted_and_failed_jobs(here, capsys):
    (job, other) = sorted((here / "ddim").glob("*/result.json"))
    job.unlink()
    assert "without result.json" in line(capsys, str(job.parent), "outputs/euler")
    change(here / "ddim", lambda r: r.update(status="failed", error="no luck\nmore"))
    assert "found no done job (1 failed: no luck)" in line(capsys, "outputs/ddim", "outputs/euler")
    assert "found a failed job (no luck)" in line(capsys, str(other.parent), "outputs/euler")


def test_settings_without_a_counterpart_cannot_be_paired(here, capsys):
    def unguided(record: dict[str, Any]) -> None:
        record["config"]["guidance"] = {"_target_": "research.guidance.NoGuidance"}

    change(here / "late", unguided)
    said = line(capsys, "outputs/ddim", "outputs/late", "--axis", "guidance")
    assert "guidance CFG has guidance.scale=1, guidance NoGuidance has guidance.scale=None" in said


def test_too_many_sides_want_a_baseline(here, capsys):
    (job, _) = sorted((here / "ddim").glob("*/result.json"))
    record = json.loads(job.read_text())
    for k in range(18):
        record["config"]["steps"], record["job_id"] = k + 1, f"{k:012d}"
        folder = here / "many" / record["job_id"]
        folder.mkdir(parents=True)
        record["images"] = [{**i, "sha256": f"{k}{i['sha256']}"} for i in record["images"]]
        (folder / "result.json").write_text(json.dumps(record))
    assert "found 18 sides, 153 pairs; accepted are 16 sides, or --baseline" in line(
        capsys, "outputs/many", "--metrics", "clip_score"
    )
    assert main(["outputs/many", "--metrics", "clip_score", "--baseline", "000000000003"]) == 0


@pytest.mark.slow
def test_numbers_of_single_images_need_no_torch(made):
    code = (
        "import sys; from research.compare.cli import main; "
        "assert main(['outputs/ddim', 'outputs/euler', '--metrics', 'clip_score,nfe,seconds_per_image']) == 0; "
        "assert not {'torch', 'matplotlib', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=made.parent, check=True, timeout=600, capture_output=True)


def test_what_a_models_config_turned_on_for_one_side_is_said(here, told):
    warning = "use_karras_sigmas: the model's config turns it on, and euler_a takes it: its noise levels are others"
    change(here / "euler", lambda record: record["warnings"].append(warning))
    notes = told("outputs/ddim", "outputs/euler")["notes"]
    assert any(note.endswith(warning) and note.startswith("euler") for note in notes)
    change(here / "ddim", lambda record: record["warnings"].append(warning))
    assert not any(warning in note for note in told("outputs/ddim", "outputs/euler")["notes"])


@pytest.mark.slow
def test_the_effective_scale_is_that_of_cfg_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = [
        "tracker=none",
        "metrics=[clip_score]",
        "steps=3",
        "images_per_prompt=4",
        "prompts=[fox,cat]",
        "hooks=record",
    ]
    assert run(["-m", *more, "guidance.scale=2,3.5"]) == 0
    capsys.readouterr()
    assert main(["outputs/default", "--axis", "guidance.scale", "--effective-scale", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sides"]
    assert [side["effective_scale"] for side in found] == pytest.approx([2.0, 3.5], rel=1e-4)
    assert [side["beside_cfg"] for side in found] == pytest.approx([0.0, 0.0], abs=1e-4)
    assert main(["outputs/default", "--axis", "guidance.scale", "--effective-scale"]) == 0
    assert "effective scale" in capsys.readouterr().out
    for file in (tmp_path / "outputs" / "default").glob("*/trace.json"):
        file.unlink()
    assert main(["outputs/default", "--axis", "guidance.scale", "--effective-scale"]) == 2
    assert "--effective-scale: found no job whose trace says it" in capsys.readouterr().err
