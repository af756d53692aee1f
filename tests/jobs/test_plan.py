"""``--plan``: what would run, what it costs, how it stands and what cannot; without torch, and quickly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import research
from research.cli import run

LIGHT = """
import sys, time
from research.cli import run
code = run(sys.argv[1:])
heavy = [name for name in ("torch", "diffusers", "transformers", "wandb", "matplotlib", "pandas") if name in sys.modules]
assert not heavy, heavy
print(time.process_time(), file=sys.stderr)
sys.exit(code)
"""


def light(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, which fails if it imports anything heavy; the last line of its stderr is its processor time."""
    environment = {**os.environ, "PYTHONPATH": str(Path(research.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-c", LIGHT, *argv], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def base(tiny_sd: Path) -> list[str]:
    return [f"model.path={tiny_sd}", "tracker=none", "metrics=none", "prompts=[fox,owl]", "runtime.threads=1"]


def planned(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["--plan", "--json", *argv]) == code
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_thousand_jobs_within_seconds(here: Path) -> None:
    axes = ["scheduler=ddim,euler,heun,lms,pndm", "guidance=cfg,apg,none,pag", "steps=range(10,20)", "seed=range(0,5)"]
    done = light("-m", "--plan", *axes, cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" waiting ") == 1000
    assert "1000 jobs: 1000 waiting" in done.stdout
    assert float(done.stderr.split()[-1]) < 8, "seconds of processor time, the start of Python among them"
    assert not list(here.iterdir())


def test_the_table(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["-m", *base, "scheduler=ddim,heun", "steps=4,8", 'sweep.exclude="scheduler=heun and steps>4"']
    assert run(["--plan", *sweep]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["job", "state", "scheduler", "steps", "images", "NFE"]
    assert [line.split()[1:] for line in table[1:4]] == [
        ["waiting", "ddim", "4", "2", "8"],
        ["waiting", "ddim", "8", "2", "16"],
        ["waiting", "heun", "4", "2", "14"],
    ]
    assert "to run: 6 images, 76 model evaluations" in table
    assert "sweep.exclude leaves out 1 points" in table
    assert not list(here.iterdir())


@pytest.mark.slow
def test_states_and_times(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*base, "steps=3", "scheduler=euler"]) == 0
    sweep = ["-m", *base, "steps=3,6", "scheduler=euler"]
    found = planned(capsys, *sweep)
    assert [(job["state"], job["nfe"]) for job in found["jobs"]] == [("done", 6), ("waiting", 12)]
    record = json.loads(next(here.glob("outputs/*/*/result.json")).read_text())
    assert found["jobs"][0]["job_id"] == record["job_id"]
    assert found["states"] == {"done": 1, "failed": 0, "waiting": 1}
    assert found["evaluations_left"] == 24
    # twice the evaluations: more time than the done job's own sampling, in the same order
    spent = record["timings"]["total"] - record["timings"]["load"]
    assert spent <= found["jobs"][1]["seconds"] < 3 * spent
    assert found["seconds_left"] == found["jobs"][1]["seconds"]
    # a damaged job counts as waiting, a failed one says why
    next(here.glob("outputs/*/*/images/*.png")).unlink()
    assert planned(capsys, *sweep)["states"]["waiting"] == 2
    file = next(here.glob("outputs/*/*/result.json"))
    failed = {**record, "status": "failed", "error": "it broke"}
    del failed["seal"]  # what was altered by hand counts as no result; earlier versions wrote none
    file.write_text(json.dumps(failed))
    assert planned(capsys, *sweep)["jobs"][0]["error"] == "it broke"


@pytest.mark.slow
def test_all_impossible_points_are_listed(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["-m", *base, "steps=4,0,1001", "guidance.scale=2,nan"]
    found = planned(capsys, *sweep, code=2)
    assert len(found["jobs"]) == 1
    assert len(found["impossible"]) == 5
    assert "found 1001" in next(p["error"] for p in found["impossible"] if "steps=1001" in p["overrides"])
    assert run(["--plan", *sweep]) == 2
    shown = capsys.readouterr().out
    assert shown.count("cannot run: ") == 5
    assert "5 of 6 points cannot run" in shown
    # and the sweep itself does not start, in one line
    assert run(sweep) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "4 more cannot run, --plan lists them" in error
    assert not list(here.iterdir())


def test_impossible_points_may_be_left_out(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Those that the plan finds, and those that only a look at plugs and model finds."""
    axes = ["scheduler=ddim,heun", "guidance=cfg_plus_plus", "steps=3,0", "sweep.impossible=skip"]
    sweep = ["-m", *base, *axes]
    assert run(["--plan=full", *sweep]) == 0
    shown = capsys.readouterr().out
    assert shown.count("cannot run: ") == 3
    assert "3 of 4 points cannot run, and the sweep does without them" in shown
    assert run(sweep) == 0
    said = capsys.readouterr().err
    assert said.count("left out: ") == 3
    assert said.endswith("warning: 3 of 4 points cannot run and were left out; --plan=full lists them\n")
    assert len(list(here.glob("outputs/*/*/result.json"))) == 1
    # nothing is left
    assert run(["-m", *base, "steps=0,1001", "sweep.impossible=skip"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert run(["-m", *base, "steps=3,4", "sweep.impossible=maybe"]) == 2
    assert "accepted: stop, skip" in capsys.readouterr().err


def test_duplicates_are_said(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    axes = ["prompt_set=emoji_8,heldout_16", "guidance.scale=1,1.0,2"]
    assert run(["--plan", "-m", *base, *axes]) == 0
    shown = capsys.readouterr().out
    assert "4 of 6 points are jobs that others are already; prompt_set makes no difference" in shown
    assert "2 jobs: 2 waiting" in shown


def test_the_full_plan_checks_the_fit(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["-m", *base, "scheduler=ddim,heun", "guidance=cfg_plus_plus", "steps=3"]
    assert run(["--plan", *sweep]) == 0
    assert "--plan=full" in capsys.readouterr().out
    assert run(["--plan=full", *sweep]) == 2
    shown = capsys.readouterr().out
    assert shown.count("cannot run: ") == 1
    assert "scheduler=heun" in shown
    assert not list(here.iterdir())


FAULTY = """
from research.guidance import CFG


class Constructor(CFG):
    def __init__(self, scale=3.0):
        raise RuntimeError("not today")


class Check(CFG):
    def check(self, model, solver):
        return model.no_such_thing


class Requires(CFG):
    @property
    def requires(self):
        return 1 / 0
"""


def test_a_faulty_plug_leaves_the_plan_of_the_others(
    here: Path, base: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine" / "guidance").mkdir(parents=True)
    (here / "faulty_of_mine.py").write_text(FAULTY)
    for name in ("Constructor", "Check", "Requires"):
        text = f"_target_: faulty_of_mine.{name}\nscale: 3.0\n"
        (here / "mine" / "guidance" / f"{name.lower()}.yaml").write_text(text)
    sweep = ["--config-dir", "mine", "-m", *base, "guidance=cfg,constructor,check,requires", "steps=3"]
    assert run(["--plan=full", *sweep]) == 2
    shown = capsys.readouterr().out
    assert "1 job: 1 waiting" in shown
    lines = [line for line in shown.splitlines() if "cannot run: " in line]
    assert len(lines) == 3
    for line, words in zip(
        sorted(lines),
        [("Check", "no_such_thing"), ("Constructor", "not today"), ("Requires", "ZeroDivision")],
        strict=True,
    ):
        assert words[1] in line, words


def test_a_single_job_has_a_plan_too(here: Path, base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *base, "steps=3")
    assert [job["nfe"] for job in found["jobs"]] == [6]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--json"], "--json goes with --plan"),
        (["--plan=some"], "invalid choice: 'some'"),
        (["sweep.sample=3"], "sweep.sample: is of account for a sweep; start it with research -m"),
        (["--plan", "steps=1,2"], "several values make a sweep"),
        (["-m", "seed=range(0,1000)", "steps=range(1,1001)"], "sweep.max_points: the sweep has 1,000,000 points"),
    ],
)  # fmt: skip
def test_bad_plans(argv: list[str], expected: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 2
    shown = capsys.readouterr().err
    assert expected in shown
    assert shown.count("\n") == 1
    assert not list(here.iterdir())


@pytest.mark.slow
def test_models_of_one_place_count_the_steps_of_a_strength_each_in_its_way(
    here: Path, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With parity: a scheduler that is told the strength makes all steps, others none of 0.8. Whichever is looked at first."""
    from research.testing.random_pipelines import BUILDERS

    BUILDERS["lcm"](here / "models" / "lcm")
    shutil.copytree(tiny_sd, here / "models" / "sd")
    Image.new("RGB", (64, 64), "red").save(here / "red.png")
    lines = ["tracker=none", "metrics=none", "prompts=[fox]", "runtime.parity=true", "steps=4", "guidance.scale=1"]
    lines += [f"model.path={here / 'models'}", "task=image_to_image", "task.image=red.png", "task.strength=0.2"]
    for order in ("lcm,sd", "sd,lcm"):
        found = planned(capsys, "-m", *lines, "scheduler=model", f"model.subfolder={order}", code=2)
        assert len(found["jobs"]) == 1, found["impossible"]
        (impossible,) = found["impossible"]
        assert "model.subfolder=sd" in impossible["overrides"]
        assert "task.strength" in impossible["error"]
