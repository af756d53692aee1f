"""The points of a sweep: products, axes that go together, exclusions, files of points, random subsets."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from research.errors import ConfigError
from research.jobs.compose import Composer
from research.jobs.exclusion import MISSING, rule
from research.jobs.points import points_of


def points(*lines: str, config_dir: Path | None = None) -> list[str]:
    """The points of a command line, each as a person writes it."""
    with Composer(None if config_dir is None else str(config_dir)) as composer:
        normal = composer.normalise(lines)
        found = points_of(composer, composer.master(normal), normal).found
    return [" ".join(line.lstrip("+") for line in point) for point in found]


# -- axes


def test_products_and_hydras_grammar() -> None:
    assert points("scheduler=ddim,euler", "steps=range(1,3)") == [
        "scheduler=ddim steps=1", "scheduler=ddim steps=2", "scheduler=euler steps=1", "scheduler=euler steps=2"
    ]  # fmt: skip
    assert points("steps=choice(3,1)", "guidance.scale=range(0,1,0.5)") == [
        "steps=3 guidance.scale=0.0", "steps=3 guidance.scale=0.5",
        "steps=1 guidance.scale=0.0", "steps=1 guidance.scale=0.5",
    ]  # fmt: skip
    assert points("scheduler=glob(euler*)", "seed=sort(3,1,2)")[:2] == [
        "scheduler=euler seed=1",
        "scheduler=euler seed=2",
    ]
    assert points("steps=3") == ["steps=3"]


def test_axes_that_go_together() -> None:
    lines = ["scheduler=ddim,euler", "seed=0,1", "steps=4,8", "sweep.zip=[[scheduler,steps]]"]
    together = ["scheduler=ddim seed=0 steps=4", "scheduler=ddim seed=1 steps=4"]
    assert points(*lines) == [*together, "scheduler=euler seed=0 steps=8", "scheduler=euler seed=1 steps=8"]
    assert points(*lines[:-1], "sweep.zip=[scheduler,steps]") == points(*lines)
    # one value goes with all
    assert points("scheduler=ddim,euler", "steps=4", "sweep.zip=[scheduler,steps]") == [
        "scheduler=ddim steps=4", "scheduler=euler steps=4"
    ]  # fmt: skip


def test_an_experiment_says_its_points(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nsweep:\n  zip: [[scheduler, steps]]\n  exclude:\n    - {scheduler: euler, seed: [1, 2]}\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      scheduler: ddim,euler\n      steps: 4,8\n      seed: range(0,3)\n"
    )
    found = points("experiment=mine", config_dir=tmp_path)
    assert [line.removesuffix(" experiment=mine") for line in found] == [
        "scheduler=ddim steps=4 seed=0", "scheduler=ddim steps=4 seed=1", "scheduler=ddim steps=4 seed=2",
        "scheduler=euler steps=8 seed=0",
    ]  # fmt: skip
    # the command line replaces an axis, and a setting
    found = points("experiment=mine", "seed=5", "sweep.exclude=[]", config_dir=tmp_path)
    assert [line.split()[:3] for line in found] == [
        ["scheduler=ddim", "steps=4", "seed=5"],
        ["scheduler=euler", "steps=8", "seed=5"],
    ]


# -- exclusion


@pytest.mark.parametrize(
    ("given", "holds"),
    [
        ("steps=5", True),
        ("steps == 5.0", True),
        ("steps!=5", False),
        ("steps<5 or scheduler=heun", True),
        ("steps<=5 and scheduler=heun", True),
        ("not steps>=5", False),
        ("(steps=1 or steps=5) and not scheduler in [ddim, 'euler']", True),
        ("steps=5 and scheduler=ddim or seed=1", False),
        ("scheduler='heun'", True),
        ("scheduler<5", False),
        ("unknown=1", False),
        ("not unknown=1", True),
        ("flag=true", True),
        ("flag=1", False),
        ("nothing=null", True),
        ("guidance/modifiers=interval", True),
        ("prompts=[a, b]", True),
        ({"steps": [4, 5], "scheduler": "heun"}, True),
        ({"steps": "<5"}, False),
        ({"steps": ">= 5", "flag": True}, True),
    ],
)  # fmt: skip
def test_rules(given: object, holds: bool) -> None:
    point = {
        "steps": 5, "scheduler": "heun", "seed": 0, "flag": True, "nothing": None, "guidance/modifiers": "interval",
        "prompts": ["a", "b"],
    }  # fmt: skip
    assert rule(given, "sweep.exclude[0]")(lambda key: point.get(key, MISSING)) is holds


@pytest.mark.parametrize(
    "given", ["", "steps", "steps<", "steps 5", "=5", "(steps=5", "steps=5 seed=1", "a=1 &", 5, [], {}, {"a b": 1}]
)
def test_rules_that_cannot_be_read(given: object) -> None:
    with pytest.raises(ConfigError, match=r"^sweep\.exclude\[0\]: "):
        rule(given, "sweep.exclude[0]")


def test_excluded_by_what_a_point_composes_to() -> None:
    found = points("guidance=cfg,apg,none", "steps=1,2", 'sweep.exclude=["guidance.scale>4 and steps=1", "steps=2"]')
    assert found == ["guidance=cfg steps=1", "guidance=none steps=1"]


# -- files


@pytest.mark.parametrize("suffix", [".csv", ".yaml", ".json"])
def test_points_from_a_file(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"points{suffix}"
    rows = [
        {"scheduler": "ddim", "guidance.scale": 3, "task.negative_prompt": "blurry, bad: 'x'"},
        {"scheduler": "euler", "prompts": ["a fox", "an owl"]},
    ]
    if suffix == ".csv":
        file.write_text(
            "scheduler,guidance.scale,prompts,task.negative_prompt\n"
            "ddim,3,,\"blurry, bad: 'x'\"\n"
            'euler,,"[a fox,an owl]",\n'
        )
    else:
        nested = [{**rows[0], "guidance": {"scale": 3}}, rows[1]]
        del nested[0]["guidance.scale"]
        file.write_text(json.dumps(nested))
    with Composer() as composer:
        lines = composer.normalise([f"sweep.points={file}", "seed=0,1"])
        master = composer.master(lines)
        jobs = [composer.job(master, point) for point in points_of(composer, master, lines).found]
    assert [(j["scheduler"]["name"], j["seed"]) for j in jobs] == [("ddim", 0), ("ddim", 1), ("euler", 0), ("euler", 1)]
    assert jobs[0]["task"]["negative_prompt"] == rows[0]["task.negative_prompt"]
    assert jobs[0]["guidance"]["scale"] == 3
    assert len(jobs[0]["prompts"]) == 8
    assert jobs[2]["prompts"] == rows[1]["prompts"]


# -- subsets


@pytest.mark.slow
def test_random_subsets() -> None:
    lines = ["steps=range(1,30)", "seed=range(0,30)"]
    everything = points(*lines)
    few, more = points(*lines, "sweep.sample=5"), points(*lines, "sweep.sample=20")
    assert len(set(few)) == 5
    assert few == [point for point in everything if point in few]
    assert set(few) < set(more)  # a larger subset goes on from a smaller one
    assert points(*lines, "sweep.sample=5") == few != points(*lines, "sweep.sample=5", "sweep.seed=1")
    assert points("steps=1,2", "sweep.sample=5") == ["steps=1", "steps=2"]
    assert all("steps=1 " not in point for point in points(*lines, "sweep.sample=400", "sweep.exclude='steps=1'"))


@pytest.mark.slow
def test_large_products_are_not_gone_through() -> None:
    start = time.process_time()
    with pytest.raises(ConfigError) as error:
        points("steps=range(1,1001)", "seed=range(0,1000)")
    assert str(error.value).startswith(
        "sweep.max_points: the sweep has 1,000,000 points (steps 1,000 x seed 1,000), and 10,000 are accepted"
    )
    with pytest.raises(ConfigError, match="1,000,000,000,000 points"):
        points("seed=range(0,1000000000)", "steps=range(1,1001)")
    assert len(points("seed=range(0,1000000000)", "steps=range(1,1001)", "sweep.sample=3")) == 3
    assert time.process_time() - start < 3
    assert len(points("seed=range(0,11000)", "sweep.max_points=11000")) == 11000


# -- what cannot be a sweep


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["steps=range(5,5)"], "steps: found range(5,5), which has no values"),
        (["scheduler=glob(zz*)"], "scheduler: found glob(zz*), which has no values"),
        (["steps=interval(1,5)"], "steps: an interval has no end of values"),
        (["seed=range(0,3,0)"], "seed: found range(0,3,0), a range with the step 0"),
        (["guidance.scale=range(0,1,0.0000001)"], "guidance.scale: found range(0,1,0.0000001), 10,000,000 values"),
        (["steps=1,2", "steps=3"], "steps: given twice, steps=1,2 and steps=3"),
        (["scheduler=ddim,euler", "scheduler=heun,lms"], "scheduler: given twice"),
        (["steps=1,2", "seed=0,1,2", "sweep.zip=[steps,seed]"], "differ in length (steps 2, seed 3)"),
        (["steps=1,2", "sweep.zip=[steps,seed]"], "sweep.zip: 'seed' has no values to go with those of steps"),
        (["steps=1,2", "sweep.zip=[steps]"], "sweep.zip: found ['steps']"),
        (["steps=1,2", "seed=1,2", "sweep.zip=[[steps,seed],[seed,steps]]"], "sweep.zip: found 'steps' twice"),
        (["steps=1,2", "sweep.zip=steps"], "sweep.zip: found 'steps'"),
        (["steps=1,2", 'sweep.exclude="steps>0"'], "sweep.exclude: leaves none of the 2 points"),
        (["steps=1,2", 'sweep.exclude="stepps>0"'], "sweep.exclude: 'stepps' is no key of any point"),
        (["steps=1,2", 'sweep.exclude="steps>"'], "sweep.exclude[0]: 'steps>' ends where a value was expected"),
        (["steps=1,2", "sweep.sample=0"], "sweep.sample: found 0"),
        (["steps=1,2", "sweep.seed=-1"], "sweep.seed: found -1"),
        (["steps=1,2", "sweep.sampel=1"], "Did you mean 'sample'?"),
        (["steps=1,2", "sweep.seed=0,1"], "sweep.seed: cannot be swept over"),
        (["sweep.points=nowhere.csv"], "sweep.points: nowhere.csv cannot be read"),
        (["sweep.points=points.txt"], "sweep.points: found 'points.txt'"),
        (["sweep.points=empty.csv"], "sweep.points: empty.csv holds no points"),
        (["sweep.points=mapping.yaml"], "sweep.points: mapping.yaml: found dict"),
        (["sweep.points=wrong.csv"], "sweep.points: wrong.csv, point 2: scheduler: unknown scheduler 'dimm'"),
        (["sweep.points=wide.csv"], "sweep.points: wide.csv, row 2: found 3 cells for 2 columns"),
        (["sweep.points=right.csv", "steps=1,2"], "steps: given twice, in right.csv and as steps=1,2"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
@pytest.mark.spread(5)
def test_bad_sweeps(lines: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "empty.csv": "steps,seed\n",
        "mapping.yaml": "steps: 3\n",
        "wrong.csv": "scheduler,steps\nddim,3\ndimm,3\n",
        "wide.csv": "scheduler,steps\nddim,3,4\n",
        "right.csv": "scheduler,steps\nddim,3\n",
    }
    for name, text in files.items():
        Path(name).write_text(text)
    with pytest.raises(ConfigError) as error:
        points(*lines)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
