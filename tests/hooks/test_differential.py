"""`Differential`: a strength for each pixel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.task_samples import close, flat, left_half, picture, run, soft

from research import LoopSampler
from research.errors import ConfigError
from research.hooks import Differential, MaskComposite
from research.jobs.identity import canonical
from research.tasks import ImageToImage, Inpaint, TextToImage, Unconditional

pytestmark = pytest.mark.spread(2)

MEMORYLESS = ["ddim", "euler", "heun", "dpm2"]


def latents_of(seed: int = 0, n: int = 1) -> torch.Tensor:
    return torch.randn((n, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


def grey(strength: float) -> torch.Tensor:
    return torch.full((1, 1, 8, 8), strength)


def encoded(model, seeds, scheduler="ddim"):
    """The latents that image-to-image has of the picture: its encoder draws from a stream of its own."""
    found = run(model, ImageToImage("a", picture(), 0.0), seeds, scheduler=scheduler)
    return found.latents


@pytest.mark.parametrize("scheduler", MEMORYLESS)
@settings(max_examples=8, deadline=None)
@given(strength=st.floats(0, 1, width=32), steps=st.integers(2, 7))
@pytest.mark.spread(1)
@pytest.mark.fidelity(
    "hooks/differential",
    source="arXiv:2306.00950, algorithm 1",
    against="image-to-image at each grey's strength",
    within="1e-4",
)
def test_a_map_of_one_grey_is_image_to_image_at_that_strength(sd, scheduler, strength, steps):
    task = ImageToImage("a", picture(), strength, on_no_steps="identity")
    right = run(sd, task, [3], scheduler=scheduler, steps=steps)
    if right.nfe == 0:
        expected = encoded(sd, [3])
    else:
        expected = right.latents
    hook = Differential(latents=encoded(sd, [3]), strength_map=grey(strength))
    found = run(sd, TextToImage("a"), [3], scheduler=scheduler, steps=steps, hooks=[hook])
    assert torch.allclose(found.latents, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheduler", ["dpmpp_2m", "pndm", "unipc", "euler_a"])
def test_on_image_to_image_any_scheduler_gives_that_strength(sd, scheduler):
    """The steps before are not taken, so that a memory or noise of theirs is none."""
    right = run(sd, ImageToImage("a", picture(), 0.5), [3], scheduler=scheduler, steps=6)
    for strength in (0.5, 0.8, 1.0):
        hook = Differential(latents=latents_of(), strength_map=grey(strength))
        found = run(sd, ImageToImage("a", picture(), 0.5), [3], scheduler=scheduler, steps=6, hooks=[hook])
        assert torch.equal(found.latents, right.latents)


@pytest.mark.parametrize("scheduler", [*MEMORYLESS, "dpmpp_2m", "pndm", "euler_a", "unipc"])
@pytest.mark.spread(3)
def test_black_and_white_alone_is_a_mask(sd, scheduler):
    mask = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(2)).round()
    hooks = Differential(latents=latents_of(), strength_map=mask), MaskComposite(mask, latents=latents_of())
    found, right = (run(sd, TextToImage("a"), [1, 2], scheduler=scheduler, hooks=[hook]).latents for hook in hooks)
    assert torch.equal(found, right)
    kept = (mask == 0).expand_as(found)
    assert torch.equal(found[kept], latents_of().expand_as(found)[kept])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 6), scheduler=st.sampled_from(MEMORYLESS))
@pytest.mark.slow
def test_black_stays_and_white_is_free(sd, seed, steps, scheduler):
    greys = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    greys[..., :3] = 0
    hook = Differential(latents=latents_of(seed), strength_map=greys)
    found = run(sd, TextToImage("a"), [seed], steps=steps, scheduler=scheduler, hooks=[hook]).latents
    assert torch.equal(found[..., :3], latents_of(seed)[..., :3])
    # what joins in with no step is kept, too; nothing else is
    kept = (greys * steps < 1 - 1e-5).expand_as(found)
    assert torch.equal(found[kept], latents_of(seed)[kept])
    assert (found != latents_of(seed))[~kept].all()


def test_all_white_is_no_hook(sd):
    for scheduler in ("ddim", "euler_a", "dpmpp_2m"):
        hook = Differential(picture(), flat(255))
        plain = run(sd, TextToImage("a"), [5], scheduler=scheduler)
        found = run(sd, TextToImage("a"), [5], scheduler=scheduler, hooks=[hook])
        assert torch.equal(found.latents, plain.latents)


@pytest.mark.slow
def test_pictures_and_maps_one_an_image_in_any_batch(sd):
    hook = Differential([picture(seed=k) for k in range(3)], [soft(), left_half(), soft(seed=4)])
    for scheduler in ("ddim", "heun", "euler_a", "pndm"):
        together = run(sd, TextToImage("a"), [1, 2, 3], scheduler=scheduler, hooks=[hook])
        cut = run(sd, TextToImage("a"), [1, 2, 3], scheduler=scheduler, hooks=[hook], batch_size=1)
        assert close(cut.latents, together.latents)


def test_on_a_model_of_pixels(pixel):
    """There the pixels themselves stay where the map is black."""
    greys = soft(8, 8)
    greys.paste(0, (0, 0, 4, 8))
    hooks = [Differential(picture(8, 8), greys)]
    found = LoopSampler(pixel, "ddim", hooks=hooks).sample(Unconditional(), seeds=[1], steps=4)
    expected = torch.tensor(list(picture(8, 8).tobytes())).reshape(8, 8, 3).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(found.latents[0, :, :, :4], expected[:, :, :4], atol=1e-5)
    assert not torch.allclose(found.latents[0, :, :, 4:], expected[:, :, 4:], atol=0.1)


def test_two_hooks_that_composite_are_refused(sd):
    hooks = [Differential(picture(), soft()), MaskComposite(left_half(), picture())]
    with pytest.raises(ConfigError, match=r"^hooks: MaskComposite conflicts with Differential.*composite"):
        LoopSampler(sd, hooks=hooks)
    with pytest.raises(ConfigError, match="Differential conflicts with the task inpaint"):
        run(sd, Inpaint("a", picture(), left_half()), [1], hooks=hooks[:1])


def test_a_map_counts_by_its_content(tmp_path):
    """In a job's id a copy of the file is the same map, and another map under the same name is another one."""
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    soft().save(one)
    soft().save(two)
    ids = [canonical({"strength_map": str(file)}) for file in (one, two)]
    assert ids[0] == ids[1]
    left_half().save(two)
    assert canonical({"strength_map": str(two)}) != ids[0]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"strength_map": grey(1)}, "neither or both"),
        ({"image": picture(), "strength_map": grey(1), "latents": latents_of()}, "neither or both"),
        ({"image": picture()}, "strength_map: found none; accepted is a picture"),
        ({"image": picture(), "strength_map": "no.png"}, r"strength_map: the file 'no\.png' does not exist"),
        ({"image": picture(), "strength_map": 0.5}, r"strength_map: found 0\.5"),
        ({"image": "no.png", "strength_map": soft()}, "image: the file"),
        ({"strength_map": soft(), "latents": latents_of()}, "strength_map: found Image; accepted beside latents"),
    ],
)
def test_what_it_refuses_when_it_is_made(arguments, found):
    with pytest.raises(ConfigError, match=rf"^hooks\.differential.*{found}") as caught:
        Differential(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("strength_map", "found"),
    [
        (grey(1.5), "values outside 0 to 1"),
        (grey(-0.1), "values outside 0 to 1"),
        (grey(float("nan")), "values outside 0 to 1"),
        (grey(1)[..., :7], "the shape"),
        (grey(1).expand(3, 1, 8, 8), "the shape"),
    ],
)
def test_what_it_refuses_of_tensors(sd, strength_map, found):
    hook = Differential(latents=latents_of(), strength_map=strength_map)
    with pytest.raises(ConfigError, match=rf"^hooks\.differential\.strength_map: found {found}"):
        run(sd, TextToImage("a"), [1, 2], hooks=[hook])
