"""The ready losses: their values, what they are given, and what they do to pictures of the embedded model."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from research import LoopSampler, load_model
from research.errors import ConfigError
from research.guidance import CFG, LossGuidance
from research.guidance.losses import ClipClassifier, ClipLoss, Colour, Inpainting, MaskLoss, SuperResolution
from research.image_tensors import images_to_pixels
from research.jobs.identity import canonical
from research.metrics import CLIPScore
from research.models import BaseModel
from research.tasks import TextToImage
from research.zoo import picture_path


def pixels_of(name: str) -> Tensor:
    return images_to_pixels([Image.open(picture_path(name))])


@pytest.fixture(scope="module")
def emoji() -> BaseModel:
    return load_model("emoji", device="cpu", dtype="float32")


# --- values


def test_colour() -> None:
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    for colour in ("red", "#ff0000", [1, 0, 0], "hsl(0, 100%, 50%)"):
        assert Colour(colour)(red).tolist() == [0, 0]
    assert Colour("black")(red).tolist() == pytest.approx([1, 1])
    assert Colour("white")(-torch.ones(1, 3, 2, 2)).tolist() == pytest.approx([3])
    # of the mean, and not the mean over pixels
    assert Colour([0.5, 0.5, 0.5])(torch.randn(1, 3, 8, 8).sign()).item() < 0.2


def test_colour_of_a_part() -> None:
    mask = Image.new("L", (4, 4))
    mask.paste(255, (0, 0, 2, 4))
    pixels = torch.ones(1, 3, 4, 4)
    pixels[..., 2:] = -1
    assert Colour("white", mask)(pixels).item() == 0
    with pytest.raises(ConfigError, match=r"guidance\.loss\.mask: found a mask that leaves no pixel to the colour"):
        Colour("white", Image.new("L", (4, 4)))(pixels)


@pytest.mark.fidelity(
    "guidance/loss_inpaint",
    source="arXiv:2302.07121, eq. 6",
    against="its formula",
    within="1e-5",
    differs="a loss inside the prediction and not the step of DPS",
)
def test_known_pixels_alone_count() -> None:
    picture, mask = pixels_of("pizza"), pixels_of("mask_half")[:, :1] > 0
    inside = picture + 0.5 * mask
    outside = picture + 0.5 * ~mask
    loss, outer, inner = (
        Inpainting("zoo:pizza", "zoo:mask_half"),
        MaskLoss("zoo:pizza", "zoo:mask_half"),
        MaskLoss("zoo:pizza", "zoo:mask_half", keep="inside"),
    )
    assert loss(picture).item() == loss(inside).item() == outer(inside).item() == inner(outside).item() == 0
    known = float((~mask).sum())
    assert loss(outside).item() == pytest.approx(3 * known * 0.25, rel=1e-5)
    assert outer(outside).item() == pytest.approx(0.25, rel=1e-5)
    assert inner(inside).item() == pytest.approx(0.25, rel=1e-5)
    leaf = outside.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    assert not gradient[mask.expand_as(gradient)].any()


@pytest.mark.fidelity(
    "guidance/loss_super_resolution",
    source="arXiv:2302.07121, eq. 6",
    against="its formula",
    within="1e-4",
    differs="a loss inside the prediction and not the step of DPS",
)
def test_a_small_picture_is_matched_by_what_is_large() -> None:
    large = pixels_of("pizza")
    small = torch.nn.functional.avg_pool2d(large, 4)
    given = small[0] / 2 + 0.5
    for picture in (given, "zoo:pizza"):
        assert SuperResolution(picture)(large).item() == pytest.approx(0, abs=1e-6)
        assert SuperResolution(picture)(large + 0.5).item() == pytest.approx(0.25 * small.numel(), rel=1e-4)
    with pytest.raises(ConfigError, match=r"guidance\.loss\.factor: found 5; accepted divides the sides"):
        SuperResolution(given, 5)(large)


@pytest.mark.fidelity(
    "guidance/loss_clip",
    source="arXiv:2302.07121, eq. 6, of the CLIP score",
    against="the CLIP score",
    within="0.02 of 100",
)
def test_the_clip_loss_is_the_clip_score() -> None:
    prompts = ["pizza on a blue background", "cat face", "strawberry", "octopus"]
    images = [Image.open(picture_path(name)).convert("RGB") for name in ("pizza", "cat", "strawberry", "penguin")]
    scores = CLIPScore().compute(images, prompts).info["per_image"]
    losses = ClipLoss(prompts)(images_to_pixels(images))
    for loss, score in zip(losses.tolist(), scores, strict=True):
        assert max(100 * (1 - loss), 0) == pytest.approx(score, abs=0.02)


def test_other_sizes_are_resized_alike() -> None:
    large = Image.open(picture_path("pizza")).convert("RGB").resize((80, 64), Image.Resampling.BICUBIC)
    score = CLIPScore().compute([large], ["pizza"]).info["per_image"][0]
    loss = ClipLoss("pizza")(images_to_pixels([large])).item()
    assert 100 * (1 - loss) == pytest.approx(score, abs=1.0)


def test_the_clip_classifier_knows_what_it_sees() -> None:
    classifier = ClipClassifier(["pizza", "cat face", "strawberry"])
    pixels = torch.cat([pixels_of(name) for name in ("pizza", "cat", "strawberry")])
    assert classifier(pixels).argmax(1).tolist() == [0, 1, 2]


# --- what they are given


@pytest.mark.parametrize("size", [4, 3])
@pytest.mark.spread(1)
@pytest.mark.slow
def test_pictures_and_prompts_go_by_image_in_any_batch(emoji: BaseModel, size: int) -> None:
    """Each image of a job is led to its own picture."""
    names = ["pizza", "cat", "strawberry", "penguin"]
    loss = MaskLoss([f"zoo:{name}" for name in names], "zoo:mask_half", keep="inside")
    led = LossGuidance(0.5, loss, mode="x0", sees="pixels", normalize="gradient", base=CFG(1.0))
    result = LoopSampler(emoji, "ddim", guidance=led).sample(
        TextToImage("emoji"), seeds=[0, 1, 2, 3], steps=6, batch_size=size
    )
    found = images_to_pixels(result.images)
    distances = torch.stack([MaskLoss(f"zoo:{name}", "zoo:mask_half", keep="inside")(found) for name in names])
    assert distances.argmin(0).tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_without_a_prompt_the_jobs_prompts_count(emoji: BaseModel) -> None:
    prompts = ["pizza", "cat face"]

    def run(prompt: Any, size: int) -> Tensor:
        led = LossGuidance(3.0, ClipLoss(prompt), mode="x0", sees="pixels")
        sampler = LoopSampler(emoji, "ddim", guidance=led)
        return sampler.sample(TextToImage(prompts), seeds=[0, 1], steps=2, batch_size=size).latents

    assert torch.equal(run(None, 2), run(prompts, 2))
    torch.testing.assert_close(run(None, 1), run(prompts, 2), rtol=1e-4, atol=1e-4)
    assert not torch.equal(run(None, 2), run("cat face", 2))
    with pytest.raises(ConfigError, match="found 3 sentences for 2 images"):
        run(["a", "b", "c"], 2)


def test_a_picture_counts_by_its_content(tmp_path: Path) -> None:
    """Where a picture lies makes no other job; what is in it does."""
    copy = tmp_path / "mine.png"
    shutil.copy(picture_path("pizza"), copy)

    def node(image: Any) -> Any:
        loss = {"_target_": "research.guidance.losses.Inpainting", "image": image, "mask": "zoo:mask_half"}
        return canonical({"guidance": {"_target_": "research.guidance.LossGuidance", "scale": 1, "loss": loss}})

    assert node("zoo:pizza") == node(str(copy))
    assert node("zoo:pizza") != node("zoo:cat")


BAD: list[tuple[Any, str]] = [
    (lambda: Colour("reddish"), r"guidance\.loss\.colour: found 'reddish'"),
    (lambda: Colour([1, 2, 0]), r"guidance\.loss\.colour: found \[1, 2, 0\]"),
    (lambda: Colour([0.1, math.nan, 0]), r"guidance\.loss\.colour"),
    (lambda: Inpainting("nowhere.png", "zoo:mask_half"), r"guidance\.loss\.image: the file 'nowhere\.png' does not"),
    (lambda: Inpainting("zoo:pizza", "zoo:mask_haf"), r"guidance\.loss\.mask: the zoo has no picture .*mask_half"),
    (lambda: MaskLoss("zoo:pizza", "zoo:mask_half", keep="all"), r"guidance\.loss\.keep: found 'all'"),
    (lambda: SuperResolution("zoo:pizza", 1), r"guidance\.loss\.factor: found 1; accepted is a whole number from 2"),
    (lambda: ClipLoss("a", model="emoji-evil"), r"guidance\.loss\.model: 'emoji-evil' does not exist"),
    (lambda: ClipLoss([]), r"guidance\.loss\.prompt: found \[\]"),
    (lambda: ClipClassifier(["cat"]), r"guidance\.classifier\.prompts: found \['cat'\]"),
    (lambda: ClipClassifier("cat"), r"guidance\.classifier\.prompts: found 'cat'"),
]


@pytest.mark.parametrize(("make", "said"), BAD, ids=[said[-25:] for _, said in BAD])
def test_bad_arguments(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_mask_that_leaves_nothing_known() -> None:
    white = Image.new("L", (8, 8), 255)
    with pytest.raises(ConfigError, match="white all over"):
        Inpainting("zoo:pizza", white)(torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
def test_not_as_many_pictures_as_images(emoji: BaseModel) -> None:
    led = LossGuidance(1.0, MaskLoss(["zoo:pizza", "zoo:cat"], "zoo:mask_half"), sees="pixels")
    with pytest.raises(ConfigError, match=r"guidance\.loss\.image: found 2 pictures for 3 images"):
        LoopSampler(emoji, "ddim", guidance=led).sample(TextToImage("cat"), seeds=[0, 1, 2], steps=2)


# --- what they do


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "scheduler"),
    [
        (Inpainting("zoo:pizza", "zoo:mask_half"), "ddim"),
        (Inpainting("zoo:pizza", "zoo:mask_half"), "dpmpp_2m"),
        (SuperResolution("zoo:pizza"), "euler"),
    ],
    ids=["inpainting-ddim", "inpainting-dpmpp_2m", "super_resolution-euler"],
)
@pytest.mark.spread(1)
def test_posterior_sampling_keeps_what_is_known(emoji: BaseModel, loss: Any, scheduler: str) -> None:
    def found(scale: float) -> float:
        led = LossGuidance(scale, loss, sees="pixels", normalize="residual", base=CFG(2.0))
        result = LoopSampler(emoji, scheduler, guidance=led).sample(
            TextToImage("pizza on a blue background"), seeds=[0, 2], steps=10
        )
        return float(loss(images_to_pixels(result.images)).mean())

    assert found(5.0) < 0.15 * found(0.0)


@pytest.mark.parametrize("mode", ["model", "x0"])
@pytest.mark.parametrize("loss", [Colour("red"), ClipLoss("strawberry")], ids=["colour", "clip"])
@pytest.mark.spread(1)
def test_the_loss_is_less_than_without(emoji: BaseModel, mode: str, loss: Any) -> None:
    def found(scale: float) -> Tensor:
        led = LossGuidance(scale, loss, mode=mode, sees="pixels", normalize="gradient")
        result = LoopSampler(emoji, "ddim", guidance=led).sample(TextToImage("pizza"), seeds=[0, 1], steps=6)
        return loss(images_to_pixels(result.images))

    assert (found(1.0) < found(0.0)).all()
