"""Arguments that are another thing than was meant: each is told with what to write instead, or taken where there is no doubt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from support.tiny_models import quiet

from research import LoopSampler, load_model
from research.errors import ConfigError, ModelError
from research.guidance import CFG
from research.hooks import NanGuard
from research.tasks import TextToImage


class Duck:
    """Has the methods of a guidance and is none."""

    scale = 3.0

    def branches(self, state):
        return []

    def combine(self, state, predictions):
        return None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "emoji"}, "model: found 'emoji'; accepted is a loaded model: load_model('emoji')."),
        ({"model": None}, "model: found None; accepted is a loaded model"),
        ({"model": LoopSampler}, "accepted is a loaded model"),
        (
            {"guidance": 7.5},
            "guidance: found 7.5; accepted is a guidance, for this scale of classifier-free guidance CFG(7.5).",
        ),
        ({"guidance": "cfg"}, "guidance: found 'cfg'; accepted is an object"),
        ({"guidance": CFG}, "accepted is an object, CFG(...), and not the class."),
        ({"guidance": Duck()}, "accepted is an object of a subclass of research.guidance.Guidance."),
        ({"hooks": NanGuard}, "hooks: found the class NanGuard; accepted are objects: NanGuard(...)."),
        ({"hooks": [NanGuard]}, "hooks: found the class NanGuard"),
        ({"hooks": ["nan_guard"]}, "hooks: found 'nan_guard'; accepted are objects"),
        ({"hooks": 3}, "hooks: found 3; accepted are objects"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_samplers_arguments(sd, given, words):
    with pytest.raises(ConfigError) as told:
        LoopSampler(**{"model": sd, **given})
    assert words in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("pizza", "task: found 'pizza'; accepted is a task: TextToImage('pizza')."),
        (["pizza", "fox"], "TextToImage(['pizza', 'fox'])"),
        (TextToImage, "task: found the class TextToImage; accepted is an object: TextToImage(...)."),
        (None, "task: found None, which has no check"),
    ],
)
def test_a_task(sd, task, words):
    with pytest.raises(ConfigError) as told:
        LoopSampler(sd).sample(task, seeds=[0], steps=1)
    assert words in str(told.value)


@pytest.mark.parametrize("seeds", [True, 1.5, "0", -1, [True], [0.5], []])
def test_seeds_that_are_none(sd, seeds):
    with pytest.raises(ConfigError, match="seeds"):
        LoopSampler(sd).sample(TextToImage("a"), seeds=seeds, steps=1)


def test_one_seed_and_one_hook_need_no_brackets(sd):
    listed = LoopSampler(sd, hooks=[NanGuard()]).sample(TextToImage("a"), seeds=[3], steps=2)
    for seed in (3, np.int64(3)):
        bare = LoopSampler(sd, hooks=NanGuard()).sample(TextToImage("a"), seeds=seed, steps=2)
        assert torch.equal(bare.latents, listed.latents)


def test_a_pipeline_is_a_model(sd, sd_directory):
    pipeline = quiet(StableDiffusionPipeline.from_pretrained(sd_directory))
    with pytest.raises(ConfigError, match=r"found StableDiffusionPipeline; accepted is .* load_model\(pipeline\)"):
        LoopSampler(pipeline)
    model = load_model(pipeline, dtype="float32", device="cpu")
    mine, theirs = (
        LoopSampler(m, guidance=CFG(2.0)).sample(TextToImage("a"), seeds=[0], steps=2).latents for m in (model, sd)
    )
    assert torch.equal(mine, theirs)
    with torch.no_grad():  # a copy: what is done to the pipeline later changes nothing
        next(pipeline.unet.parameters()).zero_()
    assert torch.equal(
        LoopSampler(model, guidance=CFG(2.0)).sample(TextToImage("a"), seeds=[0], steps=2).latents, theirs
    )


@pytest.mark.parametrize("path", [7, None, object(), ["emoji"]])
def test_what_is_no_model(path):
    with pytest.raises((ConfigError, ModelError), match=r"model\.path: found .*; accepted are"):
        load_model(path)
