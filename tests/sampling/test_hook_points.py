"""The points of the loop: called in order, replacements take effect, idle ones cost and change nothing."""

from __future__ import annotations

import traceback

import pytest
import torch

from research import Hook, LoopSampler
from research.errors import ConfigError, SamplingError
from research.guidance import CFG
from research.sampling import Guided, Prediction
from research.tasks import TextToImage

pytestmark = pytest.mark.spread(2)

POINTS = ("on_start", "pre_step", "pre_model", "post_model", "post_guidance", "post_step", "on_end")


class Witness(Hook):
    """Writes down every call, and what was there to be seen."""

    def __init__(self, name: str, log: list, order: int = 0):
        self.name, self.log, self.order = name, log, order

    def on_start(self, run):
        assert run.x.shape == (2, 4, 8, 8)
        self.log.append((self.name, "on_start", None))

    def pre_step(self, state):
        assert not hasattr(state, "guided")  # there is none before guidance was asked
        self.log.append((self.name, "pre_step", state.stage.index))

    def pre_model(self, state, inputs):
        assert inputs.shape == state.x.shape
        self.log.append((self.name, "pre_model", state.stage.index))

    def post_model(self, state, predictions):
        assert list(predictions) == ["uncond", "cond"]
        self.log.append((self.name, "post_model", state.stage.index))

    def post_guidance(self, state):
        assert isinstance(state.guided, Guided)
        self.log.append((self.name, "post_guidance", state.stage.index))

    def post_step(self, state):
        assert not torch.equal(state.x, state.x_before)
        self.log.append((self.name, "post_step", state.stage.index))

    def on_end(self, run):
        self.log.append((self.name, "on_end", None))


def sample(model, *hooks, scheduler="ddim", steps=3, scale=2.0, **arguments):
    sampler = LoopSampler(model, scheduler=scheduler, guidance=CFG(scale), hooks=hooks, **arguments)
    return sampler.sample(TextToImage("a cat"), seeds=[1, 2], steps=steps)


@pytest.mark.parametrize(("scheduler", "stages"), [("ddim", 3), ("heun", 5), ("pndm", 4)])
def test_all_points_in_order(sd, scheduler, stages):
    log: list = []
    sample(sd, Witness("w", log), scheduler=scheduler)
    expected = [("on_start", None)]
    expected += [(point, i) for i in range(stages) for point in POINTS[1:-1]]
    expected += [("on_end", None)]
    assert [(point, index) for _, point, index in log] == expected


def test_order_sorts_and_equal_ones_stay(sd):
    log: list = []
    hooks = [Witness("late", log, 5), Witness("first", log), Witness("second", log), Witness("early", log, -1)]
    sample(sd, *hooks, steps=1)
    for point in POINTS:
        assert [name for name, at, _ in log if at == point] == ["early", "first", "second", "late"], point


def test_several_batches_start_and_end_each(sd):
    log: list = []
    sampler = LoopSampler(sd, guidance=CFG(2.0), hooks=[Witness("w", log)])
    sampler.sample(TextToImage("a"), seeds=[1, 2, 3, 4], steps=1, batch_size=2)
    assert [point for _, point, _ in log] == [*POINTS, *POINTS]


@pytest.mark.parametrize("scheduler", ["ddim", "heun", "dpmpp_sde", "euler_a"])
@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.spread(3)
def test_idle_hooks_are_bit_equal_to_none(sd, scheduler, parity):
    options = {"scheduler_options": {"noise_sampler_seed": 1}} if scheduler == "dpmpp_sde" else {}
    without = sample(sd, scheduler=scheduler, parity=parity, **options)
    watched = sample(sd, Hook(), Witness("w", []), scheduler=scheduler, parity=parity, **options)
    assert torch.equal(without.latents, watched.latents)
    assert without.nfe == watched.nfe


# --- replacing


def test_replacing_the_start(sd):
    class Start(Hook):
        def on_start(self, run):
            run.x = run.x[[1, 0]]

    swapped, plain = sample(sd, Start()), sample(sd)
    assert torch.equal(swapped.latents, plain.latents[[1, 0]])


def test_replacing_the_end(sd):
    class End(Hook):
        def on_end(self, run):
            run.x = torch.zeros_like(run.x)
            run.trace["mine"] = 3

    result = sample(sd, End())
    assert not result.latents.any()
    assert result.trace["mine"] == 3
    assert len({image.tobytes() for image in result.images}) == 1


def test_replacing_latents_before_the_step(sd):
    class Flip(Hook):
        def pre_step(self, state):
            if state.stage.index == 0:
                state.x = state.x.flip(-1)

    class FlipStart(Hook):
        def on_start(self, run):
            run.x = run.x.flip(-1)

    assert torch.equal(sample(sd, Flip()).latents, sample(sd, FlipStart()).latents)
    assert not torch.equal(sample(sd, Flip()).latents, sample(sd).latents)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_replacing_what_the_model_sees(sd, scheduler):
    seen: list[torch.Tensor] = []

    class Blind(Hook):
        def pre_model(self, state, inputs):
            return torch.zeros_like(inputs)

    handle = sd.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        blind = sample(sd, Blind(), scheduler=scheduler)
    finally:
        handle.remove()
    assert len(seen) == 3
    assert not any(x.any() for x in seen)
    assert blind.latents.any()  # the latents themselves go on as they were


def test_replacing_predictions(sd):
    class OnlyUncond(Hook):
        def post_model(self, state, predictions):
            return {**predictions, "cond": predictions["uncond"]}

    assert torch.allclose(sample(sd, OnlyUncond(), scale=3.0).latents, sample(sd, scale=0).latents, atol=1e-4)


def test_replacing_what_guidance_made(sd):
    class Own(Hook):
        def post_guidance(self, state):
            value = state.predictions["cond"].value
            state.guided = Guided(Prediction(value, state.guided.prediction.kind))

    assert torch.allclose(sample(sd, Own()).latents, sample(sd, scale=1.0).latents, atol=1e-4)


def test_a_prediction_of_another_kind_is_converted(sd):
    """A hook that thinks in x0 hands x0 to a scheduler that takes epsilon."""

    class AsX0(Hook):
        def post_guidance(self, state):
            state.guided = Guided(Prediction(state.x0, "x0"))

    for scheduler in ("ddim", "euler", "dpmpp_2m", "unipc"):
        plain, converted = sample(sd, scheduler=scheduler), sample(sd, AsX0(), scheduler=scheduler)
        error = (plain.latents - converted.latents).norm() / plain.latents.norm()
        assert error < 1e-3, scheduler


def test_replacing_latents_after_the_step(sd):
    class Zero(Hook):
        def post_step(self, state):
            if state.stage.index + 1 == len(state.run.timeline):
                state.x = torch.full_like(state.x, 0.25)

    assert torch.equal(sample(sd, Zero()).latents, torch.full((2, 4, 8, 8), 0.25))


def test_later_hooks_see_what_earlier_ones_left(sd):
    seen = []

    class Set(Hook):
        order = 1

        def pre_model(self, state, inputs):
            return inputs * 0 + 7

    class See(Hook):
        order = 2

        def pre_model(self, state, inputs):
            seen.append(inputs)

    sample(sd, See(), Set())
    assert all((x == 7).all() for x in seen)


def test_a_point_set_on_an_object_is_called(sd):
    hook, calls = Hook(), []
    hook.post_step = lambda state: calls.append(state.stage.index)
    sample(sd, hook)
    assert calls == [0, 1, 2]


def test_what_a_hook_can_read(sd):
    class Look(Hook):
        def post_guidance(self, state):
            stage = state.stage
            rebuilt = stage.signal * state.x0 + stage.noise * state.epsilon
            assert torch.allclose(rebuilt, state.x, atol=1e-3)
            assert state.run.seeds == (1, 2)
            assert "uncond" in state.run.conditions
            assert "depth" not in state.run.conditions
            assert state.run.conditions.get("depth") is None

    sample(sd, Look())


# --- errors


@pytest.mark.parametrize("point", POINTS)
def test_an_error_keeps_its_traceback_and_says_where(sd, point):
    class Broken(Hook):
        def _fail(self, where, *rest):
            stage = getattr(where, "stage", None)
            if stage is None or stage.index == 1:
                raise ZeroDivisionError("mine")

    setattr(Broken, point, lambda self, where, *rest: self._fail(where, *rest))
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        sample(sd, Broken())
    (note,) = caught.value.__notes__
    assert f"Broken.{point}" in note
    if point in POINTS[1:-1]:
        assert "step 1" in note
        assert "stage 1" in note
    frames = [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert frames[-1] == "_fail"


def test_an_error_meant_for_the_user_is_left_as_it_is(sd):
    class Refuses(Hook):
        def on_start(self, run):
            raise ConfigError("mine: found x; accepted is y.")

    with pytest.raises(ConfigError, match="mine") as caught:
        sample(sd, Refuses())
    assert not getattr(caught.value, "__notes__", [])


@pytest.mark.parametrize("strange", [Hook, "hook", None, object()])
def test_what_is_no_hook(sd, strange):
    with pytest.raises(ConfigError, match="hooks"):
        LoopSampler(sd, hooks=[strange])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("scheduler", "stage"), [("ddim", 1), ("heun", 2), ("ddim", 2)])
def test_latents_that_are_not_finite_name_the_stage(sd, scheduler, stage, value):
    class Break(Hook):
        def post_step(self, state):
            if state.stage.index == stage:
                state.x = state.x.clone()
                state.x[1, 2, 3, 4] = value

    with pytest.raises(SamplingError, match=rf"after stage {stage}, step \d of 3 .*scheduler {scheduler}"):
        sample(sd, Break(), scheduler=scheduler)
