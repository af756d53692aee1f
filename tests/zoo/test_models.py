"""The embedded models as strangers use them: opened by plain diffusers and transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DPMSolverMultistepScheduler, StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from research.hashing import sha256_files
from research.metrics.clip import load_clip
from research.metrics.features import load_features
from research.zoo import ZOO_DIR, zoo_names, zoo_path
from research.zoo.data import BACKGROUNDS
from research.zoo.unet import sample_prompts


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(ZOO_DIR / "emoji")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def test_names_and_paths() -> None:
    assert zoo_names() == ["emoji", "emoji-pixel"]
    assert zoo_path("emoji-eval") == ZOO_DIR / "emoji-eval"
    assert zoo_path("references") is None
    assert zoo_path("../zoo/emoji") is None


def test_weights_fit_into_the_repository() -> None:
    assert sum(file.stat().st_size for file in ZOO_DIR.rglob("*.safetensors")) < 40e6


def test_half_precision_files_load_as_float32(pipeline: StableDiffusionPipeline) -> None:
    for name in ("unet", "vae", "text_encoder"):
        assert {p.dtype for p in getattr(pipeline, name).parameters()} == {torch.float32}, name
    assert CLIPModel.from_pretrained(ZOO_DIR / "emoji-eval").dtype == torch.float32


def test_pictures_show_what_the_prompt_says(pipeline: StableDiffusionPipeline) -> None:
    """Eight prompts, two seeds: the evaluation model finds the caption among eight, and the corners have the colour named."""
    prompts = [prompt for prompt in sample_prompts() for _ in range(2)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    images = pipeline(
        prompts, generator=generators, num_inference_steps=20, guidance_scale=3.0, output_type="np"
    ).images
    clip = load_clip("emoji-eval")
    pixels = torch.from_numpy((images * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)
    found = torch.nn.functional.normalize(clip.embed_images(pixels), dim=1)
    texts = torch.nn.functional.normalize(clip.embed_texts(sample_prompts()), dim=1)
    right = (found @ texts.T).argmax(1) == torch.arange(len(prompts)) // 2
    assert right.float().mean() >= 0.9
    for image, prompt in zip(images, prompts, strict=True):
        colour = np.array(BACKGROUNDS[prompt.split()[-2]]) / 255
        corners = np.stack([image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]])
        assert np.median(np.abs(corners - colour).max(axis=1)) < 0.25, prompt


@pytest.mark.parametrize("pipeline_class", [DDPMPipeline, DDIMPipeline])
def test_pixel_model(pipeline_class: type) -> None:
    pixel = pipeline_class.from_pretrained(ZOO_DIR / "emoji-pixel")
    pixel.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    images = pixel(batch_size=2, generator=generator, num_inference_steps=25, output_type="np").images
    assert images.shape == (2, 32, 32, 3)
    assert images.std() > 0.1


def test_tokenizer_keeps_the_end_of_long_prompts() -> None:
    for folder in (ZOO_DIR / "emoji" / "tokenizer", ZOO_DIR / "emoji-eval"):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        ids = tokenizer("pizza " * 60, truncation=True, max_length=tokenizer.model_max_length).input_ids
        assert len(ids) == tokenizer.model_max_length == 16
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokenizer("naïve 🍕 «zxq»").input_ids, skip_special_tokens=True) != ""


def test_reference_statistics_are_of_the_evaluation_model() -> None:
    stem = ZOO_DIR / "references" / "emoji"
    sidecar = json.loads(stem.with_suffix(".json").read_text())
    assert sidecar["sha256"] == sha256_files([stem.with_suffix(".safetensors")])
    assert sidecar["features"]["weights_sha256"] == load_features("emoji-eval").provenance["weights_sha256"]
    assert sidecar["num_samples"] > 1000
    assert not Path(sidecar["data"]["command"]).is_absolute()
