"""Samplers above the loop: which candidates they make, which of them they give, and what they count."""

from __future__ import annotations

import math

import pytest
import torch

from research import Hook, LoopSampler
from research.errors import ConfigError, SamplingError
from research.guidance import CFG, LossGuidance
from research.guidance.losses import ClipLoss
from research.hooks.restart import levels, renoised
from research.metrics import FID, CLIPScore
from research.samplers import (
    BestOfN,
    FKSteering,
    NoiseOptimisation,
    ParticleGuidance,
    SearchOverPaths,
    TwistedSMC,
    ZeroOrder,
    candidate_seed,
)
from research.samplers.particle_guidance import repulsion
from research.sampling import NoiseSource
from research.tasks import Interpolation, TextToImage, Unconditional
from research.testing import check_plug
from research.testing.gaussian import GaussianModel

SHAPE = (1, 2, 2)


class Near:
    """``-|x - y|^2 / 2`` of latents."""

    sees = "latents"

    def __init__(self, goal=1.5):
        self.goal = goal

    def __call__(self, latents):
        return -(latents - self.goal).square().flatten(1).sum(1) / 2


class Shows(Hook):
    def pictures(self, images):
        return {"all": list(images)}


class Even:
    sees = "latents"

    def __call__(self, latents):
        return latents.flatten(1).sum(1) * 0


class Bar:
    total = n = 0

    def update(self, n):
        self.n += n

    def close(self):
        pass


def gaussian(scheduler="euler_a", options=None, **arguments):
    return LoopSampler(GaussianModel(0.5, 0.8, shape=SHAPE), scheduler, options, **arguments)


EVERY = {
    "best_of_n": lambda loop, score: BestOfN(loop, score, n=3),
    "zero_order": lambda loop, score: ZeroOrder(loop, score, neighbours=2, iterations=2),
    "search_over_paths": lambda loop, score: SearchOverPaths(loop, score, paths=2, branches=2),
    "fk_steering": lambda loop, score: FKSteering(loop, score, particles=3),
    "smc": lambda loop, score: TwistedSMC(loop, score, particles=3),
    "noise_optimisation": lambda loop, score: NoiseOptimisation(loop, score, iterations=3),
}


def scored(result, score):
    return score(result.latents.double())


def test_one_candidate_is_the_loop_bit_for_bit(sd):
    loop, task = LoopSampler(sd, "dpmpp_2m_sde", guidance=CFG(2.0)), TextToImage(["a cat", "a dog"])
    plain = loop.sample(task, seeds=[3, 4], steps=4)
    for search in (BestOfN(loop, CLIPScore(), n=1), ZeroOrder(loop, CLIPScore(), neighbours=1, iterations=0)):
        found = search.sample(task, seeds=[3, 4], steps=4, batch_size=2)
        assert torch.equal(found.latents, plain.latents)
        assert [a.tobytes() for a in found.images] == [b.tobytes() for b in plain.images]
        assert (found.nfe, found.nfe_by_branch, found.seeds) == (plain.nfe, plain.nfe_by_branch, [3, 4])
        assert (found.score_evaluations, found.decoder_calls) == (1, 1)


@pytest.mark.fidelity(
    "sampler/best_of_n",
    source="arXiv:2501.09732, random search",
    against="the best of n runs of the loop",
    within="equal",
)
@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_best_of_n_is_the_best_of_n_runs(batch_size):
    loop, score = gaussian(), Near()
    found = BestOfN(loop, score, n=5).sample(Unconditional(), seeds=[7, 9], steps=6, batch_size=batch_size)
    for place, seed in enumerate([7, 9]):
        seeds = [candidate_seed(seed, k) for k in range(5)]
        runs = loop.sample(Unconditional(), seeds=seeds, steps=6)
        values = scored(runs, score)
        torch.testing.assert_close(found.latents[place], runs.latents[int(values.argmax())])
        assert found.trace["search"][place]["chosen"] == int(values.argmax())
        assert found.trace["search"][place]["scores"] == pytest.approx(values.tolist(), abs=1e-5)
    assert (found.nfe, found.score_evaluations, found.decoder_calls) == (30, 5, 5)


@pytest.mark.parametrize("name", EVERY)
def test_an_image_depends_on_its_seed_alone(name):
    search = EVERY[name](gaussian(), Near())
    whole = search.sample(Unconditional(), seeds=[5, 6, 7], steps=6, batch_size=100)
    small = search.sample(Unconditional(), seeds=[5, 6, 7], steps=6, batch_size=2)
    torch.testing.assert_close(small.latents, whole.latents)
    alone = search.sample(Unconditional(), seeds=6, steps=6)
    torch.testing.assert_close(alone.latents[0], whole.latents[1])
    (last,) = search.batches(Unconditional(), seeds=[5, 6, 7], steps=6, batch_size=100, first=2)
    torch.testing.assert_close(last.latents[0], whole.latents[2])
    assert small.nfe == whole.nfe == alone.nfe
    assert small.score_evaluations == whole.score_evaluations


@pytest.mark.parametrize("name", EVERY)
def test_a_search_finds_better_ones_than_the_loop_and_tells_its_progress(name):
    loop, score, told = gaussian(), Near(), []
    search = EVERY[name](loop, score)
    found = search.sample(
        Unconditional(), seeds=range(8), steps=6, progress=lambda done, total, info: told.append((done, total))
    )
    plain = loop.sample(Unconditional(), seeds=range(8), steps=6)
    assert float(scored(found, score).mean()) > float(scored(plain, score).mean())
    assert found.scores["search_score"] == pytest.approx(scored(found, score).tolist(), abs=1e-4)
    assert told[-1][0] == told[-1][1] == search.steps_of(6)
    assert found.nfe == search.steps_of(6)  # euler_a without guidance evaluates once a step


def test_progress_is_a_bar_or_none_as_of_the_loop(monkeypatch):
    shown = []
    monkeypatch.setattr("research.progress_bar.bar", lambda **settings: shown.append(settings) or Bar())
    search = EVERY["best_of_n"](gaussian(), Near())
    quiet = search.sample(Unconditional(), seeds=[3, 4], steps=2, progress=False)
    assert not shown
    loud = search.sample(Unconditional(), seeds=[3, 4], steps=2, progress=True)
    assert [settings["desc"] for settings in shown] == ["unconditional"]
    assert torch.equal(quiet.latents, loud.latents)


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_a_score_that_is_the_same_for_all_leaves_the_loop(potential):
    loop = gaussian("dpmpp_2m_sde")
    plain = loop.sample(Unconditional(), seeds=[1, 2], steps=6)
    search = FKSteering(loop, Even(), particles=4, potential=potential, threshold=1.0)
    found = search.sample(Unconditional(), seeds=[1, 2], steps=6, batch_size=3)
    torch.testing.assert_close(found.latents, plain.latents)
    assert [each["resampled"] for each in found.trace["search"]] == [0, 0]


SAMPLERS_OF_THE_TILTED = {
    "difference": lambda loop: FKSteering(loop, Near(), particles=16, pick="draw", window=(0, 1)),
    "max": lambda loop: FKSteering(loop, Near(), particles=16, pick="draw", potential="max", window=(0, 1)),
    "sum": lambda loop: FKSteering(loop, Near(), particles=16, pick="draw", potential="sum", window=(0, 1), every=4),
    "smc": lambda loop: TwistedSMC(loop, Near(), particles=8, pick="draw"),
}


@pytest.mark.fidelity(
    "sampler/fk_steering",
    source="arXiv:2501.06848, algorithm 1",
    against="the mean of a Gaussian times the exponential of a quadratic score",
    within="4 standard errors of 200 draws",
    differs="weights that were not resampled are kept; resampling is systematic, and drawn by the image's own seed",
)
@pytest.mark.fidelity(
    "sampler/smc",
    source="arXiv:2306.17775, algorithm 1",
    against="the same",
    within="4 standard errors of 200 draws",
    differs="resampled where the effective sample size is low, and not at each step; the last step is not led",
)
@pytest.mark.spread(1)
@pytest.mark.parametrize("sampler", SAMPLERS_OF_THE_TILTED)
def test_particles_reach_the_tilted_mean(sampler):
    """N(m, s^2) times exp(-(x - y)^2 / 2) is N((m / s^2 + y) / (1 / s^2 + 1), 1 / (1 / s^2 + 1)), of the m and s that the loop's
    steps really draw: few of an ancestral scheduler draw too narrowly."""
    loop = LoopSampler(GaussianModel(0.5, 0.8, shape=(1, 1, 1)), "ddpm")
    search = SAMPLERS_OF_THE_TILTED[sampler](loop)
    steps = 50 if sampler == "smc" else 16  # the last of few steps are too narrow for 8 particles that are led
    plain = loop.sample(Unconditional(), seeds=range(5000), steps=steps, batch_size=5000).latents.flatten()
    m, s = float(plain.mean()), float(plain.std())
    found = search.sample(Unconditional(), seeds=range(200), steps=steps, batch_size=5000).latents.flatten()
    precision = 1 / s**2 + 1
    mean, std = (m / s**2 + 1.5) / precision, precision**-0.5
    error = std / len(found) ** 0.5
    assert abs(float(found.mean()) - mean) < 4 * error
    assert abs(float(found.mean()) - m) > 6 * error  # which is the model's own
    assert abs(float(found.std()) / std - 1) < 0.15


def test_noise_optimisation_follows_the_gradient_of_a_loss_and_counts_it(sd):
    loop, task = LoopSampler(sd, "ddim", guidance=CFG(2.0)), TextToImage(["a cat", "a dog"])
    search = NoiseOptimisation(loop, ClipLoss(), iterations=2)
    found = search.sample(task, seeds=[0, 1], steps=2, batch_size=2)
    assert found.trace["search"][0]["scores"][0] != found.trace["search"][0]["scores"][1]
    assert (found.nfe, found.gradient_evaluations, found.score_evaluations) == (12, 8, 3)
    assert all(not weight.requires_grad or weight.grad is None for m in sd.modules() for weight in m.parameters())


def test_images_of_a_prompt_keep_apart():
    loop = gaussian("ddim")
    plain = loop.sample(Unconditional(), seeds=range(6), steps=12).latents
    search = ParticleGuidance(loop, particles=4, scale=30.0)
    apart = search.sample(Unconditional(), seeds=range(6), steps=12).latents

    def spread(latents):
        return float(torch.pdist(latents.flatten(1)).mean())

    assert spread(apart[:4]) > 1.1 * spread(plain[:4])
    (some,) = search.batches(Unconditional(), seeds=range(6), steps=12, rows=[2, 3])
    torch.testing.assert_close(some.latents, apart[2:4])
    assert torch.equal(
        ParticleGuidance(loop, scale=0.0).sample(Unconditional(), seeds=[1], steps=5).latents,
        loop.sample(Unconditional(), seeds=[1], steps=5).latents,
    )


class Broken(Near):
    def __call__(self, latents):
        return super().__call__(latents) * torch.nan


REFUSED = {
    "n": (lambda loop: BestOfN(loop, Near(), n=0), r"sampler\.n: found 0"),
    "particles": (lambda loop: FKSteering(loop, Near(), particles=1), r"sampler\.particles: found 1"),
    "no score": (lambda loop: BestOfN(loop), r"sampler\.score: must be given"),
    "a class": (lambda loop: BestOfN(loop, CLIPScore), "found the class CLIPScore"),
    "a set": (lambda loop: BestOfN(loop, FID(reference="emoji")), "fid is a number of a set"),
    "nothing to score by": (lambda loop: BestOfN(loop, "clip_score"), "found 'clip_score'"),
    "window": (lambda loop: FKSteering(loop, Near(), window=(0.9, 0.1)), r"sampler\.window"),
    "deterministic": (lambda loop: FKSteering(gaussian("ddim"), Near()), "scheduler ddim adds none"),
    "memory": (lambda loop: SearchOverPaths(gaussian("dpmpp_2m"), Near()), "search_over_paths goes back"),
    "gradients": (lambda loop: NoiseOptimisation(loop, CLIPScore()), "clip_score has no gradients"),
    "of its own": (
        lambda loop: NoiseOptimisation(gaussian(guidance=LossGuidance(1.0, Near())), Near()),
        "takes gradients of its own",
    ),
    "a hook": (lambda loop: BestOfN(gaussian(hooks=[Shows()]), Near()), "Shows shows the images of a batch"),
    "NaN": (lambda loop: BestOfN(loop, Broken()), r"Broken is nan, nan, nan, nan at the end, of seed 4"),
    "prompts": (lambda loop: BestOfN(loop, CLIPScore()), "clip_score gives no value an image without prompts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused(name):
    make, told = REFUSED[name]
    with pytest.raises((ConfigError, SamplingError), match=told):
        make(gaussian()).sample(Unconditional(), seeds=[4], steps=4)


def test_a_task_that_names_its_noises_is_refused(sd):
    with pytest.raises(ConfigError, match="task: interpolation"):
        BestOfN(LoopSampler(sd, "ddim"), CLIPScore()).sample(Interpolation(0, 1, 3, prompt="a cat"), steps=2)


@pytest.mark.fidelity(
    "sampler/zero_order",
    source="arXiv:2501.09732, zero-order search",
    against="norm and angle of the neighbours to the pivot",
    within="1e-5",
    differs="neighbours have the pivot's norm, so that they are likely noises",
)
def test_neighbours_lie_on_the_sphere_at_an_angle():
    search = ZeroOrder(None, Near(), cosine=0.9)
    pivot = torch.randn(4, 8, 8)
    for seed in range(5):
        other = search._neighbour(pivot, torch.Generator().manual_seed(seed))
        assert float(other.norm() / pivot.norm()) == pytest.approx(1, abs=1e-5)
        assert float(torch.cosine_similarity(other.flatten(), pivot.flatten(), dim=0)) == pytest.approx(0.9, abs=1e-5)


@pytest.mark.fidelity(
    "sampler/search_over_paths",
    source="arXiv:2501.09732, search over paths",
    against="one path, noised and denoised by hand",
    within="1e-6",
    differs="distances are counted in steps; the estimate that is scored is that of the last evaluation",
)
def test_one_path_goes_back_and_forth():
    loop = gaussian("ddim")
    search = SearchOverPaths(loop, Near(), paths=1, branches=1, start=0.5, back=2, forth=2)
    found = search.sample(Unconditional(), seeds=3, steps=6)
    way = loop.steps(Unconditional(), seeds=3, steps=6)
    for _ in range(3):
        next(way)
    for turn, end in enumerate((5, 6), start=1):
        noise = NoiseSource([candidate_seed(3, 1, f"paths/{turn}")]).draw("paths", SHAPE, torch.float64)
        at = levels(way.run.solver, way.run.timeline)
        begin = way.place - 2
        way.go_back(begin, renoised(way.x, noise, at[way.place], at[begin]))
        while way.place < end:
            next(way)
    torch.testing.assert_close(found.latents, way.finish().latents)
    assert found.nfe == search.steps_of(6) == 3 + 4 + 3


@pytest.mark.fidelity(
    "sampler/noise_optimisation",
    source="arXiv:2406.04312 (ReNO)",
    against="the step by the gradient in closed form, of a model whose images are linear in the noise",
    within="1e-5",
    differs="any score with gradients; the gradient is cut an image at a time",
)
def test_a_step_of_noise_optimisation_is_along_the_gradient():
    loop, goal = gaussian("ddim"), 1.5

    def run(noise):
        return loop.steps(Unconditional(), seeds=[2], steps=4, noise=noise).finish().latents.double()

    start = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(2))
    slope = run(torch.ones(1, *SHAPE)) - run(torch.zeros(1, *SHAPE))
    gradient = slope * (goal - run(start))
    for clip in (1e6, 0.1):
        step = gradient * min(1.0, clip / float(gradient.norm()))
        moved = start + 0.3 * (step + 0.5 * step)
        settings = {"iterations": 1, "learning_rate": 0.3, "clip": clip, "momentum": 0.5, "regularise": 0.0}
        found = NoiseOptimisation(loop, Near(goal), **settings).sample(Unconditional(), seeds=[2], steps=4)
        torch.testing.assert_close(found.latents.double(), run(moved.float()), rtol=1e-5, atol=1e-5)


@pytest.mark.fidelity(
    "sampler/particle_guidance",
    source="arXiv:2310.13102",
    against="autograd of the sum of kernels",
    within="1e-5",
    differs="images go together in groups of neighbours of one prompt",
)
def test_repulsion_is_the_gradient_of_the_kernels():
    x = torch.randn(4, 2, 3, 3, requires_grad=True)
    flat = x.flatten(1)
    squares = (flat[:, None] - flat[None]).square().sum(-1)
    apart = ~torch.eye(4, dtype=torch.bool)
    width = squares.detach()[apart].sqrt().median() ** 2 / math.log(4)
    energy = torch.exp(-squares / width)[apart].sum() / 2  # each pair once, of which both images are moved
    (gradient,) = torch.autograd.grad(energy, x)
    torch.testing.assert_close(repulsion(x), -gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_the_check_of_plugs_passes_them(name):
    report = check_plug(EVERY[name](None, Near()))
    assert report.ok, report
    assert report.role == "sampler"


class Forgets(BestOfN):
    """The best of all images of the group."""

    def search(self, group):
        found = super().search(group)
        return [max(found, key=lambda each: each.score)] * len(found)


def test_the_check_of_plugs_finds_images_that_depend_on_others():
    assert {finding.rule for finding in check_plug(Forgets(None, Near(), n=2)).findings} >= {"batch"}
