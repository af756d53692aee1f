"""`FeatureCache`: deep blocks that are not computed at every stage."""

from __future__ import annotations

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.task_samples import close, picture, run

from research import Hook, LoopSampler
from research.errors import ConfigError, SamplingError
from research.guidance import CFG
from research.hooks import FeatureCache
from research.hooks.feature_cache import non_uniform
from research.models.summary import outline
from research.sampling import Branch, Guidance, Guided
from research.tasks import ImageToImage, TextToImage, Unconditional
from research.testing.gaussian import GaussianModel

pytestmark = pytest.mark.spread(2)

SCHEDULERS = ["ddim", "heun", "pndm", "dpmpp_2m", "euler_a", "unipc"]


@contextmanager
def deep_rows(model):
    """The rows of each computation of the deep part, in which the middle block lies."""
    calls: list[int] = []
    handle = model.network.mid_block.resnets[0].register_forward_pre_hook(
        lambda module, args: calls.append(len(args[0]))
    )
    try:
        yield calls
    finally:
        handle.remove()


def cached(model, seeds=(1, 2, 3), *, scheduler="ddim", steps=6, batch_size=None, **settings):
    return run(
        model, TextToImage("a b"), seeds, scheduler=scheduler, steps=steps, batch_size=batch_size,
        hooks=[FeatureCache(**settings)],
    )  # fmt: skip


def plain(model, seeds=(1, 2, 3), *, scheduler="ddim", steps=6):
    return run(model, TextToImage("a b"), seeds, scheduler=scheduler, steps=steps)


def untouched(model) -> bool:
    return not any("forward" in module.__dict__ for module in model.network.modules())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.spread(1)
def test_computing_all_the_time_is_no_cache(sd, scheduler):
    right = plain(sd, scheduler=scheduler)
    for settings_ in ({"every": 1}, {"every": None, "threshold": 0}):
        found = cached(sd, scheduler=scheduler, **settings_)
        assert torch.equal(found.latents, right.latents)
        trace = found.trace["feature_cache"]
        assert trace["deep_evaluations"] == [trace["evaluations"]] * 3 == [right.nfe] * 3


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@settings(max_examples=4, deadline=None)
@given(every=st.integers(1, 6), steps=st.integers(2, 6))
@pytest.mark.spread(2)
def test_the_cadence_counts_model_evaluations(sd, scheduler, every, steps):
    with deep_rows(sd) as calls:
        found = cached(sd, [4, 5], scheduler=scheduler, every=every, steps=steps)
    stages = len(found.trace["stages"])
    assert calls == [4] * math.ceil(stages / every)
    assert found.trace["feature_cache"] == {
        "evaluations": 2 * stages,
        "deep_evaluations": [2 * math.ceil(stages / every)] * 2,
    }
    assert found.nfe == 2 * stages


@pytest.mark.parametrize("model_name", ["sd", "sd_odd", "pixel"])
@pytest.mark.fidelity(
    "hooks/feature_cache",
    source="arXiv:2312.00858, section 3.2",
    against="the UNet with its deep feature replaced by hand",
    within="equal to the bit",
)
def test_a_cached_stage_has_the_deep_feature_of_the_stage_before(model_name, request):
    """Bit for bit what the whole network gives if the output of the last inner block is put in its place."""
    model = request.getfixturevalue(model_name)
    blocks = len(model.network.down_blocks) - 1
    seen: list[torch.Tensor] = []

    def replace(module, args, kwargs, output):
        seen.append(output)
        return seen[0]

    task, guidance = (Unconditional(), None) if model_name == "pixel" else (TextToImage("a"), CFG(2.0))
    handle = model.network.up_blocks[-blocks - 1].register_forward_hook(replace, with_kwargs=True)
    try:
        right = LoopSampler(model, guidance=guidance).sample(task, seeds=[1, 2], steps=3)
    finally:
        handle.remove()
    assert len(seen) == 3
    hook = FeatureCache(every=3, blocks=blocks)
    found = LoopSampler(model, guidance=guidance, hooks=[hook]).sample(task, seeds=[1, 2], steps=3)
    assert torch.equal(found.latents, right.latents)


def decided(model, **settings_):
    return cached(model, every=None, **settings_).trace["feature_cache"]["deep_evaluations"]


def deciding(model, seeds, scheduler):
    """A threshold at which the images decide differently."""
    for threshold in (0.05, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4):
        counts = decided(model, seeds=seeds, scheduler=scheduler, threshold=threshold, steps=8)
        if len(set(counts)) > 1:
            return threshold, counts
    raise AssertionError("all images decide alike")


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddim", "heun", "pndm", "euler_a"])
@pytest.mark.spread(1)
def test_each_image_decides_by_itself(sd, scheduler):
    """Alone or in any batch: the same counts, the same latents; and in the batch only the rows that need it are computed."""
    seeds = range(8)
    threshold, counts = deciding(sd, seeds, scheduler)
    settings_ = {"scheduler": scheduler, "every": None, "threshold": threshold, "steps": 8}
    with deep_rows(sd) as rows:
        together = cached(sd, seeds, **settings_)
    assert sum(rows) == sum(counts)
    assert any(0 < count < 16 for count in rows)
    alone = [cached(sd, [seed], **settings_) for seed in seeds]
    assert [r.trace["feature_cache"]["deep_evaluations"][0] for r in alone] == counts
    assert close(torch.cat([r.latents for r in alone]), together.latents)
    assert close(cached(sd, seeds, batch_size=3, **settings_).latents, together.latents)


def test_a_cadence_in_any_batch(sd):
    together = cached(sd, range(4), every=3, scheduler="dpmpp_2m")
    assert close(cached(sd, range(4), every=3, scheduler="dpmpp_2m", batch_size=1).latents, together.latents)


def test_a_threshold_with_a_cadence_computes_when_either_says_so(sd):
    one, other = (cached(sd, steps=10, **s) for s in ({"every": 4}, {"every": None, "threshold": 0.15}))
    both = cached(sd, steps=10, every=4, threshold=0.15)
    counts = [r.trace["feature_cache"]["deep_evaluations"] for r in (one, other, both)]
    assert all(c >= max(a, b) for a, b, c in zip(*counts, strict=True))


def test_features_are_reused_within_a_part_of_the_steps(sd):
    with deep_rows(sd) as calls:
        hook = FeatureCache(every=8, steps=(0.25, 0.75))
        run(sd, TextToImage("a"), [1], steps=8, hooks=[hook])
    assert len(calls) == 4  # steps 0, 1, 6 and 7


@pytest.mark.slow
def test_the_error_grows_with_the_cadence_and_is_an_error(sd):
    right = plain(sd, steps=12).latents
    errors = [float((cached(sd, steps=12, every=k).latents - right).norm()) for k in (1, 2, 12)]
    assert errors[0] == 0 < errors[1] < errors[2]


@pytest.mark.parametrize("settings_", [{"every": 3}, {"every": None, "threshold": 0.2}])
@pytest.mark.spread(1)
def test_nothing_stays_after_a_run(sd, settings_):
    right = plain(sd)
    hook = FeatureCache(**settings_)
    sampler = LoopSampler(sd, guidance=CFG(2.0), hooks=[hook])
    first = sampler.sample(TextToImage("a b"), seeds=[1, 2, 3], steps=6)
    assert untouched(sd)
    assert torch.equal(plain(sd).latents, right.latents)
    sampler.sample(TextToImage("c"), seeds=[7], steps=3)  # another shape between
    again = sampler.sample(TextToImage("a b"), seeds=[1, 2, 3], steps=6)
    assert torch.equal(first.latents, again.latents)
    assert first.trace["feature_cache"] == again.trace["feature_cache"]


class Failing(Hook):
    order = 1

    def post_step(self, state):
        raise RuntimeError("on purpose")


def test_nothing_stays_after_an_exception(sd):
    right = plain(sd)
    with pytest.raises(RuntimeError, match="on purpose"):
        run(sd, TextToImage("a"), [1], hooks=[FeatureCache(), Failing()])
    assert untouched(sd)
    assert torch.equal(plain(sd).latents, right.latents)


class Sometimes(Guidance):
    """CFG at every third step, and two calls of the model at a stage."""

    requires = frozenset({"uncond"})

    def branches(self, state):
        names = ["uncond", "cond"] if state.stage.step % 3 == 0 else ["cond"]
        return [Branch(name, state.conditions[name]) for name in names]

    def combine(self, state, predictions):
        state.predict([Branch("late", state.conditions["cond"])])
        return Guided(predictions["cond"])


def test_branches_that_come_and_go(sd):
    with deep_rows(sd) as rows:
        found = LoopSampler(sd, guidance=Sometimes(), hooks=[FeatureCache(every=3)]).sample(
            TextToImage("a"), seeds=[1, 2], steps=7
        )
    # at the steps 0, 3 and 6: two branches together, then one
    assert rows == [4, 2] * 3
    trace = found.trace["feature_cache"]
    assert trace == {"evaluations": 7 * 2 + 3, "deep_evaluations": [9, 9]}


class Weak(Guidance):
    """A branch of a second model beside that of the first."""

    def start(self, run):
        run.models["weak"] = self.model

    def branches(self, state):
        condition = state.conditions["cond"]
        return [Branch("bad", condition, model="weak"), Branch("cond", condition)]

    def combine(self, state, predictions):
        self.seen = predictions
        return Guided(predictions["cond"])


def test_a_second_model_is_evaluated_in_full(sd, sd_v):
    for weak in (sd_v, sd):
        guidance = Weak()
        guidance.model = weak
        with deep_rows(weak) as rows:
            found = LoopSampler(sd, guidance=guidance, hooks=[FeatureCache(every=4)]).sample(
                TextToImage("a"), seeds=[1], steps=4
            )
        assert sum(rows) == (4 if weak is sd_v else 5)
        assert found.trace["feature_cache"] == {"evaluations": 4, "deep_evaluations": [1]}
        assert list(guidance.seen) == ["bad", "cond"]


class Gradient(Guidance):
    def differentiates(self, state):
        return state.stage.step > 0

    def combine(self, state, predictions):
        value = predictions["cond"].value
        if state.x_before.requires_grad:
            (self.gradient,) = torch.autograd.grad(value.square().sum(), state.x_before)
        return Guided(type(predictions["cond"])(value.detach(), predictions["cond"].kind))


def test_where_guidance_takes_gradients_all_is_computed(sd):
    found, gradients = [], []
    for hooks in ([], [FeatureCache(every=9)]):
        guidance = Gradient()
        found.append(LoopSampler(sd, guidance=guidance, hooks=hooks).sample(TextToImage("a"), seeds=[1], steps=3))
        gradients.append(guidance.gradient)
    assert torch.equal(found[0].latents, found[1].latents)
    assert torch.equal(*gradients)
    assert found[1].trace["feature_cache"]["deep_evaluations"] == [3]


class Patched(Guidance):
    def branches(self, state):
        class Patch:
            kind, layers = "self-attention", ("mid*",)

            def __call__(self, layer, forward, hidden, **kwargs):
                return forward(hidden, **kwargs)

        return [Branch("cond", state.conditions["cond"], patches=(Patch(),))]


def test_a_branch_with_patches_is_refused(sd):
    with pytest.raises(SamplingError, match=r"^hooks\.feature_cache: the guidance patches .*'cond'.*without"):
        LoopSampler(sd, guidance=Patched(), hooks=[FeatureCache()]).sample(TextToImage("a"), seeds=[1], steps=3)
    assert untouched(sd)


def test_it_composes_with_tasks_and_other_hooks(sd):
    task = ImageToImage("a", picture(), 0.5)
    found = run(sd, task, [1, 2], steps=8, hooks=[FeatureCache(every=2)])
    assert found.trace["feature_cache"] == {"evaluations": 8, "deep_evaluations": [4, 4]}
    with pytest.raises(ConfigError, match=r"^hooks: FeatureCache conflicts with FeatureCache.*network"):
        LoopSampler(sd, hooks=[FeatureCache(), FeatureCache()])


def test_networks_it_cannot_attach_to(sd, sd_directory, sd_odd, pixel_directory):
    with pytest.raises(ConfigError, match=r"^hooks\.feature_cache: cannot attach to model gaussian; accepted"):
        LoopSampler(GaussianModel(), hooks=[FeatureCache()])
    with pytest.raises(ConfigError, match=r"feature_cache\.blocks: found 2; .* has 2 blocks, accepted here is 1\."):
        LoopSampler(sd, hooks=[FeatureCache(blocks=2)])
    with pytest.raises(ConfigError, match=r"feature_cache\.blocks: found 3; .* accepted here is 1 to 2\."):
        LoopSampler(sd_odd, hooks=[FeatureCache(blocks=3)])
    # of an outline too, before weights load
    for directory in (sd_directory, pixel_directory):
        FeatureCache().check(outline(str(directory)), None)
        with pytest.raises(ConfigError, match=r"feature_cache\.blocks: found 5"):
            FeatureCache(blocks=5).check(outline(str(directory)), None)


@pytest.mark.parametrize(
    ("settings_", "found"),
    [
        ({"every": 0}, r"\.every: found 0; accepted is a whole number from 1"),
        ({"every": 2.5}, r"\.every: found 2\.5"),
        ({"every": True}, r"\.every: found True"),
        ({"every": None}, ": found neither every nor threshold"),
        ({"threshold": -0.1}, r"\.threshold: found -0\.1; accepted is a number from 0"),
        ({"threshold": float("nan")}, r"\.threshold: found nan"),
        ({"threshold": float("inf")}, r"\.threshold: found inf"),
        ({"threshold": "much"}, r"\.threshold: found 'much'"),
        ({"blocks": 0}, r"\.blocks: found 0"),
        ({"steps": (0.5, 0.2)}, r"\.steps: found \[0\.5, 0\.2\]; accepted are 0 <= lo <= hi <= 1"),
        ({"steps": (0.0, 1.5)}, r"\.steps: found"),
        ({"steps": (0.5,)}, r"\.steps: found"),
        ({"steps": 0.5}, r"\.steps: found"),
    ],
)
def test_settings_it_refuses(settings_, found):
    with pytest.raises(ConfigError, match=rf"^hooks\.feature_cache{found}") as caught:
        FeatureCache(**settings_)
    assert "\n" not in str(caught.value)


def published(total, count, centre, power):
    """The stages of the authors' `sample_from_quad_center`, in numpy."""
    while power > 1:
        ends = [complex(end) ** (1 / power) for end in (-centre, total - centre)]
        x = np.linspace(*ends, count + 1)
        places = [0] + [each + centre for each in np.unique((x**power).real.astype(np.int32))[1:-1]]
        if len(places) == count:
            return set(map(int, places))
        power -= 0.02
    raise ValueError


@pytest.mark.parametrize(
    ("stages", "every", "centre", "power"), [(50, 5, 15, 1.4), (50, 10, 15, 1.3), (20, 3, 0, 1.2), (100, 5, 40, 1.6)]
)
def test_the_non_uniform_schedule_is_that_of_the_authors(stages, every, centre, power):
    assert non_uniform(stages, every, centre, power) == published(stages, stages // every, centre, power)


def test_stages_of_the_non_uniform_schedule_are_computed(sd):
    places = non_uniform(6, 2, 0, 1.4)
    found = cached(sd, every=2, power=1.4).trace["feature_cache"]
    assert found["deep_evaluations"][0] * 6 == found["evaluations"] * len(places)
    with pytest.raises(ConfigError, match=r"power: found 1\.05; about stage 5 of 6"):
        cached(sd, every=1, power=1.05, centre=5)
    for settings_ in ({"power": 1.0}, {"centre": -1}, {"every": None, "power": 1.2, "threshold": 0.1}):
        with pytest.raises(ConfigError, match=r"hooks\.feature_cache\.(power|centre|every): found"):
            FeatureCache(**settings_)
