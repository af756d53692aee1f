"""Tasks: prompts and labels, what they refuse, what they record."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from research import LoopSampler
from research.errors import ConfigError
from research.guidance import CFG
from research.tasks import DepthToImage, ImageToImage, Inpaint, Inversion, TextToImage, Unconditional


def run(model, task, seeds=(0,), **arguments):
    scheduler = "ddim" if model.family == "unet-text" else "ddpm"
    return LoopSampler(model, scheduler=scheduler, **arguments).sample(task, seeds=seeds, steps=2)


# --- prompts


def test_one_prompt_for_all_is_a_list_of_it(sd):
    one = run(sd, TextToImage("a cat", "dog"), [1, 2], guidance=CFG(2.0))
    many = run(sd, TextToImage(["a cat"] * 2, ["dog"] * 2), [1, 2], guidance=CFG(2.0))
    assert torch.equal(one.latents, many.latents)
    assert one.prompts == many.prompts == ["a cat", "a cat"]


def test_each_image_gets_its_own_prompt(sd):
    both = run(sd, TextToImage(["a cat", "x"], ["dog", ""]), [1, 1], guidance=CFG(2.0))
    for row, (prompt, negative) in enumerate([("a cat", "dog"), ("x", "")]):
        alone = run(sd, TextToImage(prompt, negative), [1], guidance=CFG(2.0)).latents[0]
        assert torch.allclose(both.latents[row], alone, atol=1e-3)
    assert not torch.allclose(both.latents[0], both.latents[1], atol=1e-3)


def test_a_tuple_of_prompts(sd):
    assert run(sd, TextToImage(("a", "b")), [1, 2]).prompts == ["a", "b"]


@pytest.mark.parametrize("prompt", [[], (), None, 3, ["a", None], ["a", 3], {}])
def test_prompts_that_are_none(prompt):
    with pytest.raises(ConfigError, match="prompt: found"):
        TextToImage(prompt)
    if prompt is not None:
        with pytest.raises(ConfigError, match="negative_prompt: found"):
            TextToImage("a", prompt)


@pytest.mark.parametrize(
    ("prompt", "negative", "key"), [(["a"], None, "prompt"), (["a"] * 3, None, "prompt"), ("a", ["x"], "negative_prompt")]
)  # fmt: skip
def test_a_list_of_another_length(sd, prompt, negative, key):
    with pytest.raises(ConfigError, match=rf"^{key}: found {len(negative or prompt)} .* for 2 seeds"):
        run(sd, TextToImage(prompt, negative), [1, 2])


@pytest.mark.parametrize("prompt", ['a, "b" = c', "ünï çødé 猫 🐱", "a\nb\tc", "  ", "'", "{a}", "a" * 500])
def test_any_text_is_a_prompt(sd, prompt):
    result = run(sd, TextToImage(prompt))
    assert result.prompts == [prompt]
    assert torch.isfinite(result.latents).all()


@pytest.mark.parametrize(("letters", "dropped"), [(13, None), (14, None), (15, 1), (60, 46)])
def test_what_is_too_long_is_recorded(sd, letters, dropped):
    """16 tokens, begin and end included: 14 letters fit."""
    prompt = " ".join("abcdefghijklmnopqrstuvwxyz"[i % 26] for i in range(letters))
    result = run(sd, TextToImage(prompt))
    if dropped is None:
        assert result.truncated == []
        assert result.warnings == []
        return
    (entry,) = result.truncated
    assert entry["prompt"] == prompt
    assert entry["dropped"].split() == prompt.split()[-dropped:]
    (warning,) = result.warnings
    assert "16 tokens" in warning
    kept = " ".join(prompt.split()[:14])
    assert torch.equal(result.latents, run(sd, TextToImage(kept)).latents), "cut at the end, the end token kept"


def test_each_long_prompt_is_recorded_once(sd):
    long, longer = "a " * 20, "b " * 30
    result = run(sd, TextToImage([long, "c", long, longer], "d " * 20), [1, 2, 3, 4], guidance=CFG(2.0))
    assert [entry["prompt"] for entry in result.truncated].count(long) == 1
    assert {entry["prompt"] for entry in result.truncated} == {long, longer, "d " * 20}


# --- sizes


def test_sizes(sd):
    result = run(sd, TextToImage("a", height=24, width=12))
    assert result.latents.shape == (1, 4, 12, 6)
    assert result.images[0].size == (12, 24)
    assert run(sd, TextToImage("a", height=np.int64(8))).latents.shape == (1, 4, 4, 8)


@pytest.mark.parametrize("size", [0, -8, 15, 7.5, 16.0, True, "16", float("nan")])
@pytest.mark.parametrize("key", ["height", "width"])
def test_sizes_that_are_none(sd, key, size):
    with pytest.raises(ConfigError, match=rf"task\.{key}: found .* multiple of 2"):
        run(sd, TextToImage("a", **{key: size}))


# --- labels


def test_one_label_or_one_an_image(class_model):
    same = run(class_model, Unconditional(3), [1, 2])
    assert torch.equal(same.latents, run(class_model, Unconditional([3, 3]), [1, 2]).latents)
    assert torch.equal(same.latents, run(class_model, Unconditional(np.int64(3)), [1, 2]).latents)
    assert torch.equal(same.latents, run(class_model, Unconditional(np.array([3, 3])), [1, 2]).latents)
    mixed = run(class_model, Unconditional([3, 0]), [1, 2])
    assert torch.equal(mixed.latents[0], same.latents[0])
    assert not torch.equal(mixed.latents[1], same.latents[1])
    assert same.prompts == []


@pytest.mark.parametrize("label", [-1, 5, 2.5, True, "cat", [1], [1, 2, 3], [1, None], [], {}])
def test_labels_that_are_none(class_model, label):
    with pytest.raises(ConfigError, match=r"task\.class_label: found .*from 0 to 4"):
        run(class_model, Unconditional(label), [1, 2])


def test_a_label_is_needed_or_not_wanted(class_model, pixel):
    with pytest.raises(ConfigError, match="needs one from 0 to 4"):
        run(class_model, Unconditional())
    with pytest.raises(ConfigError, match="has no classes"):
        run(pixel, Unconditional(1))


# --- the wrong model


def test_a_task_for_another_family(sd, pixel):
    with pytest.raises(ConfigError, match="TextToImage needs a model that takes text"):
        run(pixel, TextToImage("a"))
    with pytest.raises(ConfigError, match="unconditional is for models without a prompt"):
        run(sd, Unconditional())


def picture_tasks():
    grey = Image.new("RGB", (64, 64), (90, 120, 60))
    depth = torch.linspace(0, 1, 64 * 64).reshape(64, 64)
    return {
        "image_to_image": lambda: ImageToImage("a", grey, 0.5),
        "inpaint": lambda: Inpaint("a", grey, Image.new("L", (64, 64), 255)),
        "depth_to_image": lambda: DepthToImage("a", grey, depth, 0.5),
        "inversion": lambda: Inversion("a", grey),
    }


@pytest.mark.parametrize("name", picture_tasks())
def test_a_check_prepares_nothing(name, sd, sd_depth):
    task = picture_tasks()[name]()
    model = sd_depth if name == "depth_to_image" else sd
    before = dict(vars(task))
    task.check(model, 2)
    assert vars(task) == before


# an inversion shows noises of its batches, and its jobs are not gone on with
@pytest.mark.parametrize("name", sorted({*picture_tasks()} - {"inversion"}))
def test_what_a_task_shows_does_not_need_a_batch(name, sd, sd_depth):
    # a job that is gone on with after its last batch
    model = sd_depth if name == "depth_to_image" else sd
    sampler = LoopSampler(model, scheduler="ddim")
    result = sampler.sample(picture_tasks()[name](), seeds=[0, 1], steps=2)
    again = picture_tasks()[name]()
    again.prepare(model, 2, parity=False)
    found = sampler.pictures(again, result.images)
    assert found.keys() == result.pictures.keys()
    assert all(np.array_equal(np.asarray(found[key]), np.asarray(result.pictures[key])) for key in found)
