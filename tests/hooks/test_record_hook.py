"""Numbers of the stages, an image each, and tensors where they are asked for."""

from __future__ import annotations

import json
import math

import pytest
import torch

from research import Hook, LoopSampler
from research.errors import ConfigError
from research.guidance import APG, CFG, Interval, Rescale
from research.hooks import Record
from research.tasks import ImageToImage, TextToImage


def run(model, *hooks, seeds=(1, 2), scheduler="ddim", steps=5, scale=2.0, task=None, **arguments):
    sampler = LoopSampler(model, scheduler, guidance=CFG(scale), hooks=hooks)
    return sampler.sample(task or TextToImage("a cat"), seeds=list(seeds), steps=steps, **arguments)


class States(Hook):
    """Keeps what the record is of."""

    order = 5000

    def on_start(self, run):
        self.kept = []

    def post_guidance(self, state):
        values = {name: p.value for name, p in state.predictions.items()}
        self.kept.append({"x": state.x, "x0": state.x0, "guided": state.guided.prediction.value, **values})


def rms(x):
    return x.square().mean(dim=(1, 2, 3)).sqrt()


@pytest.mark.fidelity("hooks/record", source="this project", against="norms by hand", within="1e-4")
def test_what_the_numbers_are(sd):
    states = States()
    entries = run(sd, Record(), states).trace["record"]
    assert [entry["step"] for entry in entries] == [0, 1, 2, 3, 4]
    for entry, seen in zip(entries, states.kept, strict=True):
        cond, uncond, guided = seen["cond"], seen["uncond"], seen["guided"]
        expected = {
            "latents_std": seen["x"].flatten(1).std(dim=1),
            "x0_std": seen["x0"].flatten(1).std(dim=1),
            "guided_rms": rms(guided),
            "guidance_rms": rms(guided - cond),
            "rms/cond": rms(cond),
            "rms/uncond": rms(uncond),
            "cosine": torch.cosine_similarity(cond.flatten(1), uncond.flatten(1)),
            "effective_scale": torch.full((len(cond),), 2.0),
            "beside_cfg": torch.zeros(len(cond)),
            "cosine/cond": torch.cosine_similarity(cond.flatten(1), guided.flatten(1)),
            "cosine/uncond": torch.cosine_similarity(uncond.flatten(1), guided.flatten(1)),
        }
        assert entry["per_image"].keys() == expected.keys()
        for name, values in expected.items():
            assert entry["per_image"][name] == pytest.approx(values.tolist(), rel=1e-4, abs=1e-4), name
            assert entry[name] == pytest.approx(float(values.mean()), rel=1e-4, abs=1e-4), name


@pytest.mark.fidelity("hooks/record", source="arXiv:2602.22570", against="least squares by hand", within="1e-4")
@pytest.mark.parametrize(
    "guidance",
    [APG(4.0, space="prediction"), Rescale(CFG(3.0)), Interval(CFG(3.0), steps=(0.2, 0.8))],
    ids=["apg", "rescale", "interval"],
)
def test_the_scale_of_the_nearest_cfg(sd, guidance):
    states = States()
    sampler = LoopSampler(sd, "ddim", guidance=guidance, hooks=[Record(), states])
    entries = sampler.sample(TextToImage("a cat"), seeds=[1, 2], steps=5).trace["record"]
    assert any("effective_scale" in entry for entry in entries)
    for entry, seen in zip(entries, states.kept, strict=True):
        assert ("effective_scale" in entry) == ("uncond" in seen)
        if "uncond" not in seen:
            continue
        for place in range(2):
            cond, uncond, guided = (seen[name][place].flatten()[:, None] for name in ("cond", "uncond", "guided"))
            fit = torch.linalg.lstsq((cond - uncond).double(), (guided - uncond).double())
            residual = (guided - uncond) - fit.solution.float() * (cond - uncond)
            assert entry["per_image"]["effective_scale"][place] == pytest.approx(float(fit.solution), rel=1e-3)
            share = float(residual.norm() / (guided - uncond).norm())
            assert entry["per_image"]["beside_cfg"][place] == pytest.approx(share, rel=1e-3, abs=1e-4)


def test_one_branch_has_nothing_to_compare(sd):
    (entry, *_) = run(sd, Record(), scale=1.0).trace["record"]
    assert entry["per_image"].keys() == {"latents_std", "x0_std", "guided_rms", "rms/cond"}


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({}, list(range(7))),
        ({"every": 3}, [0, 3, 6]),
        ({"every": 4}, [0, 4, 6]),
        ({"every": 99}, [0, 6]),
        ({"steps": [5, 1]}, [1, 5]),
        ({"steps": []}, []),
    ],
)
def test_at_which_steps(sd, arguments, steps):
    assert [e["step"] for e in run(sd, Record(**arguments), steps=7, seeds=[1]).trace["record"]] == steps


@pytest.mark.parametrize("scheduler", ["ddim", "heun", "pndm", "dpmpp_2m", "euler_a"])
@pytest.mark.spread(2)
def test_it_only_looks(sd, scheduler):
    hooks = [Record(tensors=["x", "x0", "guided", "predictions"]), Record(steps=[])]
    plain, seen = run(sd, scheduler=scheduler), run(sd, *hooks, scheduler=scheduler)
    assert torch.equal(plain.latents, seen.latents)


def test_tensors_by_name_and_step(sd):
    states = States()
    hook = Record(tensors=["x", "x0", "predictions"], steps=[0, 3])
    tensors = run(sd, hook, states).trace["tensors"]
    assert sorted(tensors) == sorted(
        f"{name}/step_{step:04d}" for name in ("x", "x0", "predictions/cond", "predictions/uncond") for step in (0, 3)
    )
    for step in (0, 3):
        assert torch.equal(tensors[f"x0/step_{step:04d}"], states.kept[step]["x0"])
        assert torch.equal(tensors[f"predictions/cond/step_{step:04d}"], states.kept[step]["cond"])


def test_both_evaluations_of_a_second_order_step(sd):
    result = run(sd, Record(tensors="x", steps=[1, 4]), scheduler="heun")
    assert list(result.trace["tensors"]) == ["x/step_0001", "x/step_0001_b", "x/step_0004"]
    assert [(e["step"], e["index"]) for e in result.trace["record"]] == [(1, 2), (1, 3), (4, 8)]


def test_all_images_of_all_batches(sd):
    hook = Record(tensors=["x0"], steps=[2])
    together = run(sd, hook, seeds=[1, 2, 3])
    cut = run(sd, hook, seeds=[1, 2, 3], batch_size=2)
    assert cut.trace["tensors"]["x0/step_0002"].shape == (3, 4, 8, 8)
    torch.testing.assert_close(
        cut.trace["tensors"]["x0/step_0002"], together.trace["tensors"]["x0/step_0002"], rtol=1e-3, atol=1e-4
    )
    batches = [cut.trace["record"], *(batch["record"] for batch in cut.trace["batches"])]
    values = [value for (entry,) in batches for value in entry["per_image"]["x0_std"]]
    assert values == pytest.approx(together.trace["record"][0]["per_image"]["x0_std"], rel=1e-3)


def test_it_is_small_and_json_unless_asked(sd):
    trace = run(sd, Record(), seeds=range(8), steps=10).trace
    assert "tensors" not in trace
    assert len(json.dumps(trace["record"], allow_nan=False)) < 10 * (500 + 8 * 11 * 12)


def test_steps_that_an_image_to_image_run_does_not_take(sd):
    task = ImageToImage("a", torch.rand(3, 16, 16), 0.4)
    result = run(sd, Record(steps=[0, 4]), task=task)
    assert [entry["step"] for entry in result.trace["record"]] == [4]
    assert result.warnings == ["hooks.record.steps: this run does not take the steps [0]; it starts at 3."]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"every": 0}, r"every: found 0; accepted is a whole number from 1"),
        ({"every": 1.5}, r"every: found 1\.5"),
        ({"every": 2, "steps": [1]}, "steps: found both every=2 and steps"),
        ({"steps": 3}, "steps: found 3; accepted is a list of steps"),
        ({"steps": [-1]}, "steps: found -1"),
        ({"steps": [0.5]}, r"steps: found 0\.5"),
        ({"tensors": ["latents"]}, "tensors: found 'latents'.* Accepted: x, x0, guided, predictions"),
    ],
)
def test_what_is_refused_when_it_is_made(arguments, found):
    with pytest.raises(ConfigError, match=rf"^hooks\.record\.{found}") as caught:
        Record(**arguments)
    assert "\n" not in str(caught.value)


def test_a_step_beyond_the_last(sd):
    with pytest.raises(ConfigError, match=r"^hooks\.record\.steps: found 5; accepted are 0 to 4 in this job"):
        run(sd, Record(steps=[5]))


def test_numbers_that_are_none(sd):
    """A model gone wrong is what one records for: the record must not fail on it."""
    seen = States()

    class Break(Hook):
        def post_model(self, state, predictions):
            return {name: type(p)(p.value * math.nan, p.kind) for name, p in predictions.items()}

    hook = Record()
    with pytest.raises(Exception, match="not finite"):
        run(sd, Break(), hook, seen)
    assert len(seen.kept) == 5
