"""Small genuine diffusers directories of the families beyond Stable Diffusion 1 and 2, with random weights: a builder a family.

Seconds to build and to run: for tests of what works with a pipeline's directory. Their pictures are noise.
"""

from __future__ import annotations

import importlib
import math
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers, processors

diffusers: Any = importlib.import_module("diffusers")  # whose classes say less of their attributes than they have
transformers: Any = importlib.import_module("transformers")

# every letter is a token, so that sentences of some words fit
CLIP_TOKENS = 24
_LDM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


# --- parts


def lively(module: torch.nn.Module, seed: int) -> Any:
    """Every parameter drawn anew and none zero: fresh networks have zero gates, behind which conditions are dead."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            draw = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2:
                weight.copy_(draw / math.sqrt(math.prod(weight.shape[1:])))
            else:
                weight.copy_(0.1 * draw + (1.0 if name.endswith("weight") else 0.0))
    return module.eval()


def clip_tokenizer(pad: str | None = None, length: int = CLIP_TOKENS) -> Any:
    """Letters and "!"; the second tokenizer of some families is padded with this."""
    signs = [*string.ascii_lowercase, "!"]
    vocabulary = [*signs, *(sign + "</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    ids = {token: place for place, token in enumerate(vocabulary)}
    tokenizer = transformers.CLIPTokenizer(vocab=ids, merges=[], model_max_length=length)
    if pad:
        tokenizer.pad_token = pad
    return tokenizer


def clip_text(tokenizer: Any, seed: int, *, hidden: int = 16, projection: int | None = None) -> Any:
    """A CLIP text encoder; with ``projection`` one that projects its pooled state."""
    config = transformers.CLIPTextConfig(
        hidden_size=hidden,
        intermediate_size=20,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=projection or hidden,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return lively(cls(config), seed)


def kl_vae(seed: int, *, channels: int = 4, levels: int = 2, **config: Any) -> Any:
    """A VAE of factor ``2 ** (levels - 1)``."""
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        norm_num_groups=4,
        **config,
    )
    return lively(vae, seed)


def text_unet(seed: int, **config: Any) -> Any:
    """A UNet that takes texts, of 8 x 8 latents."""
    usual: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return lively(diffusers.UNet2DConditionModel(**{**usual, **config}), seed)


# --- families


def save_sdxl(folder: Path, *, refiner: bool = False, channels: int = 4, distilled: bool = False, **vae: Any) -> Path:
    """Stable Diffusion XL of 16 x 16 pixels.

    Args:
        refiner: without its first text encoder, told a score of looks.
        channels: 9 for a UNet of inpainting.
        distilled: its UNet embeds the guidance scale.
        vae: entries of its VAE's config.
    """
    one, two = clip_tokenizer(), clip_tokenizer(pad="!")
    numbers, pooled = (5 if refiner else 6), 12
    unet = text_unet(
        1,
        in_channels=channels,
        cross_attention_dim=20 if refiner else 36,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=4 * numbers + pooled,
        time_cond_proj_dim=10 if distilled else None,
    )
    parts = {
        "unet": unet,
        "vae": kl_vae(2, scaling_factor=0.13025, **vae),
        "text_encoder": None if refiner else clip_text(one, 3, hidden=16),
        "tokenizer": None if refiner else one,
        "text_encoder_2": clip_text(two, 4, hidden=20, projection=pooled),
        "tokenizer_2": two,
        "scheduler": diffusers.LCMScheduler(**_LDM)
        if distilled
        else diffusers.EulerDiscreteScheduler(**_LDM, timestep_spacing="leading", steps_offset=1),
        "force_zeros_for_empty_prompt": not refiner,
    }
    if refiner:
        diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True).save_pretrained(folder)
    else:
        cls = diffusers.StableDiffusionXLInpaintPipeline if channels == 9 else diffusers.StableDiffusionXLPipeline
        cls(**parts, add_watermarker=False).save_pretrained(folder)
    return folder


def save_lcm(folder: Path) -> Path:
    """A latent consistency model of Stable Diffusion 1.x, of 16 x 16 pixels: its UNet embeds the guidance scale."""
    tokenizer = clip_tokenizer()
    diffusers.LatentConsistencyModelPipeline(
        unet=text_unet(1, cross_attention_dim=16, time_cond_proj_dim=10),
        vae=kl_vae(2),
        text_encoder=clip_text(tokenizer, 3),
        tokenizer=tokenizer,
        scheduler=diffusers.LCMScheduler(**_LDM, steps_offset=0, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def t5_tokenizer(length: int = CLIP_TOKENS) -> Any:
    """Letters, with an end of text behind them."""
    vocab = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        *((c, -3.0) for c in string.ascii_lowercase),
    ]
    return transformers.T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=length)


def t5_text(tokenizer: Any, seed: int, *, hidden: int = 32) -> Any:
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=hidden,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8,
    )
    return lively(transformers.T5EncoderModel(config), seed)


def save_sd3(folder: Path, *, t5: bool = True, medium: bool = False, **scheduler: Any) -> Path:
    """Stable Diffusion 3, or with ``medium`` the layers of 3.5 medium: normalised queries, blocks with attention twice."""
    first, second = clip_tokenizer(), clip_tokenizer(pad="!")
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        dual_attention_layers=(0, 1) if medium else (),
        qk_norm="rms_norm" if medium else None,
    )
    third = t5_tokenizer() if t5 else None
    diffusers.StableDiffusion3Pipeline(
        transformer=lively(transformer, 21),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=kl_vae(
            22, channels=16, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip_text(first, 23, projection=16),
        tokenizer=first,
        text_encoder_2=clip_text(second, 24, projection=16),
        tokenizer_2=second,
        text_encoder_3=None if third is None else t5_text(third, 25),
        tokenizer_3=third,
    ).save_pretrained(folder)
    return folder


def save_flux(folder: Path, *, schnell: bool = False) -> Path:
    """FLUX.1 dev (a guidance scale embedded, levels shifted by the picture's size) or schnell (neither); a latent is 2 pixels."""
    one, two = clip_tokenizer(), t5_tokenizer(512)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=not schnell,
        axes_dims_rope=(2, 2, 4),
    )
    levels = {"shift": 1.0} if schnell else {"shift": 3.0, "use_dynamic_shifting": True}
    diffusers.FluxPipeline(
        transformer=lively(transformer, 1),
        vae=kl_vae(2, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip_text(one, 3),
        tokenizer=one,
        text_encoder_2=t5_text(two, 4, hidden=16),
        tokenizer_2=two,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**levels),
    ).save_pretrained(folder)
    return folder


def save_chroma(folder: Path) -> Path:
    """Chroma; a latent is 2 pixels."""
    tokenizer = t5_tokenizer(512)
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
        approximator_hidden_dim=16,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    diffusers.ChromaPipeline(
        transformer=lively(transformer, 1),
        vae=kl_vae(2, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=t5_text(tokenizer, 3, hidden=16),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, use_beta_sigmas=True),
    ).save_pretrained(folder)
    return folder


def save_qwen_image(folder: Path) -> Path:
    """Qwen-Image; a latent is 2 pixels, and a byte of text is a token."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: place for place, sign in enumerate([*signs, "<|endoftext|>"])}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=4096)
    size = len(tokenizer) + 8
    text = transformers.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": size,
            "max_position_embeddings": 4096,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        },
        vision_config={"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 16},
        **{f"{name}_token_id": size - place for place, name in enumerate(("vision", "video", "image"), start=1)},
        vision_start_token_id=size - 5,
        vision_end_token_id=size - 4,
        hidden_size=16,
    )
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[-0.75, -0.7, -0.9, 0.1],
        latents_std=[2.8, 1.4, 2.3, 2.6],
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02, use_dynamic_shifting=True
    )
    diffusers.QwenImagePipeline(
        transformer=lively(transformer, 1),
        vae=lively(vae, 2),
        text_encoder=lively(transformers.Qwen2_5_VLForConditionalGeneration(text), 3),
        tokenizer=tokenizer,
        scheduler=scheduler,
    ).save_pretrained(folder)
    return folder


def save_dit(folder: Path, *, classes: int = 1000) -> Path:
    """DiT with learned sigmas; a latent is 2 pixels."""
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2, in_channels=4, out_channels=8,
        num_embeds_ada_norm=classes,
    )  # fmt: skip
    diffusers.DiTPipeline(
        transformer=lively(transformer, 1), vae=kl_vae(2), scheduler=diffusers.DDIMScheduler(clip_sample=False)
    ).save_pretrained(folder)
    return folder


def save_pixart(folder: Path, *, alpha: bool = False) -> Path:
    """PixArt-sigma, or alpha that is told sizes; a latent is 2 pixels."""
    tokenizer = t5_tokenizer(512)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=128 if alpha else 8, num_layers=2, attention_head_dim=8, num_attention_heads=3, caption_channels=16,
        cross_attention_dim=24, out_channels=8, interpolation_scale=1, use_additional_conditions=alpha,
    )  # fmt: skip
    cls = diffusers.PixArtAlphaPipeline if alpha else diffusers.PixArtSigmaPipeline
    cls(
        transformer=lively(transformer, 1),
        vae=kl_vae(2, scaling_factor=0.13025),
        text_encoder=t5_text(tokenizer, 3, hidden=16),
        tokenizer=tokenizer,
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    ).save_pretrained(folder)
    return folder


def save_auraflow(folder: Path) -> Path:
    """AuraFlow; a latent is 2 pixels."""
    tokenizer = t5_tokenizer(512)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pos_embed_max_size=256,
    )  # fmt: skip
    text = transformers.UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    diffusers.AuraFlowPipeline(
        transformer=lively(transformer, 1),
        vae=kl_vae(2, scaling_factor=0.13025),
        text_encoder=lively(transformers.UMT5EncoderModel(text), 3),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    ).save_pretrained(folder)
    return folder


def gemma_tokenizer() -> Any:
    """Letters and other signs, with a begin of text before them."""
    tokens = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        *(f"<0x{b:02X}>" for b in range(256)),
        *map(chr, range(33, 127)),
        "\u2581",
    ]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=4096)
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    return tokenizer


def gemma_text(tokenizer: Any, seed: int) -> Any:
    config = transformers.Gemma2Config(
        head_dim=8, hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=2, num_key_value_heads=1,
        vocab_size=len(tokenizer), max_position_embeddings=4096, attn_implementation="eager", query_pre_attn_scalar=8,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return lively(transformers.Gemma2Model(config), seed)


def save_lumina2(folder: Path, **scheduler: Any) -> Path:
    """Lumina-Image 2.0; a latent is 8 pixels, a number that its pipeline takes for granted."""
    tokenizer = gemma_tokenizer()
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1, num_attention_heads=1,
        num_kv_heads=1, multiple_of=16, axes_dim_rope=(8, 8, 8), axes_lens=(300, 64, 64), cap_feat_dim=16,
    )  # fmt: skip
    diffusers.Lumina2Pipeline(
        transformer=lively(transformer, 1),
        vae=kl_vae(2, levels=4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=gemma_text(tokenizer, 3),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **scheduler}),
    ).save_pretrained(folder)
    return folder


def save_sana(folder: Path, *, sprint: bool = False) -> Path:
    """Sana, or Sana-Sprint, which embeds a guidance scale; a latent is 4 pixels."""
    tokenizer, levels = gemma_tokenizer(), 3
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=8, num_cross_attention_heads=2,
        cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16, sample_size=8, guidance_embeds=sprint,
        qk_norm="rms_norm_across_heads" if sprint else None,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock",) * levels,
        decoder_block_types=("ResBlock",) * levels, encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels, encoder_qkv_multiscales=((),) * levels,
        decoder_qkv_multiscales=((),) * levels, encoder_layers_per_block=(1,) * levels,
        decoder_layers_per_block=(1,) * levels, downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    cls = diffusers.SanaSprintPipeline if sprint else diffusers.SanaPipeline
    cls(
        transformer=lively(transformer, 1),
        vae=lively(vae, 2),
        text_encoder=gemma_text(tokenizer, 3),
        tokenizer=tokenizer,
        scheduler=diffusers.SCMScheduler() if sprint else diffusers.DPMSolverMultistepScheduler(**flow),
    ).save_pretrained(folder)
    return folder


# by the names of the families, with their kinds
BUILDERS: dict[str, Callable[[Path], Path]] = {
    "sdxl": save_sdxl,
    "sdxl distilled": partial(save_sdxl, distilled=True),
    "lcm": save_lcm,
    "sd3": save_sd3,
    "sd3.5 without T5": partial(save_sd3, t5=False, medium=True, use_dynamic_shifting=True),
    "flux": save_flux,
    "flux schnell": partial(save_flux, schnell=True),
    "chroma": save_chroma,
    "qwen-image": save_qwen_image,
    "dit": save_dit,
    "pixart-alpha": partial(save_pixart, alpha=True),
    "pixart-sigma": save_pixart,
    "auraflow": save_auraflow,
    "lumina2": save_lumina2,
    "sana": save_sana,
    "sana-sprint": partial(save_sana, sprint=True),
}
