"""Levels that are found: the search is exact, the descent descends, and the command writes a file that a run takes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from research import cli
from research.errors import ConfigError
from research.metrics import FID
from research.sigma_search.bench import Bench
from research.sigma_search.cli import compose, run
from research.sigma_search.descent import descend
from research.sigma_search.gits import cheapest
from research.sigma_search.objectives import objective_of
from research.sigmas import Given, Karras
from research.solvers import TrainedLevels

TRAINED = TrainedLevels(tuple(0.03 * 1.0063**i for i in range(1000)), 1000)


@given(
    count=st.integers(2, 7),
    steps=st.integers(1, 4),
    seed=st.integers(0, 1000),
    coefficient=st.sampled_from([1.0, 1.15, 2.0]),
)
@settings(max_examples=40, deadline=None)
def test_the_way_found_is_the_cheapest_of_all(count, steps, seed, coefficient):
    cost = torch.rand(count, count + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for i in range(count):
        cost[i, : i + 1] = math.inf
    if steps > count:
        with pytest.raises(ConfigError, match=f"found {steps}; accepted are 1 to {count}"):
            cheapest(cost, steps, coefficient)
        return

    def total(way):
        return sum(coefficient**k * float(cost[a, b]) for k, (a, b) in enumerate(itertools.pairwise(way)))

    ways = [(0, *inside, count) for inside in itertools.combinations(range(1, count), steps - 1)]
    found = cheapest(cost, steps, coefficient)
    assert found in [list(way) for way in ways]
    assert total(found) == pytest.approx(min(map(total, ways)))


def test_descent_finds_the_least_and_never_gets_worse():
    """The distance in log-sigma from a grid that is known."""
    right = [14.0, 5.0, 1.5, 0.4, 0.1]
    tried = []

    def error(sigmas):
        assert all(a > b for a, b in itertools.pairwise(sigmas))
        tried.append(sum(math.log(a / b) ** 2 for a, b in zip(sigmas, right, strict=True)))
        return tried[-1]

    start = [14.0, 8.0, 4.0, 2.0, 1.0]
    found = descend(error, start, TRAINED, 300)
    assert found[0] == 14.0
    assert error(found) == min(tried) < 0.01 * tried[0]
    assert len(tried) <= 302
    assert descend(error, right, TRAINED, 3) == right


@pytest.fixture
def words(tiny_sd: Path) -> list[str]:
    return [f"model.path={tiny_sd}", "prompts=[a cat,a dog]", "guidance.scale=2", "runtime.threads=1"]


@pytest.mark.parametrize("method", ["gits", "search"])
@pytest.mark.spread(1)
def test_the_file_is_taken_by_a_run(words, method, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    asked = ["optimise", *words, "scheduler=dpmpp_2m", "steps=3", "--images", "2", "--fine", "12"]
    assert run([*asked, "--method", method, "--evaluations", "6", "-o", "my.yaml"]) == 0
    out = capfd.readouterr().out
    assert "more than found" in out
    assert "karras" in out
    content = yaml.safe_load(Path("my.yaml").read_text())
    assert len(content["sigmas"]) == 3
    assert content["sigmas"] == sorted(content["sigmas"], reverse=True)
    found = content["found"]
    assert (found["scheduler"], found["steps"], found["method"]) == ("dpmpp_2m", 3, method)
    assert found["seeds"] == [0, 1]
    assert found["judged_on_seeds"] == [2, 3]
    assert found["error"]["found"] > 0
    assert len(found["weights_sha256"]) == 64
    used = ["sigmas=file", "sigmas.path=my.yaml", "scheduler=dpmpp_2m", "steps=3", "metrics=none", "tracker=none"]
    assert cli.run([*words, *used]) == 0


@pytest.mark.slow
def test_descent_of_fid_tries_grids_by_their_pictures(words, tmp_path, monkeypatch, capfd):
    """On pictures of the other half of seeds, with an interval, and with what so few images can tell; also of a solver that
    adds noise."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "real"
    folder.mkdir()
    for i in range(12):
        Image.effect_noise((32, 32), 20 + 5 * i).convert("RGB").save(folder / f"{i}.png")
    asked = ["optimise", *words, "scheduler=euler_a", "steps=3", "--images", "8", "--fine", "12", "-o", "my.yaml"]
    fid = ["--method", "search", "--objective", "fid", "--evaluations", "4", f"metrics.fid.reference={folder}"]
    assert run([*asked, *fid]) == 0
    out = capfd.readouterr().out
    assert "FID (95 %)" in out
    assert "FID of 8 images on" in out
    assert "biased upward" in out
    content = yaml.safe_load(Path("my.yaml").read_text())
    assert content["sigmas"] == sorted(content["sigmas"], reverse=True)
    found = content["found"]
    assert (found["objective"], found["seeds"], found["judged_on_seeds"]) == ("fid", [0, 7], [8, 15])
    assert {"found", "model", "karras"} <= found["fid"].keys()
    assert "error" not in found


@pytest.mark.slow
def test_fid_of_a_grid_is_that_of_the_metric(words, tmp_path, monkeypatch):
    """The number that is descended is the one that a record would say of these pictures."""
    monkeypatch.chdir(tmp_path)
    config = compose([*words, "steps=3"], 8, metrics="fid")
    bench = Bench(config, 12, compared=False)
    aim = objective_of("fid", bench, config, 8)
    pictures = bench.pictures(range(8), Karras())
    assert aim.value(range(8), Karras()) == pytest.approx(FID().compute(pictures).values["fid"], rel=1e-6)
    judged = aim.judge(
        range(8), {"found": Karras(), "same": Karras(), "model": None, "refused": Given(sigmas=[1.0, 2.0])}
    )
    assert set(judged) == {"found", "same", "model"}
    assert (judged["same"].more.value, judged["same"].more.se) == (0.0, 0.0)
    assert judged["model"].more.se > 0
    assert judged["found"].value.value == aim.value(range(8), Karras())


@pytest.mark.parametrize(
    ("more", "words_of_error"),
    [
        (["scheduler=euler_a", "steps=3"], "scheduler: euler_a adds noise of its own"),
        (["steps=1"], "steps: found 1; accepted are 2 and more"),
        (["steps=3,4"], "steps: found several values"),
        (["steps=12"], "--fine: found 12 for 12 steps"),
        (["stepz=3"], "stepz"),
        (["steps=3", "--images", "1"], "--images: found 1; accepted are 2 and more"),
        (["steps=3", "--coefficient", "0"], "--coefficient: found 0"),
        (["steps=3", "--objective", "fid"], "--objective: found fid with --method gits"),
        (
            ["steps=3", "--method", "search", "--objective", "fid"],
            "--images: found 2; accepted with --objective fid are 8",
        ),
        (
            ["steps=3", "--method", "search", "--objective", "fid", "--images", "8", "metrics=clip_score"],
            "metrics: found clip_score; accepted with --objective fid is one of the class FID",
        ),
    ],
)
@pytest.mark.spread(4)
def test_what_is_refused(words, more, words_of_error, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    flags = [] if "--images" in more else ["--images", "2"]
    assert run(["optimise", *words, *more, *flags, "--fine", "12", "-o", "my.yaml"]) == 2
    assert words_of_error in capfd.readouterr().err
    assert not Path("my.yaml").exists()
