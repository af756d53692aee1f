"""Inpainting natively, on a UNet of four channels and on one of nine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.task_samples import close, computed, flat, left_half, one_pixel, picture, run, soft

from research import Hook
from research.errors import ConfigError
from research.tasks import Inpaint
from research.tasks.inpaint import pasted

pytestmark = pytest.mark.spread(2)


@pytest.fixture(params=["sd", "sd_inpaint"])
def model(request):
    return request.getfixturevalue(request.param)


# --- what it does


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("scheduler", ["ddim", "heun", "euler_a"])
def test_outside_the_mask_pixels_are_the_pictures(model, scheduler, strength):
    result = run(model, Inpaint("a", picture(), left_half(), strength), [1, 2], scheduler=scheduler)
    for image in result.images:
        found, given = np.asarray(image), np.asarray(picture())
        assert (found[:, 8:] == given[:, 8:]).all()
        assert (found[:, :8] != given[:, :8]).any()


def test_paste_back_is_an_option(model):
    pasted_back = run(model, Inpaint("a", picture(), left_half()))
    plain = run(model, Inpaint("a", picture(), left_half(), paste_back=False))
    assert torch.equal(pasted_back.latents, plain.latents)
    found, given, back = (np.asarray(i) for i in (plain.images[0], picture(), pasted_back.images[0]))
    assert (found[:, 8:] != given[:, 8:]).any()  # the VAE loses something
    assert (found[:, :8] == back[:, :8]).all()


def test_four_channels_end_with_the_pictures_latents_outside(sd):
    """Clean at the end: whatever the seed, what is outside the mask differs by the encoder's noise alone."""

    class End(Hook):
        def on_end(self, run):
            self.x, self.clean, self.mask = run.x, run.task_tensors["clean"], run.task_tensors["mask"]

    end = End()
    run(sd, Inpaint("a", picture(), left_half(), 0.7), [1, 2], scheduler="dpmpp_2m", hooks=[end])
    outside = (end.mask == 0).expand_as(end.x)
    assert outside[..., 4:].all()
    assert not outside[..., :4].any()
    assert torch.equal(end.x[outside], end.clean[outside])


def test_nine_channels_see_the_mask_and_the_masked_picture(sd_inpaint):
    seen: list[torch.Tensor] = []
    handle = sd_inpaint.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    try:
        run(sd_inpaint, Inpaint("a", picture(), left_half()), [1, 2], scheduler="euler")
        run(sd_inpaint, Inpaint("a", picture(seed=5), flat(255)), scheduler="euler")
        run(sd_inpaint, Inpaint("a", picture(seed=6), flat(255)), scheduler="euler")
    finally:
        handle.remove()
    first = seen[0]
    assert first.shape == (4, 9, 8, 8)  # two images, unconditional and conditional
    assert first[:, 4, :, :4].all()
    assert not first[:, 4, :, 4:].any()
    assert all(torch.equal(x[:, 4:], first[:, 4:]) for x in seen[:4]), "not scaled with the latents"
    # with everything hidden, nothing of the picture is seen
    assert torch.equal(seen[4], seen[8])


def test_an_image_is_the_same_alone_and_in_a_batch(model):
    images, masks = [picture(), picture(20, 18, 1), picture(seed=2)], [left_half(), soft(), flat(255)]
    together = run(model, Inpaint("a", images, masks, 0.8), [5, 5, 7], scheduler="ddpm")
    for row, seed in enumerate([5, 5, 7]):
        alone = run(model, Inpaint("a", images[row], masks[row], 0.8), [seed], scheduler="ddpm")
        assert close(together.latents[row], alone.latents[0])
        difference = np.asarray(alone.images[0], int) - np.asarray(together.images[row], int)
        assert np.abs(difference).max() <= 1
    cut = run(model, Inpaint("a", images, masks, 0.8), [5, 5, 7], scheduler="ddpm", batch_size=2)
    assert close(cut.latents, together.latents)
    assert cut.pictures["before_mask_after"].size == together.pictures["before_mask_after"].size


def test_one_mask_for_all_or_one_an_image(model):
    one = run(model, Inpaint("a", picture(), soft()), [1, 2]).latents
    assert torch.equal(one, run(model, Inpaint("a", picture(), [soft(), soft()]), [1, 2]).latents)
    assert torch.allclose(one, run(model, Inpaint("a", [picture()] * 2, soft()), [1, 2]).latents, atol=1e-3)


@pytest.mark.spread(1)
def test_kinds_of_one_mask_are_one(model, tmp_path):
    mask = left_half()
    mask.save(tmp_path / "mask.png")
    array = np.array(mask)
    expected = run(model, Inpaint("a", picture(), mask)).latents
    for kind in (
        tmp_path / "mask.png",
        mask.convert("RGB"),
        mask.convert("1"),
        mask.convert("RGBA"),
        array,
        array[..., None],
        array / 255,
        array > 0,
        torch.from_numpy(array > 0),
        torch.from_numpy(array)[None],
        torch.from_numpy(array)[None, None] / 255,
    ):
        assert torch.equal(run(model, Inpaint("a", picture(), kind)).latents, expected)


@pytest.mark.parametrize("parity", [False, True])
def test_numbers_that_were_given_are_left_alone(model, parity):
    mask, image = torch.rand(16, 16), torch.rand(3, 16, 16)
    array = np.random.default_rng(0).random((16, 16), dtype=np.float32)
    copies = mask.clone(), image.clone(), array.copy()
    run(model, Inpaint("a", image, mask, 0.5), parity=parity)
    run(model, Inpaint("a", image, array, 0.5), parity=parity)
    assert torch.equal(mask, copies[0])
    assert torch.equal(image, copies[1])
    assert (array == copies[2]).all()


# --- what it says


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (flat(0), ["task.mask: all black, nothing is drawn and the picture stays."]),
        (flat(255), ["task.mask: all white, nothing of the picture is kept."]),
        (left_half(8, 20), ["task.mask: resized from 8 x 20 to 16 x 16 pixels, as the picture."]),
        (flat(0, 9, 9), ["task.mask: resized", "task.mask: all black"]),
        (soft(), []),
        (one_pixel(), []),
        ([left_half(), flat(0)], ["task.mask: all black"]),
    ],
)
def test_masks_that_are_worth_a_word(model, mask, said):
    warnings = run(model, Inpaint("a", picture(), mask), [1, 2]).warnings
    assert len(warnings) == len(said)
    assert all(found.startswith(expected) for found, expected in zip(warnings, said, strict=True))


def test_a_picture_of_another_size_is_said(model):
    result = run(model, Inpaint("a", picture(31, 20), left_half()))
    assert result.warnings == ["task.image: resized from 31 x 20 to 16 x 16 pixels."] or any(
        w.startswith("task.image: resized") for w in result.warnings
    )
    assert result.images[0].size == (16, 16)
    larger = run(model, Inpaint("a", picture(), left_half(), height=24, width=32))
    assert larger.images[0].size == (32, 24)


def test_what_it_shows(model):
    sheet = run(model, Inpaint("a", picture(), left_half()), [1, 2]).pictures["before_mask_after"]
    assert sheet.size == (3 * (128 + 4) + 4, 2 * (128 + 4) + 4)
    pixels = np.asarray(sheet)[4 : 4 + 128 : 8, 4:-4:8]
    before, mask = pixels[:, :16], np.asarray(sheet)[4 : 4 + 128 : 8, 136 : 136 + 128 : 8]
    assert (before == np.asarray(picture())).all()
    assert (mask == np.asarray(left_half())[..., None]).all()


# --- what it refuses


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (None, "found None"),
        ([], "an empty list"),
        (np.full((16, 16), 1.5), "from 1.5 to 1.5"),
        (np.full((16, 16), -1.0), "from -1 to -1"),
        (np.full((16, 16), np.nan), "NaN"),
        (np.full((16, 16), 70_000, dtype=np.int32), "to 70000"),
        (np.zeros((16, 16, 5)), "shape"),
        (torch.zeros(7, 16, 16), "shape"),
        ([left_half()] * 3, "3 pictures for 2 images"),
    ],
)
def test_masks_that_are_none(model, mask, found):
    with computed(model) as calls, pytest.raises(ConfigError, match=rf"^task\.mask: .*{found}") as caught:
        run(model, Inpaint("a", picture(), mask), [1, 2])
    assert calls == []
    assert "\n" not in str(caught.value)


def test_models_for_other_tasks(sd_depth, pixel):
    with pytest.raises(ConfigError, match=r"inpaint needs a UNet .*use task depth_to_image"):
        run(sd_depth, Inpaint("a", picture(), left_half()))
    with pytest.raises(ConfigError, match="Inpaint needs a model that takes text"):
        run(pixel, Inpaint("a", picture(), left_half()), scheduler="ddpm", scale=1.0)


# --- pasting


@given(grey=st.integers(0, 255), seed=st.integers(0, 100))
def test_pasting_mixes_by_the_mask(grey, seed):
    before, after = picture(5, 4, seed), picture(5, 4, seed + 1)
    found = np.asarray(pasted(before, after, flat(grey, 5, 4)), dtype=float)
    expected = np.asarray(before) * (1 - grey / 255) + np.asarray(after) * (grey / 255)
    assert np.abs(found - expected).max() <= 0.501


def test_pasting_keeps_both_ends_exactly():
    before, after = picture(), picture(seed=1)
    assert pasted(before, after, flat(0)).tobytes() == before.tobytes()
    assert pasted(before, after, flat(255)).tobytes() == after.tobytes()
    assert isinstance(pasted(before, after, soft()), Image.Image)
