"""Genuine diffusers directories with random weights, small enough to sample in a blink."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
)

MAX_TOKENS = 16  # begin and end included; every letter is a token


def text_scheduler(prediction_type: str = "epsilon", **changes: Any) -> DDIMScheduler:
    """The schedule of Stable Diffusion 1.x."""
    config: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }
    return DDIMScheduler(**{**config, **changes})


def save_tiny_sd(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    seed: int = 0,
    odd_shape: bool = False,
    role: str = "text",
    max_tokens: int = MAX_TOKENS,
) -> Path:
    """A Stable Diffusion directory of 16 x 16 pixels; ``role`` is "text", "inpaint" (9 channels) or "depth" (5 channels, with
    an estimator). A prompt may have ``max_tokens``, its begin and end included.

    With ``odd_shape`` it differs in what a careless loop would take for granted: three latent channels, a VAE factor of
    4, a scaling factor, a sample size that is no square, other attention heads, and a text encoder that takes a mask.
    """
    torch.manual_seed(seed)
    channels = 3 if odd_shape else 4
    unet = UNet2DConditionModel(
        sample_size=(6, 10) if odd_shape else 8,
        in_channels=channels + {"text": 0, "inpaint": channels + 1, "depth": 1}[role],
        out_channels=channels,
        block_out_channels=(8, 8, 16) if odd_shape else (8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * (2 if odd_shape else 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (2 if odd_shape else 1),
        cross_attention_dim=24 if odd_shape else 16,
        attention_head_dim=(2, 2, 4) if odd_shape else 4,
        norm_num_groups=4,
    )
    depth = 3 if odd_shape else 2
    vae = AutoencoderKL(
        block_out_channels=(8,) * depth,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        latent_channels=channels,
        norm_num_groups=4,
        **({"scaling_factor": 0.31} if odd_shape else {}),
    )
    vocabulary = [*string.ascii_lowercase, *(c + "</w>" for c in string.ascii_lowercase)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: place for place, token in enumerate(vocabulary)}
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(ids),
            hidden_size=24 if odd_shape else 16,
            intermediate_size=20,
            num_attention_heads=2,
            num_hidden_layers=2,
            max_position_embeddings=max_tokens,
            bos_token_id=ids["<|startoftext|>"],
            eos_token_id=ids["<|endoftext|>"],
            pad_token_id=ids["<|endoftext|>"],
            **({"use_attention_mask": True} if odd_shape else {}),
        )
    )
    parts = {
        "unet": unet,
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": CLIPTokenizer(vocab=ids, merges=[], model_max_length=max_tokens),
        "scheduler": text_scheduler(prediction_type),
    }
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if role == "depth":
        StableDiffusionDepth2ImgPipeline(**parts, **tiny_depth_estimator()).save_pretrained(folder)
    else:
        pipeline = StableDiffusionInpaintPipeline if role == "inpaint" else StableDiffusionPipeline
        pipeline(**parts, **unchecked).save_pretrained(folder)
    return folder


def tiny_depth_estimator() -> dict[str, Any]:
    """A DPT of some thousand weights for 16 x 16 pixels, and its image processor."""
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5],
    )
    processor = DPTImageProcessor(size={"height": 16, "width": 16}, keep_aspect_ratio=False)
    return {"depth_estimator": DPTForDepthEstimation(config), "feature_extractor": processor}


def save_tiny_pixel(folder: Path, *, seed: int = 0, classes: int | None = None, channels: int = 3) -> Path:
    """A `DDPMPipeline` directory of 8 x 8 pixels, class-conditional if ``classes`` is given."""
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        num_class_embeds=classes,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(folder)
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None removes one."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def quiet(pipe: Any) -> Any:
    """A pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe
