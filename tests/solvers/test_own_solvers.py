"""A solver of one's own: as a class or an object, in a sweep, on every kind of model, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from research import LoopSampler
from research.cli import run
from research.errors import ConfigError
from research.guidance import CFG
from research.sampling import Guided, Prediction
from research.schedule import cli as schedule
from research.solvers import (
    Level,
    Levels,
    LinearSolver,
    SolverFactory,
    StagePlan,
    TrainedLevels,
    Update,
    along,
    to_data,
)
from research.solvers.linear import after_noise
from research.tasks import ImageToImage, TextToImage
from research.testing.gaussian import GaussianModel
from research.testing.gaussian_error import measure

SOURCE = (Path(__file__).parents[2] / "examples" / "my_solver.py").read_text(encoding="utf-8")


@dataclass(frozen=True)
class TwoStep(LinearSolver):
    """The exponential Adams-Bashforth method of order 2 in half log-SNR, with its own weight."""

    weight: float = 0.5
    divides = True

    def update(self, levels: Levels, i: int) -> Update:
        start, end = levels[i], levels[i + 1]
        if i == 0 or not end.noise:
            return to_data(start, end, {0: 1.0})
        behind = start.half_log_snr - levels.half_log_snr(i - 1)
        change = self.weight * (end.half_log_snr - start.half_log_snr) / behind
        return to_data(start, end, {0: 1.0 + change, 1: -change})


@pytest.mark.parametrize("scheduler", [TwoStep, TwoStep()])
def test_a_class_and_an_object_are_taken(sd, scheduler):
    mine = LoopSampler(sd, scheduler, guidance=CFG(2.0)).sample(TextToImage("a"), seeds=[0, 1], steps=6)
    assert mine.nfe == 12
    assert mine.latents.shape == (2, 4, 8, 8)
    same = LoopSampler(sd, TwoStep, {"weight": 0.0}, guidance=CFG(2.0)).sample(TextToImage("a"), seeds=[0], steps=6)
    euler = LoopSampler(sd, "euler", guidance=CFG(2.0)).sample(TextToImage("a"), seeds=[0], steps=6)
    assert torch.allclose(same.latents, euler.latents, atol=1e-5)
    assert not torch.allclose(same.latents, mine.latents[:1], atol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0", "flow"])
def test_it_is_as_exact_on_every_kind(kind):
    model = GaussianModel(0.3, 0.8, (1, 4, 4), kind)

    mine, euler = (measure(model, solver, 80).path for solver in (TwoStep, "euler"))
    assert mine < 0.5 * euler


def test_it_takes_strength_and_a_batch_is_its_images(sd):
    image = torch.rand(3, 16, 16)
    task = ImageToImage("a", image, strength=0.5)
    both, alone = (LoopSampler(sd, TwoStep).sample(task, seeds=seeds, steps=8).latents for seeds in ([3, 4], [4]))
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_it_is_swept_by_target_and_its_source_is_part_of_the_job(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("own_solver_swept.py").write_text(SOURCE, encoding="utf-8")
    Path("conf/scheduler").mkdir(parents=True)
    Path("conf/scheduler/mine.yaml").write_text("_target_: own_solver_swept.Mine\nweight: 0.4\n", encoding="utf-8")
    words = ["model=emoji", "metrics=none", "tracker=none", "prompts=[fox]", "runtime.threads=1", "guidance=none"]
    assert run(["--config-dir", "conf", "-m", "scheduler=mine,euler", "steps=2,3", *words]) == 0
    jobs = [json.loads(file.read_text()) for file in Path("outputs/default").glob("*/result.json")]
    assert sorted(job["config"]["scheduler"]["name"] for job in jobs) == ["Mine", "Mine", "euler", "euler"]
    named = ["scheduler=custom", "scheduler.class_name=own_solver_swept.Mine", "+scheduler.options.weight=0.4"]
    capfd.readouterr()
    assert run([*named, "steps=3", *words]) == 0
    assert "done before and reused" in capfd.readouterr().err
    Path("own_solver_swept.py").write_text(
        SOURCE.replace("1.0 + change", "1.0 + 2 * change").replace("-change}", "-2 * change}")
    )
    del sys.modules["own_solver_swept"]
    assert run([*named, "steps=3", *words]) == 0
    assert "done before and reused" not in capfd.readouterr().err


def test_both_names_of_a_class_are_refused(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run(["+scheduler._target_=my.Mine", "metrics=none", "tracker=none"]) == 2
    assert "scheduler._target_: found beside class_name=DDIMScheduler" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("scheduler", "options", "words"),
    [
        (TwoStep, {"wieght": 1.0}, "has no option 'wieght'. Did you mean 'weight'"),
        (TwoStep(), {"weight": 1.0}, "is built already"),
        (LinearSolver, {}, "has neither update nor plan"),
    ],
)
def test_what_is_refused(sd, scheduler, options, words):
    with pytest.raises(ConfigError, match=words):
        LoopSampler(sd, scheduler, options)


def test_there_is_no_parity_without_a_counterpart(sd):
    with pytest.raises(ConfigError, match="no counterpart in diffusers"):
        LoopSampler(sd, TwoStep, parity=True)


class Straight:
    """A solver that is no table, by the protocol: Euler's step on the data prediction."""

    supports = frozenset({"predicts:epsilon", "first-order", "deterministic", "noise-levels"})
    name, kind, parity, end_level, turn, notes = "straight", "epsilon", False, (1.0, 0.0), None, ()

    def __init__(self, inner):
        self.inner = inner

    def timeline(self, steps, *, strength=1.0, device="cpu", by_strength=False):
        return self.inner.timeline(steps, strength=strength, device=device)

    def start(self, noise):
        self.inner.start(noise)

    def scale_noise(self, noise):
        return noise

    def scale_input(self, x, stage):
        return x

    def add_noise(self, clean, noise, stage):
        return self.inner.add_noise(clean, noise, stage)

    def step(self, guided, x, stage, noise):
        halved = Prediction(0.5 * guided.prediction.value, "epsilon")
        return self.inner.step(Guided(halved), x, stage, noise)


def test_a_solver_object_runs_by_its_own_step(sd):
    mine = Straight(sd.solvers("ddim")())
    found, plain = (
        LoopSampler(sd, solver).sample(TextToImage("a"), seeds=[0], steps=4).latents for solver in (mine, "ddim")
    )
    assert not torch.allclose(found, plain, atol=1e-3)
    assert torch.allclose(found, LoopSampler(sd, mine).sample(TextToImage("a"), seeds=[0], steps=4).latents)


# --- the two steps that most are made of


TRAINED = TrainedLevels(tuple(0.03 * 1.0063**i for i in range(1000)), 1000)
FLOW = TrainedLevels((), 1000, flow=True)


@given(
    flow=st.booleans(),
    high=st.floats(0.2, 0.95),
    low=st.floats(0.02, 0.9),
    noise=st.floats(0, 1),
    data=st.floats(-3, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_constant_data_prediction_is_led_to_where_it_belongs(flow, high, low, noise, data):
    """Latents a D + b e become a' D + b' e', whatever the noise that is added in between."""
    trained = FLOW if flow else TRAINED
    start, end = trained.at_sigma(high), trained.at_sigma(high * low)
    update = to_data(start, end, {0: 1.5, 1: -0.5}, noise=noise * end.noise)
    kept = update.latents[0]
    assert kept * start.signal + sum(update.data.values()) == pytest.approx(end.signal, abs=1e-12)
    assert (kept * start.noise) ** 2 + update.noise**2 == pytest.approx(end.noise**2, abs=1e-12)
    straight = along(start, end, {0: 1.0})
    slope = (start.signal * data + start.noise * 0.7) / start.scale - data
    moved = straight.latents[0] * (start.signal * data + start.noise * 0.7) + straight.data.get(0, 0.0) * data
    moved += straight.slopes.get(0, 0.0) * slope / start.sigma
    assert moved == pytest.approx(end.signal * data + end.noise * 0.7, abs=1e-9)


def test_noise_takes_an_update_up_again():
    start, low, high = (TRAINED.at_sigma(sigma) for sigma in (5.0, 1.0, 2.0))
    update = after_noise(to_data(start, low, {0: 1.0}), low, high)
    kept = update.latents[0]
    assert kept * start.signal + update.data[0] == pytest.approx(high.signal)
    assert (kept * start.noise) ** 2 + update.noise**2 == pytest.approx(high.noise**2)


@given(sigma=st.floats(0.031, 15.0), flow=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_level_is_found_again_from_what_it_says(sigma, flow):
    trained = FLOW if flow else TRAINED
    level = trained.at_sigma(sigma / 16 if flow else sigma)
    again = trained.at_half_log_snr(level.half_log_snr)
    assert again.sigma == pytest.approx(level.sigma, rel=1e-9)
    assert trained.at_time(level.time).sigma == pytest.approx(level.sigma, rel=1e-6)
    assert isinstance(again, Level)


def test_levels_that_no_solver_can_walk_are_refused():
    def grid(*sigmas):
        return Levels((*(TRAINED.at_sigma(s) for s in sigmas), TRAINED.clean()), TRAINED)

    class Given:
        def __init__(self, levels):
            self.found = levels

        def levels(self, trained, steps):
            return self.found

    config = {"prediction_type": "epsilon"}
    for levels, words in (
        (grid(1.0, 2.0), "rises from 1 to 2 at level 2"),
        (grid(2.0, 1.0, 1.0, 0.5), "twice, at steps 2 and 3"),
    ):
        factory = SolverFactory("dpmpp_2m", None, config, sigmas=Given(levels))
        with pytest.raises(ConfigError, match=words):
            factory().timeline(3)
    assert len(SolverFactory("euler", None, config, sigmas=Given(grid(2.0, 1.0)))().timeline(2)) == 2


def test_a_plan_may_ask_between_levels():
    class Midpoint(LinearSolver):
        def plan(self, levels):
            stages = []
            for i in range(levels.steps):
                start, end = levels[i], levels[i + 1]
                if not end.noise:
                    stages.append(StagePlan(start, to_data(start, end, {0: 1.0}), i))
                    continue
                middle = levels.trained.at_half_log_snr((start.half_log_snr + end.half_log_snr) / 2)
                stages.append(StagePlan(start, to_data(start, middle, {0: 1.0}), i))
                stages.append(StagePlan(middle, to_data(start, end, {0: 1.0}, back=1), i))
            return stages

    solver = SolverFactory(Midpoint(), None, {"prediction_type": "v_prediction"})()
    timeline = solver.timeline(5)
    assert [stage.step for stage in timeline] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert "first-order" not in solver.supports
    assert "deterministic" in solver.supports


# --- the table


def test_the_table_is_printed(capfd):
    assert schedule.run(["scheduler=heun,unipc", "steps=3", "--table"]) == 0
    out = capfd.readouterr().out
    assert "D[1]" in out
    assert "d[1]" in out
    assert schedule.run(["scheduler=ddim", "scheduler.options.thresholding=true", "steps=3", "--table"]) == 0
    assert "there is no table of it" in capfd.readouterr().out
    assert schedule.run(["scheduler=ddim", "steps=2", "--json"]) == 0
    updates = json.loads(capfd.readouterr().out)["schedulers"][0]["updates"]
    assert [sorted(update) for update in updates] == [
        ["data", "latents", "lead", "noise", "sigma", "slopes", "step", "t"]
    ] * 2
