"""The embedded models as strangers use them: opened by plain diffusers and transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDPMPipeline,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from research.clip import load_clip
from research.hashing import sha256_files
from research.metrics.extractors.load import load_features
from research.zoo import ZOO_DIR, picture_path, zoo_names, zoo_path
from tools.zoo.data import BACKGROUNDS
from tools.zoo.unet import sample_prompts


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(ZOO_DIR / "emoji")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def test_names_and_paths() -> None:
    assert zoo_names() == ["emoji", "emoji-depth", "emoji-flow", "emoji-inpaint", "emoji-pixel"]
    assert zoo_path("emoji-eval") == ZOO_DIR / "emoji-eval"
    assert zoo_path("references") is None
    assert zoo_path("../zoo/emoji") is None


def test_weights_fit_into_the_repository() -> None:
    files = [file for file in ZOO_DIR.rglob("*.safetensors") if not file.is_symlink()]
    assert sum(file.stat().st_size for file in files) < 60_000_000


@pytest.mark.parametrize("name", zoo_names())
def test_directories_are_complete(name: str) -> None:
    """Every component of the index has its files, and what is borrowed from another model is a link that stays inside."""
    directory = ZOO_DIR / name
    index = json.loads((directory / "model_index.json").read_text())
    for component, kind in index.items():
        if isinstance(kind, list) and kind[0] is not None:
            assert any(file.is_file() for file in (directory / component).iterdir()), component
    for file in directory.rglob("*"):
        assert file.exists(), f"{file} leads nowhere"
        assert file.resolve().is_relative_to(ZOO_DIR)
        # folders would be left out of wheels
        assert not (file.is_symlink() and file.is_dir()), file
    # a directory without T5 is opened so: null in the index alone is refused
    missing: Any = {"text_encoder_3": None, "tokenizer_3": None} if "text_encoder_3" in index else {}
    pipeline: Any = DiffusionPipeline.from_pretrained(directory, **missing)
    assert type(pipeline).__name__ == index["_class_name"]
    channels = {"emoji": 4, "emoji-flow": 4, "emoji-inpaint": 9, "emoji-depth": 5, "emoji-pixel": 3}
    network = pipeline.transformer if "transformer" in index else pipeline.unet
    assert network.config.in_channels == channels[name]


def test_half_precision_files_load_as_float32(pipeline: StableDiffusionPipeline) -> None:
    for name in ("unet", "vae", "text_encoder"):
        assert {p.dtype for p in getattr(pipeline, name).parameters()} == {torch.float32}, name
    assert CLIPModel.from_pretrained(ZOO_DIR / "emoji-eval").dtype == torch.float32


@pytest.mark.slow
def test_pictures_show_what_the_prompt_says(pipeline: StableDiffusionPipeline) -> None:
    _show_what_the_prompt_says(pipeline)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [16, 256])
def test_pictures_of_the_flow_model_show_what_the_prompt_says(rows: int) -> None:
    """With as many rows of zeros in place of T5's as it was made for, and with the pipeline's default."""
    flow = StableDiffusion3Pipeline.from_pretrained(ZOO_DIR / "emoji-flow", text_encoder_3=None, tokenizer_3=None)
    flow.set_progress_bar_config(disable=True)
    assert {p.dtype for part in (flow.transformer, flow.text_encoder) for p in part.parameters()} == {torch.float32}
    _show_what_the_prompt_says(flow, max_sequence_length=rows)


def _show_what_the_prompt_says(pipeline: Any, **told: int) -> None:
    """Eight prompts, two seeds: the evaluation model finds the caption among eight, and the corners have the colour named."""
    prompts = [prompt for prompt in sample_prompts() for _ in range(2)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    images = pipeline(
        prompts, generator=generators, num_inference_steps=20, guidance_scale=3.0, output_type="np", **told
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


@pytest.mark.slow
def test_holes_are_filled_and_the_rest_is_kept() -> None:
    """The right half of a face and of a strawberry come back, in place; what is kept stays within what the VAE can show."""
    inpaint = StableDiffusionInpaintPipeline.from_pretrained(ZOO_DIR / "emoji-inpaint")
    inpaint.set_progress_bar_config(disable=True)
    inpaint.scheduler = DPMSolverMultistepScheduler.from_config(inpaint.scheduler.config)
    names = {"smiling_face": "smiling face on a purple background", "strawberry": "strawberry on a white background"}
    given = torch.stack([_pixels(name) for name in names])
    mask = _pixels("mask_half")[:1].expand(2, -1, -1, -1)
    images = inpaint(
        list(names.values()),
        image=given,
        mask_image=mask,
        height=32,
        width=32,
        generator=[torch.Generator().manual_seed(seed) for seed in range(2)],
        num_inference_steps=15,
        guidance_scale=2.0,
        output_type="pt",
    ).images
    error = (torch.as_tensor(images) - given).square().mean(dim=1, keepdim=True)
    kept, painted = error[mask < 0.5].mean(), error[mask >= 0.5].mean()
    assert kept < 0.01  # 20 dB
    # half a thing tells the other half: far nearer to the truth than the plain background is
    assert painted < 0.03
    emptied = (given.flip(-1)[..., :1, :1] - given).square().mean(dim=1, keepdim=True)
    assert painted < emptied[mask >= 0.5].mean() / 5


def test_a_relief_gives_its_shape_to_another_thing() -> None:
    """With the directory's own estimator: its relief of a cat is the true one, and a panda on yellow fills just that shape."""
    depth = StableDiffusionDepth2ImgPipeline.from_pretrained(ZOO_DIR / "emoji-depth")
    depth.set_progress_bar_config(disable=True)
    depth.scheduler = DPMSolverMultistepScheduler.from_config(depth.scheduler.config)
    assert {p.dtype for p in depth.depth_estimator.parameters()} == {torch.float32}
    path = picture_path("cat")
    assert path is not None
    relief = _pixels("depth_cat")[0]
    with Image.open(path) as cat:
        inputs = depth.feature_extractor(images=[cat.convert("RGB")], return_tensors="pt").pixel_values
        with torch.no_grad():
            found = depth.depth_estimator(inputs).predicted_depth
        found = torch.nn.functional.adaptive_avg_pool2d(found, 32)[0]
        assert (found - relief).abs().mean() < 0.1
        image = depth(
            "panda face on a yellow background",
            image=cat.convert("RGB"),
            strength=1.0,
            generator=torch.Generator().manual_seed(1),
            num_inference_steps=15,
            guidance_scale=3.0,
            output_type="np",
        ).images[0]
    yellow = np.abs(image - np.array(BACKGROUNDS["yellow"]) / 255).max(axis=2) < 0.25
    thing = relief >= 0.5
    near = torch.nn.functional.max_pool2d(thing[None].float(), 5, 1, 2)[0] > 0  # edges are soft
    assert yellow[~near.numpy()].mean() > 0.85
    assert yellow[thing.numpy()].mean() < 0.2


def _pixels(name: str) -> torch.Tensor:
    path = picture_path(name)
    assert path is not None
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)


@pytest.mark.parametrize("pipeline_class", [DDPMPipeline, DDIMPipeline])
@pytest.mark.spread(1)
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


@pytest.mark.parametrize("name", ["emoji", "emoji-faces"])
def test_reference_statistics_are_of_the_evaluation_model(name: str) -> None:
    stem = ZOO_DIR / "references" / name
    sidecar = json.loads(stem.with_suffix(".json").read_text())
    assert sidecar["sha256"] == sha256_files([stem.with_suffix(".safetensors")])
    assert sidecar["features"]["weights_sha256"] == load_features("emoji-eval").provenance["weights_sha256"]
    assert sidecar["num_samples"] > 1000
    assert not Path(sidecar["data"]["command"]).is_absolute()
