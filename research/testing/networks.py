"""Small networks with random weights, built in memory within a second, of each kind of prediction: what plugs are tried on.

Their pictures mean nothing. What counts is that they are of the classes that checkpoints are loaded as.
"""

from __future__ import annotations

import string
from functools import lru_cache
from typing import Any

import torch

from research.models.unet_pixel import UnetPixelModel
from research.models.unet_text import UnetTextModel
from research.sampling.prediction import Kind
from research.testing.gaussian import SCHEDULE, TYPES

PIXELS = 16  # on a side; latents are [4, 8, 8]
MOST_TOKENS = 77
CLASSES = 4


@lru_cache(maxsize=16)
def tiny_text_model(prediction: Kind = "epsilon", dtype: torch.dtype = torch.float32) -> UnetTextModel:
    """A model of Stable Diffusion's layout for pictures of 16 x 16 pixels, latents [4, 8, 8]; every letter is a token.

    It is made once for each kind and dtype, and the same each time; torch's global random numbers are left as they are.

    Args:
        prediction: what it predicts: "epsilon", "v", "x0" or "flow" (a flow-matching model).
        dtype: of its weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = _parts()
    for name in ("unet", "vae", "text_encoder"):
        torch.nn.Module.to(parts[name], dtype).eval()  # diffusers' own would say that nothing needs float32
    return UnetTextModel(
        path=f"tiny-{prediction}",
        weights_sha256=f"tiny-{prediction}",
        scheduler_config=_schedule_of(prediction),
        **parts,
    )


@lru_cache(maxsize=16)
def tiny_pixel_model(prediction: Kind = "epsilon", dtype: torch.dtype = torch.float32) -> UnetPixelModel:
    """A class-conditional model on pixels of `CLASSES` classes, pictures of 16 x 16; as `tiny_text_model` else."""
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=PIXELS,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            norm_num_groups=4,
            num_class_embeds=CLASSES,
        )
    network: Any = unet
    torch.nn.Module.to(network, dtype).eval()
    return UnetPixelModel(
        unet=unet,
        path=f"tiny-pixel-{prediction}",
        weights_sha256=f"tiny-pixel-{prediction}",
        scheduler_config=_schedule_of(prediction),
    )


def _schedule_of(prediction: Kind) -> dict[str, Any]:
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    start = flow if prediction == "flow" else {**SCHEDULE, "prediction_type": TYPES[prediction]}
    return {"num_train_timesteps": 1000, **start}


def _parts() -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vocabulary = [*string.ascii_lowercase, *(c + "</w>" for c in string.ascii_lowercase)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: place for place, token in enumerate(vocabulary)}
    end = ids["<|endoftext|>"]
    return {
        "unet": UNet2DConditionModel(
            sample_size=PIXELS // 2,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(ids),
                hidden_size=16,
                intermediate_size=20,
                num_attention_heads=2,
                num_hidden_layers=2,
                max_position_embeddings=MOST_TOKENS,
                bos_token_id=ids["<|startoftext|>"],
                eos_token_id=end,
                pad_token_id=end,
            )
        ),
        "tokenizer": CLIPTokenizer(vocab=ids, merges=[], model_max_length=MOST_TOKENS),
    }
