"""DDIM inversion: a picture to noise and back, and what was lost on the way."""

from __future__ import annotations

import pytest
import torch
from support.task_samples import close, computed, picture, run

from research import Hook, LoopSampler, load_model
from research.errors import ConfigError
from research.guidance import CFG, CFGPlusPlus, CFGZero, Interval, Schedule
from research.hooks import Differential, DynamicPrompt, MaskComposite, Preview, Record
from research.sampling import Prediction
from research.tasks import Inversion, TextToImage

pytestmark = pytest.mark.spread(2)


@pytest.fixture(scope="module")
def emoji():
    """Inversion is for trained weights: random ones have no smooth path."""
    return load_model("emoji", dtype="float32", device="cpu")


SCORES = {"inverted_noise_std", "inversion_latent_mse", "inversion_psnr", "vae_psnr"}


@pytest.mark.slow
def test_more_steps_lose_less(emoji):
    task = Inversion("pizza", "zoo:pizza")
    results = [run(emoji, task, steps=steps, scale=1.0).scores for steps in (5, 15, 40)]
    lost = [scores["inversion_latent_mse"][0] for scores in results]
    assert lost[0] > lost[1] > lost[2]
    assert lost[2] < 0.2 * lost[0]
    # what a scheduler starts from is standard normal noise
    assert 0.7 < results[2]["inverted_noise_std"][0] < 1.3
    assert results[2]["inversion_psnr"][0] > results[0]["inversion_psnr"][0]


def test_it_takes_twice_the_steps_and_reports(sd):
    result = run(sd, Inversion("a", [picture(), picture(seed=1)]), [1, 2], steps=6, scale=1.0)
    assert result.nfe == 12
    assert set(result.scores) == SCORES
    assert all(len(values) == 2 for values in result.scores.values())
    assert all(value > 0 for value in result.scores["inversion_latent_mse"])
    # the VAE loses something by itself, and what is made of its latents is no nearer
    for found, alone in zip(result.scores["inversion_psnr"], result.scores["vae_psnr"], strict=True):
        assert found < alone + 1
    assert len(result.images) == 2


def test_the_noise_starts_other_tasks(sd):
    noise = run(sd, Inversion("a", picture(), reconstruct=False), [4], steps=8, scale=1.0)
    assert noise.nfe == 8
    assert set(noise.scores) == {"inverted_noise_std"}
    whole = run(sd, Inversion("a", picture()), [4], steps=8, scale=1.0)
    again = run(sd, TextToImage("a", latents=noise.latents), [0], steps=8, scale=1.0)
    assert close(again.latents, whole.latents)
    other = run(sd, TextToImage("b", latents=noise.latents), [0], steps=8, scale=1.0)
    assert not close(other.latents, whole.latents)


def test_what_is_reported_is_what_was_lost(sd):
    """In latents, against those that the picture was encoded to."""

    class Start(Hook):
        def on_start(self, run):
            self.x = run.x.clone()

    start = Start()
    result = run(sd, Inversion("a", picture()), steps=6, scale=1.0, hooks=[start])
    error = (result.latents - start.x).square().mean()
    assert float(error) == pytest.approx(result.scores["inversion_latent_mse"][0], rel=1e-4)


def test_an_image_is_the_same_alone_and_in_a_batch(sd):
    images = [picture(), picture(seed=1), picture(seed=2)]
    together = run(sd, Inversion("a", images), [1, 2, 3], steps=6, scale=1.0)
    cut = run(sd, Inversion("a", images), [1, 2, 3], steps=6, scale=1.0, batch_size=2)
    assert close(cut.latents, together.latents)
    assert cut.scores["inversion_psnr"] == pytest.approx(together.scores["inversion_psnr"], abs=0.2)
    alone = run(sd, Inversion("a", images[2]), [3], steps=6, scale=1.0)
    assert close(alone.latents[0], together.latents[2])


def test_what_it_shows(sd):
    result = run(sd, Inversion("a", picture()), [1, 2], steps=3, scale=1.0, batch_size=1)
    assert result.pictures["before_noise_after"].size == (3 * (128 + 4) + 4, 2 * (128 + 4) + 4)
    back = run(sd, Inversion("a", picture(), reconstruct=False), [1, 2], steps=3, scale=1.0)
    assert back.pictures["before_noise_after"].size == (2 * (128 + 4) + 4, 2 * (128 + 4) + 4)


@pytest.mark.parametrize("scheduler", ["euler_a", "ddpm", "dpmpp_2m_sde"])
def test_schedulers_that_add_noise_are_refused(sd, scheduler):
    with (
        computed(sd) as calls,
        pytest.raises(ConfigError, match=f"Inversion needs a deterministic .*scheduler {scheduler}"),
    ):
        run(sd, Inversion("a", picture()), scheduler=scheduler)
    assert calls == []


def test_models_for_other_tasks(sd_inpaint, sd_depth, pixel):
    for model, expected in ((sd_inpaint, "use task inpaint"), (sd_depth, "use task depth_to_image")):
        with pytest.raises(ConfigError, match=expected):
            run(model, Inversion("a", picture()))
    with pytest.raises(ConfigError, match="Inversion needs a model that takes text"):
        LoopSampler(pixel, scheduler="ddim").sample(Inversion("a", picture()), seeds=[0], steps=2)


@pytest.mark.parametrize("shape", [(4, 8, 8), (2, 4, 8, 8), (1, 3, 8, 8), (1, 4, 8, 9)])
def test_latents_of_another_shape(sd, shape):
    with pytest.raises(ConfigError, match=r"task\.latents: found the shape .*accepted is \[1, 4, 8, 8\]"):
        run(sd, TextToImage("a", latents=torch.zeros(shape)))


@pytest.mark.parametrize("latents", [torch.zeros(1, 4, 8, 8).numpy(), [[0.0]], 3, "noise"])
def test_latents_that_are_none(sd, latents):
    with pytest.raises(ConfigError, match=r"task\.latents: found .*accepted is a tensor"):
        run(sd, TextToImage("a", latents=latents))


def test_latents_are_for_all_or_one_an_image(sd):
    latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    before = latents.clone()
    both = run(sd, TextToImage("a", latents=latents), [0, 1])
    assert torch.equal(latents, before)
    assert close(run(sd, TextToImage("a", latents=latents[1:]), [0]).latents[0], both.latents[1])
    one = run(sd, TextToImage("a", latents=latents[:1]), [0, 1])
    assert torch.equal(one.latents[0], one.latents[1])
    cut = run(sd, TextToImage("a", latents=latents), [0, 1], batch_size=1)
    assert close(cut.latents, both.latents)


# --- guidance on both ways


class Watch(Hook):
    """Keeps each stage's latents before and after, its predictions and the scale in force."""

    order = 2000

    def on_start(self, run):
        self.seen = []

    def post_step(self, state):
        values = {name: p.value for name, p in state.predictions.items()}
        self.seen.append((state.stage, state.x_before, state.x, values, state.scale))


def walk(model, guidance, *hooks, steps=6, **task):
    watch = Watch()
    sampler = LoopSampler(model, scheduler="ddim", guidance=guidance, hooks=[*hooks, watch])
    result = sampler.sample(Inversion("a", picture(), **task), seeds=[0], steps=steps)
    return result, watch.seen


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
def test_cfg_plus_plus_changes_roles_on_the_way_back(sd, scale):
    """Against arXiv:2406.08070, algorithm 2 and its inversion, from the scheduler's own table."""
    _, seen = walk(sd, CFGPlusPlus(scale), steps=5)
    bars = sd.solvers("ddim", None, parity=False)().scheduler.alphas_cumprod
    times = [stage.time for stage, *_ in seen]
    assert times[:5] == times[:4:-1] == sorted(times[:5])
    after = [bars[int(t)] for t in times[:5]] + [bars[int(t)] for t in times[6:]] + [bars[0]]
    before = [bars[0], *after[:-1]]
    for back, now, then, (_, x, found, values, _) in zip([True] * 5 + [False] * 5, before, after, seen, strict=True):
        free = values["uncond"]
        guided = free + scale * (values.get("cond", free) - free)
        estimate, along = (free, guided) if back else (guided, free)
        clean = (x - (1 - now).sqrt() * estimate) / now.sqrt()
        assert close(found, then.sqrt() * clean + (1 - then).sqrt() * along)


@pytest.mark.parametrize("guidance", [CFGPlusPlus(0.6), CFG(3), Interval(CFGPlusPlus(0.6), steps=(0, 0.4))])
def test_with_the_same_predictions_the_ways_cancel(sd, guidance):
    class Fixed(Hook):
        """Predictions that do not depend on the latents, only on the branch and the timestep."""

        def post_model(self, state, predictions):
            shape = state.x.shape
            drawn = {
                name: torch.randn(shape, generator=torch.Generator().manual_seed(len(name) + int(state.stage.time)))
                for name in predictions
            }
            return {name: Prediction(drawn[name], p.kind) for name, p in predictions.items()}

    result, seen = walk(sd, guidance, Fixed())
    assert close(result.latents, seen[0][1])


@pytest.mark.parametrize(
    "guidance",
    [
        Interval(CFG(3), steps=(0, 0.5)),
        Interval(CFG(3), steps=(0.5, 1)),
        Interval(CFG(3), sigma=(0.5, 3)),
        Interval(CFG(3), log_snr=(-1, 1)),
        Schedule(CFG(3)),
        CFGZero(3, zero_steps=2),
    ],
)
def test_windows_and_schedules_mean_the_same_levels_on_both_ways(sd, guidance):
    _, seen = walk(sd, guidance)
    told = [(stage.time, stage.step, stage.n_steps, sorted(values), scale) for stage, _, _, values, scale in seen]
    assert told[:6] == told[:5:-1]
    assert [step for _, step, *_ in told[6:]] == list(range(6))
    assert {n_steps for _, _, n_steps, *_ in told} == {6}
    _, half = walk(sd, guidance, reconstruct=False)
    assert [(s.time, sorted(v)) for s, _, _, v, _ in half] == [(t, names) for t, _, _, names, _ in told[:6]]
    # and as in sampling from the noise
    forth = LoopSampler(sd, "ddim", guidance=guidance, hooks=[watch := Watch()])
    forth.sample(TextToImage("a"), seeds=[0], steps=6)
    assert [(s.time, sorted(v), scale) for s, _, _, v, scale in watch.seen] == [
        (t, names, scale) for t, _, _, names, scale in told[6:]
    ]


def test_hooks_count_each_way_for_itself(sd):
    calls = []
    hooks = [
        Record(steps=[1], tensors="x"),
        Preview(every=2, projection={"weight": [[1.0, 0, 0, 0]] * 3, "bias": [0.0] * 3}),
        DynamicPrompt(prompts=[{"prompt": "a", "until": 0.5}, {"prompt": "b"}]),
    ]
    sampler = LoopSampler(sd, "ddim", guidance=CFG(1), hooks=hooks)
    result = sampler.sample(
        Inversion("a", picture()), seeds=[0], steps=4, progress=lambda done, total, info: calls.append((done, total))
    )
    assert calls == [(done, 8) for done in range(1, 9)]
    assert [entry["step"] for entry in result.trace["record"]] == [1, 1]
    assert list(result.trace["tensors"]) == ["x/back_step_0001", "x/step_0001"]
    assert len(result.pictures["preview"]) == 7  # steps 4, 3, 1 back, 1, 3, 4 forth, and the picture


@pytest.mark.parametrize("kind", [MaskComposite, Differential])
def test_composites_leave_the_way_back_alone(sd, kind):
    where = torch.zeros(1, 1, 8, 8)
    map_name = {MaskComposite: "mask", Differential: "strength_map"}[kind]
    latents = torch.zeros(1, 4, 8, 8)
    _, plain = walk(sd, CFG(1))
    result, seen = walk(sd, CFG(1), kind(latents=latents, **{map_name: where}))
    assert close(seen[5][2], plain[5][2])
    assert torch.equal(result.latents, latents)
