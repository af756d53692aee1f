"""Masks, reliefs and the pools of pictures that the inpainting and the depth model learn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from research.zoo import PICTURES_DIR, picture_names, picture_path
from tools.zoo.data import COLOURS, RESOLUTION, SETS, SUBJECTS, Emoji
from tools.zoo.depth import as_channel
from tools.zoo.depth_maps import depth_maps
from tools.zoo.inpaint import build_inpaint, widen
from tools.zoo.masks import KINDS, latent_masks, random_masks, without
from tools.zoo.pictures import all_pictures
from tools.zoo.unet import build_unet, v_loss


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 40), seed=st.integers(0, 2**31), size=st.sampled_from([1, 8, 32, 33]))
def test_masks_are_binary_and_come_from_the_generator_alone(count: int, seed: int, size: int) -> None:
    masks = random_masks(count, generator(seed), size)
    assert masks.shape == (count, 1, size, size)
    assert masks.dtype == torch.float32
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    torch.rand(3)  # the global generator is somebody else's
    assert torch.equal(masks, random_masks(count, generator(seed), size))


def test_all_kinds_of_masks_occur() -> None:
    masks = random_masks(4000, generator(0))
    painted = masks.mean(dim=(1, 2, 3))
    assert (painted == 1).float().mean() == pytest.approx(KINDS["everything"], abs=0.05)
    assert (painted == 0).float().mean() == pytest.approx(KINDS["nothing"], abs=0.03)
    assert 0.3 < painted.mean() < 0.6
    # every place of the picture is painted in some and kept in others
    assert masks.mean(dim=0).min() > 0.2
    assert masks.mean(dim=0).max() < 0.8


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_what_is_painted_anew_is_gray_and_the_rest_untouched(seed: int) -> None:
    pictures = torch.rand(5, 3, RESOLUTION, RESOLUTION, generator=generator(seed)) * 2 - 1
    masks = random_masks(5, generator(seed + 1))
    left = without(pictures, masks)
    assert torch.equal(left[masks.expand(-1, 3, -1, -1) == 0], pictures[masks.expand(-1, 3, -1, -1) == 0])
    assert (left[masks.expand(-1, 3, -1, -1) == 1] == 0).all()


def test_masks_at_the_size_of_latents_are_the_pipelines(inpaint_directory) -> None:
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(inpaint_directory)
    masks = random_masks(6, generator(3))
    size = RESOLUTION // pipeline.vae_scale_factor
    theirs, _ = pipeline.prepare_mask_latents(
        masks, torch.zeros(6, 3, RESOLUTION, RESOLUTION), 6, RESOLUTION, RESOLUTION, torch.float32, "cpu", None, False
    )
    assert torch.equal(latent_masks(masks, size), theirs)


def test_widened_network_does_what_the_old_one_did() -> None:
    torch.manual_seed(0)
    old = build_unet().eval()
    new = widen(old).eval()
    assert new.config.in_channels == build_inpaint().config.in_channels == 9
    noisy, hints, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8), torch.randn(2, 16, 128)
    with torch.no_grad():
        before = old(noisy, 500, encoder_hidden_states=text).sample
        after = new(torch.cat([noisy, hints], dim=1), 500, encoder_hidden_states=text).sample
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert new.conv_in.weight[:, 4:].abs().max() == 0


@settings(deadline=None, max_examples=25)
@given(top=st.integers(0, 20), left=st.integers(0, 20), height=st.integers(1, 12), width=st.integers(1, 12))
def test_a_relief_rises_towards_the_middle(top: int, left: int, height: int, width: int) -> None:
    alpha = torch.zeros(1, 1, RESOLUTION, RESOLUTION)
    alpha[..., top : top + height, left : left + width] = 1
    relief = depth_maps(alpha)
    inside = relief[alpha > 0]
    assert (relief[alpha == 0] == 0).all()
    assert inside.min() >= 0.5
    assert inside.max() == 1
    assert relief[0, 0, top, left] == inside.min()
    middle = relief[0, 0, top + (height - 1) // 2, left + (width - 1) // 2]
    assert middle == 1


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_reliefs_give_finite_channels(value: float) -> None:
    channel = as_channel(torch.full((2, 1, RESOLUTION, RESOLUTION), value))
    assert channel.shape == (2, 1, 8, 8)
    assert torch.isfinite(channel).all()
    assert depth_maps(torch.zeros(1, 1, 8, 8)).abs().max() == 0


def test_shipped_pictures() -> None:
    assert len(picture_names()) >= 15
    for name in picture_names():
        path = picture_path(name)
        assert path is not None
        with Image.open(path) as picture:
            pixels = np.array(picture)
        assert pixels.shape[:2] == (RESOLUTION, RESOLUTION)
        if name.startswith("mask_"):
            assert set(np.unique(pixels)) == {0, 255}
        else:
            assert pixels.std() > 10
    assert picture_path("nothing") is None
    assert picture_path("../emoji") is None
    assert sum(file.stat().st_size for file in PICTURES_DIR.iterdir()) < 50_000


def test_the_maker_of_pictures_makes_what_is_shipped() -> None:
    """With stand-in artwork: names are those of the package, and what is drawn by code is drawn the same."""
    emoji = Emoji(torch.rand(len(SUBJECTS), len(SETS), 4, RESOLUTION, RESOLUTION, generator=generator(0)))
    made = all_pictures(emoji)
    assert sorted(made) == picture_names()
    assert len(COLOURS) == 10
    for name in ("sketch_pizza", "sketch_face", "sketch_flower", "mask_circle", "mask_around"):
        assert np.array_equal(np.array(made[name]), np.array(Image.open(PICTURES_DIR / f"{name}.png")))


@pytest.mark.slow
def test_the_loss_with_hints_draws_from_its_generator_alone() -> None:
    """What an exact resume rests on; and the hints are those of the drawn rows."""
    pool = torch.randn(20, 4, 8, 8, generator=generator(1))
    hints = torch.arange(20.0)[:, None, None, None].expand(-1, 5, 8, 8)
    where = torch.zeros(20, 2, dtype=torch.long)
    styles, states = torch.zeros(20, dtype=torch.long), torch.randn(1, 1, 4, 16, 128, generator=generator(2))
    seen: list[torch.Tensor] = []

    def given_hints(rows: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
        seen.append(rows)
        return hints[rows]

    loss = v_loss(pool, where, styles, states, states[0, 0, 0], given_hints)
    torch.manual_seed(0)
    network = build_inpaint().eval()
    inputs: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        first = loss(network, generator(5))
        torch.rand(7)
        second = loss(network, generator(5))
    assert torch.equal(first, second)
    assert inputs[0].shape[1] == 9
    assert torch.equal(inputs[0][:, 4, 0, 0], seen[0].float())
