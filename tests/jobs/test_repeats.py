"""Batches that are run again for their time: at the end of a job, and of jobs that are done. No time itself is asserted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from research.cli import run
from research.jobs.record import read_result
from research.results.read import read_row
from research.results.timing import REPEATS


@pytest.fixture
def base(sd_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    own = [f"model.path={sd_directory}", "tracker=none", "metrics=none", "runtime.threads=1", "sweep_name=s"]
    return [*own, "prompts=[fox,owl,cat]", "batch_size=2"]


def jobs(place: str = "outputs/s") -> list[Path]:
    return sorted(file.parent for file in Path(place).glob("*/result.json"))


def pictures(folder: Path) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("images/*.png"))]


STEPS = "steps=3"


def test_runs_for_the_time_change_neither_pictures_nor_the_job(base):
    assert run([*base, STEPS, "output_dir=plain"]) == 0
    assert run([*base, STEPS, "runtime.repeats=3", "runtime.latency=2"]) == 0
    (plain,), (timed,) = jobs("plain/s"), jobs()
    assert plain.name == timed.name
    one, other = read_result(plain), read_result(timed)
    assert [i.sha256 for i in one.images] == [i.sha256 for i in other.images]
    assert (one.timed, one.nfe, one.n_images) == (None, other.nfe, other.n_images)
    assert other.timed is not None
    assert [run.n_images for run in other.timed.batch] == [2, 2, 2]
    assert [run.n_images for run in other.timed.one] == [1, 1]
    assert all(run.denoise > 0 for run in (*other.timed.batch, *other.timed.one))
    assert other.timings.keys() == one.timings.keys()
    row = read_row(timed)
    assert (row.timing.by, row.timing.seconds.n, row.timing.latency.n) == (REPEATS, 3, 2)
    assert read_row(plain).timing.latency is None


def test_jobs_that_are_timed_share_no_batches(base):
    assert run(["-m", *base, STEPS, "batch_size=auto", "guidance.scale=2,3", "runtime.repeats=1"]) == 0
    found = [read_result(folder) for folder in jobs()]
    assert [result.together for result in found] == [[], []]
    assert all(result.timed and len(result.timed.batch) == 1 and not result.timed.one for result in found)


@pytest.mark.slow
def test_jobs_that_are_done_are_timed_again(base, capsys):
    assert run(["-m", *base, STEPS, "guidance.scale=2,3"]) == 0
    before = {folder: (pictures(folder), read_result(folder)) for folder in jobs()}
    first, second = jobs()
    capsys.readouterr()
    assert run(["again", str(first), "--time", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"[1/1] {first}: ")
    assert "s / image in batches of " in out
    assert read_result(second).timed is None
    after = read_result(first)
    assert after.timed is not None
    assert (len(after.timed.batch), len(after.timed.one)) == (2, 2)
    after.timed = None
    assert (pictures(first), after) == before[first]
    # a sweep with a job that failed: the others
    record = json.loads((second / "result.json").read_text())
    (second / "result.json").write_text(json.dumps({**record, "status": "failed", "images": [], "n_images": 0}))
    assert run(["again", "outputs/s", "--time", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"[1/1] {first}: ")
    assert "latency" in Path("outputs/s/report.html").read_text()


def test_what_cannot_be_timed(base, capsys):
    assert run([*base, STEPS]) == 0
    (folder,) = jobs()
    picture = next(folder.glob("images/*.png"))
    for words, said in (
        ([str(picture), "--time", "2"], "is no folder; accepted is the folder of a sweep"),
        ([str(folder), "--time", "0"], "--time: found 0"),
        ([str(folder), "--time", "1", "--out", "x"], "--out: goes with pictures"),
        ([str(folder), str(picture), "--out", "x"], "--out: found with several places"),
    ):
        capsys.readouterr()
        assert run(["again", *words]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) == 1


def test_what_is_no_count(base, capsys):
    assert run([*base, STEPS, "runtime.repeats=-1"]) == 2
    assert "runtime.repeats: found -1" in capsys.readouterr().err


# -- jobs over a budget


@pytest.mark.slow
def test_jobs_over_the_budget_are_left_out_with_a_word(base, capsys):
    asked = ["-m", *base, "guidance=none", "steps=2,3,4", "budget.nfe=3"]
    assert run([*asked, "--plan"]) == 0
    out = capsys.readouterr().out
    assert "over the budget: " in out
    assert "steps=4 budget" not in out  # the budget is no setting of a job
    assert "1 job over budget.nfe is left out" in out
    assert run([*asked, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert ([each["nfe"] for each in plan["over_budget"]], len(plan["jobs"]), plan["duplicates"]) == ([4], 2, 0)
    assert run(asked) == 0
    assert [read_result(folder).nfe for folder in jobs()] in ([2, 3], [3, 2])
    assert json.loads(Path("outputs/s/sweep.json").read_text())["budget"] == {"nfe": 3.0}
    assert "budget" not in read_result(jobs()[0]).config
    assert run([*asked, "budget.over=run"]) == 0
    assert sorted(read_result(folder).nfe for folder in jobs()) == [2, 3, 4]


def test_a_budget_below_all_jobs_is_refused(base, capsys):
    for words in (["-m", *base, "guidance=none", "steps=3,4"], [*base, STEPS, "guidance=none"]):
        assert run([*words, "budget.nfe=2"]) == 2
        err = capsys.readouterr().err
        assert "budget.nfe: is less than any of the" in err
        assert "accepted are 3 (" in err
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("budget.nfe=0", "budget.nfe: found 0; accepted is a number above 0."),
        ("+budget.steps=2", "budget.steps: unknown key."),
        ("budget.over=never", "budget.over: found 'never'"),
        ("budget.nfe=1,2", "budget.nfe: cannot be swept over"),
    ],
)
@pytest.mark.spread(2)
def test_what_is_no_budget(base, capsys, line, said):
    assert run(["-m", *base, line]) == 2
    assert said in capsys.readouterr().err
