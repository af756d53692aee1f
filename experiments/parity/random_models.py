"""Genuine diffusers directories with random weights: what a parity check needs, and nothing to download."""

from __future__ import annotations

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

LATENT = 4  # channels; the inpainting pipeline takes no other number
FACTOR = 4  # of the VAE
SIDE = 24  # pixels, of a picture whose size is not said
EXTRA = {"text": 0, "inpaint": LATENT + 1, "depth": 1}  # input channels besides the latents
PREDICTIONS = ("epsilon", "v_prediction")


def save_text(folder: Path, *, role: str, prediction: str, seed: int) -> Path:
    """A directory of Stable Diffusion's layout: ``role`` "text" (4 input channels), "inpaint" (9) or "depth" (5)."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIDE // FACTOR,
        in_channels=LATENT + EXTRA[role],
        out_channels=LATENT,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=LATENT,
        norm_num_groups=4,
        scaling_factor=0.23,
    )
    tokenizer, text_encoder = _text()
    parts: dict[str, Any] = {
        "unet": unet,
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction,
        ),
    }
    if role == "depth":
        StableDiffusionDepth2ImgPipeline(**parts, **_depth()).save_pretrained(folder)
        return folder
    pipeline = StableDiffusionInpaintPipeline if role == "inpaint" else StableDiffusionPipeline
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline(**parts, **unchecked).save_pretrained(folder)
    return folder


def save_pixel(folder: Path, *, prediction: str, seed: int) -> Path:
    """A `DDPMPipeline` directory of 8 x 12 pixels."""
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=(8, 12),
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler(prediction_type=prediction)).save_pretrained(folder)
    return folder


def _text() -> tuple[CLIPTokenizer, CLIPTextModel]:
    """A tokenizer in which each letter is a token, and an encoder of some thousand weights."""
    words = [*string.ascii_lowercase, *(c + "</w>" for c in string.ascii_lowercase)]
    ids = {token: place for place, token in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    config = CLIPTextConfig(
        vocab_size=len(ids),
        hidden_size=24,
        intermediate_size=20,
        num_attention_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=16,
        bos_token_id=ids["<|startoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
    )
    return CLIPTokenizer(vocab=ids, merges=[], model_max_length=16), CLIPTextModel(config)


def _depth() -> dict[str, Any]:
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
