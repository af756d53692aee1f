"""Depth to image natively: maps of any range, given or estimated."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.task_samples import close, computed, picture, run

from research.errors import ConfigError
from research.tasks import DepthToImage

DEPTH = np.random.default_rng(0).random((16, 16))


def seen_by_the_unet(model, task, seeds=(1,)) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0][:, 4:].clone()))
    try:
        run(model, task, seeds, steps=2)
    finally:
        handle.remove()
    assert all(torch.equal(x, seen[0]) for x in seen)
    return seen[0]


def test_the_unet_sees_the_map_from_minus_one_to_one(sd_depth):
    for depth in (None, DEPTH, DEPTH * 1e6 - 3, np.linspace(0, 1e-6, 256).reshape(16, 16)):
        channel = seen_by_the_unet(sd_depth, DepthToImage("a", picture(), depth))
        assert channel.shape == (2, 1, 8, 8)
        assert (float(channel.min()), float(channel.max())) == (-1.0, pytest.approx(1.0, abs=1e-6))


@settings(max_examples=8, deadline=None)
@given(factor=st.floats(1e-3, 1e4), shift=st.floats(-100, 100))
def test_range_does_not_matter(sd_depth, factor, shift):
    one, other = (seen_by_the_unet(sd_depth, DepthToImage("a", picture(), d)) for d in (DEPTH, DEPTH * factor + shift))
    assert torch.allclose(one, other, atol=1e-3 + 1e-4 * abs(shift) / factor)


def test_kinds_of_one_map_are_one(sd_depth, tmp_path):
    levels = (DEPTH * 255).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "depth.png")
    expected = seen_by_the_unet(sd_depth, DepthToImage("a", picture(), levels))
    for kind in (
        tmp_path / "depth.png",
        Image.fromarray(levels),
        Image.fromarray(levels.astype(np.uint16)),
        torch.from_numpy(levels),
        torch.from_numpy(levels)[None],
        torch.from_numpy(levels)[None, None],
        levels.astype(np.float64),
        levels.astype(int),
        [levels],
    ):
        assert torch.equal(seen_by_the_unet(sd_depth, DepthToImage("a", picture(), kind)), expected)


def test_an_image_is_the_same_alone_and_in_a_batch(sd_depth):
    images, maps = [picture(), picture(seed=1), picture(seed=2)], [DEPTH, DEPTH.T.copy(), DEPTH[::-1].copy()]
    for given_maps in (maps, None):
        together = run(sd_depth, DepthToImage("a", images, given_maps, 0.7), [3, 3, 4], scheduler="euler_a")
        for row, seed in enumerate([3, 3, 4]):
            depth = None if given_maps is None else maps[row]
            alone = run(sd_depth, DepthToImage("a", images[row], depth, 0.7), [seed], scheduler="euler_a")
            assert close(together.latents[row], alone.latents[0])
        cut = run(sd_depth, DepthToImage("a", images, given_maps, 0.7), [3, 3, 4], scheduler="euler_a", batch_size=2)
        assert close(cut.latents, together.latents)


def test_one_map_for_several_images(sd_depth):
    one = run(sd_depth, DepthToImage("a", picture(), DEPTH), [1, 2]).latents
    each = run(sd_depth, DepthToImage("a", [picture()] * 2, [DEPTH, DEPTH]), [1, 2]).latents
    assert torch.allclose(one, each, atol=1e-3)


def test_the_map_matters_and_the_array_is_left_alone(sd_depth):
    depth = DEPTH.copy()
    one = run(sd_depth, DepthToImage("a", picture(), depth)).latents
    assert (depth == DEPTH).all()
    assert not torch.equal(one, run(sd_depth, DepthToImage("a", picture(), DEPTH[::-1].copy())).latents)


@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (17, 16)])
def test_a_map_of_another_size_is_resized_and_said(sd_depth, shape):
    result = run(sd_depth, DepthToImage("a", picture(), np.random.default_rng(0).random(shape)))
    assert result.warnings == [
        f"task.depth_map: resized, it has {shape[1]} x {shape[0]} pixels and the picture 16 x 16."
    ]


@pytest.mark.parametrize(("size", "shape"), [((19, 18), (18, 19)), ((20, 30), (15, 10)), ((33, 17), (16, 32))])
def test_sizes_that_fit(sd_depth, size, shape):
    result = run(sd_depth, DepthToImage("a", picture(*size), np.random.default_rng(0).random(shape)))
    assert result.images[0].size == (size[0] - size[0] % 2, size[1] - size[1] % 2)


@pytest.mark.parametrize("shape", [(16, 32), (32, 16), (16, 20), (1, 16)])
def test_a_map_of_another_ratio_is_refused(sd_depth, shape):
    with (
        computed(sd_depth) as calls,
        pytest.raises(
            ConfigError, match=rf"^task\.depth_map: found {shape[1]} x {shape[0]} pixels for a picture of 16 x 16"
        ),
    ):
        run(sd_depth, DepthToImage("a", picture(), np.ones(shape)))
    assert calls == []


@pytest.mark.parametrize(
    "depth",
    [
        np.full((16, 16), np.nan),
        np.full((16, 16), np.inf),
        np.zeros(16),
        np.zeros((2, 3, 16, 16)),
        np.zeros((0, 16)),
        np.zeros((16, 16), dtype=complex),
        3,
        True,
        {},
        [DEPTH, None],
    ],
)
def test_maps_that_are_none(depth):
    with pytest.raises(ConfigError, match=r"^task\.depth_map: .*accepted is") as caught:
        DepthToImage("a", picture(), depth)
    assert "\n" not in str(caught.value)


def test_a_map_of_the_picture_as_it_was_given(sd_depth):
    """However much of its sides the factor of the VAE takes away."""
    coarse = copy.copy(sd_depth)
    coarse.geometry = replace(coarse.geometry, vae_factor=8)  # of the pictures' sides alone: nothing is sampled
    DepthToImage("a", picture(23, 16), np.ones((16, 23))).check(coarse, 1)
    DepthToImage("a", picture(23, 16), np.ones((16, 16))).check(coarse, 1)
    with pytest.raises(ConfigError, match=r"found 30 x 16 pixels for a picture of 16 x 16"):
        DepthToImage("a", picture(23, 16), np.ones((16, 30))).check(coarse, 1)


def test_two_maps_for_three_images(sd_depth):
    with pytest.raises(ConfigError, match="found 2 maps for 3 images"):
        run(sd_depth, DepthToImage("a", picture(), [DEPTH, DEPTH]), [1, 2, 3])


def test_without_an_estimator_a_map_must_be_given(sd_depth):
    bare = copy.copy(sd_depth)
    bare.depth = None
    with pytest.raises(ConfigError, match=r"task\.depth_map: found none, and tiny-depth has no depth estimator"):
        run(bare, DepthToImage("a", picture()))
    assert len(run(bare, DepthToImage("a", picture(), DEPTH)).images) == 1


def test_models_for_other_tasks(sd, sd_inpaint):
    with pytest.raises(
        ConfigError, match=r"depth_to_image needs a UNet that takes a depth map as well .*use task text_to_image"
    ):
        run(sd, DepthToImage("a", picture(), DEPTH))
    with pytest.raises(ConfigError, match="use task inpaint"):
        run(sd_inpaint, DepthToImage("a", picture(), DEPTH))


def test_what_it_shows(sd_depth):
    sheet = run(sd_depth, DepthToImage("a", picture(), DEPTH), [1, 2]).pictures["before_depth_after"]
    assert sheet.size == (3 * (128 + 4) + 4, 2 * (128 + 4) + 4)
