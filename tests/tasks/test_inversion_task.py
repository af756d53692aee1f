"""DDIM inversion: a picture to noise and back, and what was lost on the way."""

from __future__ import annotations

import pytest
import torch
from support.task_samples import close, computed, picture, run

from research import Hook, LoopSampler, load_model
from research.errors import ConfigError
from research.tasks import Inversion, TextToImage

pytestmark = pytest.mark.spread(3)


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
    with pytest.raises(ConfigError, match="inversion is for models of the family unet-text"):
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
