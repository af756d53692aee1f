"""A Stable-Diffusion-1.x-shaped pipeline with random weights and small widths, and its weights under their original names.

The names are those of the CompVis code (``v1-inference.yaml``): the inverse of what a converter has to do, written down apart
from it.
"""

from __future__ import annotations

import re
import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from support.tiny_models import text_scheduler
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTHS = (32, 64, 128, 128)  # 1, 2, 4, 4 times the model's channels, as in 1.x
HIDDEN = 64
YAML = """
model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    timesteps: 1000
    scale_factor: 0.18215
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: {channels}
        out_channels: 4
        model_channels: 32
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 2
        channel_mult: [1, 2, 4, 4]
        num_heads: 8
        use_spatial_transformer: True
        transformer_depth: 1
        context_dim: 64
        legacy: False
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 256
          in_channels: 3
          out_ch: 3
          ch: 32
          ch_mult: [1, 2, 4, 4]
          num_res_blocks: 2
          attn_resolutions: []
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
"""


def sd1_shaped(seed: int = 0, channels: int = 4) -> StableDiffusionPipeline:
    """Four levels, two layers a block, attention in three, 8 heads, GroupNorm of 32, a CLIP text encoder."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=channels,
        block_out_channels=WIDTHS,
        cross_attention_dim=HIDDEN,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        sample_size=512,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    )
    vocabulary = [*string.ascii_lowercase, *(c + "</w>" for c in string.ascii_lowercase)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: place for place, token in enumerate(vocabulary)}
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(ids),
            hidden_size=HIDDEN,
            intermediate_size=96,
            num_attention_heads=1,
            num_hidden_layers=3,
            max_position_embeddings=16,
            projection_dim=HIDDEN,
            bos_token_id=len(ids) - 2,
            eos_token_id=len(ids) - 1,
            pad_token_id=len(ids) - 1,
        )
    )
    return StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer(vocab=ids, merges=[], model_max_length=16),
        scheduler=text_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def original_names(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """Every weight of a pipeline as the original checkpoint names it, with the odds and ends that such files hold besides."""
    named = {f"model.diffusion_model.{_unet(k)}": v for k, v in pipe.unet.state_dict().items()}
    for key, value in pipe.vae.state_dict().items():
        new = f"first_stage_model.{_vae(key)}"
        # attention was a convolution of one pixel there
        is_conv = re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", new)
        named[new] = value[:, :, None, None] if is_conv else value
    for key, value in pipe.text_encoder.state_dict().items():
        named[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    named["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    named["alphas_cumprod"] = torch.rand(1000)
    named["model_ema.decay"] = torch.tensor(0.9999)
    return {key: value.contiguous() for key, value in named.items()}


def config_only(pipe: StableDiffusionPipeline, folder: Path) -> Path:
    """The pipeline's directory without a weight."""
    pipe.save_pretrained(folder)
    for file in folder.glob("*/*.safetensors"):
        file.unlink()
    return folder


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _unet(key: str) -> str:
    for new, old in _OUTER.items():
        if key.startswith(f"{new}."):
            return key.replace(new, old, 1)
    match = re.match(r"(down_blocks|up_blocks)\.(\d)\.(\w+)\.(\d)\.(.*)", key)
    if match is None:
        part, place, rest = re.match(r"mid_block\.(\w+)\.(\d)\.(.*)", key).groups()
        if part == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * int(place)}.{_resnet(rest)}"
    side, block, part, layer, rest = match.groups()
    if side == "down_blocks":
        at = 1 + 3 * int(block) + int(layer)
        if part == "downsamplers":
            return f"input_blocks.{1 + 3 * int(block) + 2}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{at}.1.{rest}" if part == "attentions" else f"input_blocks.{at}.0.{_resnet(rest)}"
    at = 3 * int(block) + int(layer)
    if part == "upsamplers":
        return f"output_blocks.{3 * int(block) + 2}.{2 if block != '0' else 1}.{rest}"
    return f"output_blocks.{at}.1.{rest}" if part == "attentions" else f"output_blocks.{at}.0.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    name, _, ending = rest.partition(".")
    return f"{_RESNET[name]}.{ending}"


def _vae(key: str) -> str:
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.conv", r"down.\1.downsample.conv", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.conv", lambda m: f"up.{3 - int(m[1])}.upsample.conv", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
    key = re.sub(r"attn_1\.to_(q|k|v)", r"attn_1.\1", key).replace("to_out.0", "proj_out")
    return key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
