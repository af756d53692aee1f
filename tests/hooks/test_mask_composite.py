"""`MaskComposite` and `ExtraChannels` as hooks of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.task_samples import close, flat, left_half, one_pixel, picture, run, soft

from research import Hook
from research.errors import ConfigError
from research.hooks import ExtraChannels, MaskComposite
from research.hooks.mask_composite import at_latent_size
from research.tasks import ImageToImage, Inpaint, TextToImage

MASK = torch.zeros(1, 1, 8, 8)
MASK[..., :4] = 1


def clean(seed: int = 0, n: int = 1) -> torch.Tensor:
    return torch.randn((n, 4, 8, 8), generator=torch.Generator().manual_seed(seed))


class Levels(Hook):
    """What the latents are outside the mask after each step."""

    order = 600  # after the compositing

    def on_start(self, run):
        self.seen, self.run = [], run

    def post_step(self, state):
        self.seen.append(state.x.clone())


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "heun", "dpmpp_2m", "euler_a"])
@pytest.mark.fidelity(
    "hooks/mask_composite",
    source="arXiv:2201.09865, eq. 8a",
    against="the noised picture outside the mask",
    within="1e-4",
    differs="parity of the task: tests/sampling/test_parity_tasks.py",
)
def test_outside_the_mask_latents_follow_the_schedule(sd, scheduler):
    """After step i they are the picture's latents at the level of stage i + 1, with the start noise; clean at the end."""
    levels = Levels()
    hooks = [levels, MaskComposite(MASK, latents=clean())]
    result = run(sd, TextToImage("a"), [3], scheduler=scheduler, hooks=hooks)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    timeline = levels.run.timeline
    for i, x in enumerate(levels.seen[:-1]):
        expected = timeline[i + 1].signal * clean() + timeline[i + 1].noise * noise
        assert torch.allclose(x[..., 4:], expected[..., 4:], rtol=1e-4, atol=1e-5)
    assert torch.equal(result.latents[..., 4:], clean()[..., 4:])
    assert not torch.allclose(result.latents[..., :4], clean()[..., :4], atol=0.1)


def test_it_does_what_the_inpainting_task_does(sd):
    """With the picture's latents, and at full strength."""
    task = run(sd, Inpaint("a", picture(), left_half(), 1.0), [5, 6], scheduler="dpmpp_2m")
    kept = {}

    class Keep(Hook):
        def on_start(self, run):
            kept.update(run.task_tensors)

    run(sd, Inpaint("a", picture(), left_half(), 1.0), [5, 6], scheduler="dpmpp_2m", hooks=[Keep()])
    hook = MaskComposite(kept["mask"], latents=kept["clean"])
    found = run(sd, TextToImage("a"), [5, 6], scheduler="dpmpp_2m", hooks=[hook])
    assert torch.equal(found.latents, task.latents)


def test_a_picture_and_a_mask_of_any_kind(sd, tmp_path):
    picture(20, 18).save(tmp_path / "picture.png")
    left_half(40, 40).save(tmp_path / "mask.png")
    by_file = MaskComposite(str(tmp_path / "mask.png"), tmp_path / "picture.png")
    by_image = MaskComposite(left_half(40, 40), picture(20, 18))
    first, second = (run(sd, TextToImage("a"), [1, 2], hooks=[hook]).latents for hook in (by_file, by_image))
    assert torch.equal(first, second)
    levels = Levels()
    run(sd, TextToImage("a"), [1, 2], hooks=[levels, by_image])
    assert not torch.equal(levels.seen[-1][0, :, :, 4:], levels.seen[-1][1, :, :, 4:])  # the encoder's own noise


def test_pictures_and_masks_one_an_image_in_any_batch(sd):
    hook = MaskComposite([left_half(), soft(), flat(0)], [picture(seed=k) for k in range(3)])
    together = run(sd, TextToImage("a"), [1, 2, 3], hooks=[hook])
    cut = run(sd, TextToImage("a"), [1, 2, 3], hooks=[hook], batch_size=1)
    assert close(cut.latents, together.latents)


def test_it_composes_with_image_to_image_and_leaves_other_noise_alone(sd):
    nothing = MaskComposite(torch.ones(1, 1, 8, 8), latents=clean())
    for scheduler in ("ddim", "euler_a"):
        plain = run(sd, ImageToImage("a", picture(), 0.6), [1], scheduler=scheduler)
        hooked = run(sd, ImageToImage("a", picture(), 0.6), [1], scheduler=scheduler, hooks=[nothing])
        assert torch.equal(plain.latents, hooked.latents)


def test_noise_of_ones_own(sd):
    noise = clean(9)
    levels = Levels()
    run(sd, TextToImage("a"), [1], hooks=[levels, MaskComposite(MASK, latents=clean(), noise=noise)])
    stage = levels.run.timeline[1]
    expected = stage.signal * clean() + stage.noise * noise
    assert torch.allclose(levels.seen[0][..., 4:], expected[..., 4:], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"mask": MASK}, "neither or both"),
        ({"mask": MASK, "image": picture(), "latents": clean()}, "neither or both"),
        ({"mask": "missing.png", "image": picture()}, r"mask: the file 'missing\.png' does not exist"),
        ({"mask": left_half(), "image": "missing.png"}, "image: the file"),
        ({"mask": left_half(), "latents": clean()}, "mask: found Image; accepted beside latents is a tensor"),
        ({"mask": MASK, "latents": clean().numpy()}, "latents: found ndarray; accepted is a tensor"),
        ({"mask": MASK, "latents": clean(), "noise": [1]}, "noise: found list; accepted is a tensor"),
    ],
)
def test_what_it_refuses_when_it_is_made(arguments, found):
    with pytest.raises(ConfigError, match=rf"^hooks\.mask_composite.*{found}"):
        MaskComposite(**arguments)


@pytest.mark.parametrize(
    ("mask", "latents", "key"),
    [
        (MASK[..., :7], clean(), "mask"),
        (MASK.expand(1, 4, 8, 8), clean(), "mask"),
        (MASK.expand(3, 1, 8, 8), clean(), "mask"),
        (MASK, clean()[:, :3], "latents"),
        (MASK, clean(n=3), "latents"),
        (MASK[0], clean(), "mask"),
    ],
)
def test_tensors_of_another_shape(sd, mask, latents, key):
    with pytest.raises(ConfigError, match=rf"^hooks\.mask_composite\.{key}: found the shape"):
        run(sd, TextToImage("a"), [1, 2], hooks=[MaskComposite(mask, latents=latents)])


# --- masks at the size of the latents


def test_no_pixel_of_a_mask_vanishes():
    for factor in (2, 4, 8):
        for x, y in ((0, 0), (9, 3), (15, 15)):
            mask = torch.from_numpy(np.array(one_pixel(x=x, y=y), dtype=np.float32))[None, None] / 255
            small = at_latent_size(mask, factor)
            assert small.shape == (1, 1, 16 // factor, 16 // factor)
            assert small.sum() == 1
            assert small[0, 0, y // factor, x // factor] == 1


# --- further channels


def test_extra_channels_come_after_the_latents_unscaled(sd_inpaint):
    """What the inpainting task does, as a hook on a loop of one's own."""
    channels = torch.rand((2, 5, 8, 8), generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []

    class Double(Hook):
        order = 100

        def pre_model(self, state, inputs):
            assert inputs.shape[1] == 4
            return inputs * 2

    handle = sd_inpaint.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        task = Inpaint("a", picture(), left_half())
        task.hooks = lambda run: []  # type: ignore[method-assign]
        run(sd_inpaint, task, [1, 2], scheduler="euler", hooks=[ExtraChannels(channels), Double()])
    finally:
        handle.remove()
    assert all(torch.equal(x[:, 4:], torch.cat([channels, channels])) for x in seen)
