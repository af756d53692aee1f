"""The model families: which pipelines each drives, and the parts of a pipeline directory that it reads. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Classes = tuple[str, ...]  # accepted in model_index.json; none: any of the library


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        driver: the class that drives it, as "module:class".
        pipelines: classes of diffusers whose directories it opens.
        parts: what it reads, with the classes accepted.
        optional: of the parts, those that a directory may do without (null in model_index.json).
        network: the part that the loop evaluates.
    """

    driver: str
    pipelines: tuple[str, ...]
    parts: Mapping[str, Classes]
    optional: frozenset[str] = frozenset()
    network: str = "transformer"

    def wanted(self, index: Mapping[str, Any]) -> dict[str, Classes]:
        """The parts that a directory with this ``model_index.json`` must have, with the classes accepted."""
        absent = {name for name in self.optional if not (index.get(name) or [None])[0]}
        return {name: classes for name, classes in self.parts.items() if name not in absent}


_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast")
_GEMMA_TOKENIZERS = ("GemmaTokenizer", "GemmaTokenizerFast")
_PROJECTED = ("CLIPTextModelWithProjection",)
_KL = ("AutoencoderKL",)

FAMILIES: dict[str, Family] = {
    "unet-text": Family(
        "research.models.unet_text:UnetTextModel",
        (
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionDepth2ImgPipeline",
            "LatentConsistencyModelPipeline",
            "LatentConsistencyModelImg2ImgPipeline",
        ),
        {
            "scheduler": (),
            "tokenizer": _CLIP_TOKENIZERS,
            "text_encoder": ("CLIPTextModel", *_PROJECTED),
            "unet": ("UNet2DConditionModel",),
            "vae": _KL,
            "depth_estimator": ("DPTForDepthEstimation",),
            "feature_extractor": (),
        },
        optional=frozenset({"depth_estimator", "feature_extractor"}),
        network="unet",
    ),
    "unet-pixel": Family(
        "research.models.unet_pixel:UnetPixelModel",
        ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline"),
        {"scheduler": (), "unet": ("UNet2DModel",)},
        network="unet",
    ),
    "sdxl": Family(
        "research.models.families.sdxl:SDXLModel",
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
        {
            "scheduler": (),
            "tokenizer": _CLIP_TOKENIZERS,
            "tokenizer_2": _CLIP_TOKENIZERS,
            "text_encoder": ("CLIPTextModel",),
            "text_encoder_2": _PROJECTED,
            "unet": ("UNet2DConditionModel",),
            "vae": _KL,
        },
        optional=frozenset({"tokenizer", "text_encoder"}),
        network="unet",
    ),
    "sd3": Family(
        "research.models.families.sd3:SD3Model",
        ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
        {
            "scheduler": (),
            "tokenizer": _CLIP_TOKENIZERS,
            "tokenizer_2": _CLIP_TOKENIZERS,
            "tokenizer_3": _T5_TOKENIZERS,
            "text_encoder": _PROJECTED,
            "text_encoder_2": _PROJECTED,
            "text_encoder_3": ("T5EncoderModel",),
            "transformer": ("SD3Transformer2DModel",),
            "vae": _KL,
        },
        optional=frozenset({"tokenizer_3", "text_encoder_3"}),
    ),
    "flux": Family(
        "research.models.families.flux:FluxModel",
        ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
        {
            "scheduler": (),
            "tokenizer": _CLIP_TOKENIZERS,
            "tokenizer_2": _T5_TOKENIZERS,
            "text_encoder": ("CLIPTextModel",),
            "text_encoder_2": ("T5EncoderModel",),
            "transformer": ("FluxTransformer2DModel",),
            "vae": _KL,
        },
    ),
    "chroma": Family(
        "research.models.families.chroma:ChromaModel",
        ("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
        {
            "scheduler": (),
            "tokenizer": _T5_TOKENIZERS,
            "text_encoder": ("T5EncoderModel",),
            "transformer": ("ChromaTransformer2DModel",),
            "vae": _KL,
        },
    ),
    "qwen-image": Family(
        "research.models.families.qwen_image:QwenImageModel",
        ("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
        {
            "scheduler": (),
            "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
            "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
            "transformer": ("QwenImageTransformer2DModel",),
            "vae": ("AutoencoderKLQwenImage",),
        },
    ),
    "dit": Family(
        "research.models.families.dit:DiTModel",
        ("DiTPipeline",),
        {"scheduler": (), "transformer": ("DiTTransformer2DModel", "Transformer2DModel"), "vae": _KL},
    ),
    "pixart-alpha": Family(
        "research.models.families.pixart:PixArtAlphaModel",
        ("PixArtAlphaPipeline",),
        {
            "scheduler": (),
            "tokenizer": _T5_TOKENIZERS,
            "text_encoder": ("T5EncoderModel",),
            "transformer": ("PixArtTransformer2DModel",),
            "vae": _KL,
        },
    ),
    "pixart-sigma": Family(
        "research.models.families.pixart:PixArtSigmaModel",
        ("PixArtSigmaPipeline",),
        {
            "scheduler": (),
            "tokenizer": _T5_TOKENIZERS,
            "text_encoder": ("T5EncoderModel",),
            "transformer": ("PixArtTransformer2DModel",),
            "vae": _KL,
        },
    ),
    "auraflow": Family(
        "research.models.families.auraflow:AuraFlowModel",
        ("AuraFlowPipeline",),
        {
            "scheduler": (),
            "tokenizer": (*_T5_TOKENIZERS, "LlamaTokenizer", "LlamaTokenizerFast"),
            "text_encoder": ("UMT5EncoderModel",),
            "transformer": ("AuraFlowTransformer2DModel",),
            "vae": _KL,
        },
    ),
    "lumina2": Family(
        "research.models.families.lumina2:Lumina2Model",
        ("Lumina2Pipeline", "Lumina2Text2ImgPipeline"),
        {
            "scheduler": (),
            "tokenizer": _GEMMA_TOKENIZERS,
            "text_encoder": ("Gemma2Model",),
            "transformer": ("Lumina2Transformer2DModel",),
            "vae": _KL,
        },
    ),
    "sana": Family(
        "research.models.families.sana:SanaModel",
        ("SanaPipeline",),
        {
            "scheduler": (),
            "tokenizer": _GEMMA_TOKENIZERS,
            "text_encoder": ("Gemma2Model",),
            "transformer": ("SanaTransformer2DModel",),
            "vae": ("AutoencoderDC",),
        },
    ),
    "sana-sprint": Family(
        "research.models.families.sana_sprint:SanaSprintModel",
        ("SanaSprintPipeline", "SanaSprintImg2ImgPipeline"),
        {
            "scheduler": ("SCMScheduler",),
            "tokenizer": _GEMMA_TOKENIZERS,
            "text_encoder": ("Gemma2Model",),
            "transformer": ("SanaTransformer2DModel",),
            "vae": ("AutoencoderDC",),
        },
    ),
}
PIPELINES = {pipeline: name for name, family in FAMILIES.items() for pipeline in family.pipelines}
PARTS = tuple(dict.fromkeys(part for family in FAMILIES.values() for part in family.parts))


ACCEPTED = ", ".join(family.pipelines[0] for family in FAMILIES.values()) + ", and those of the same parts"


def family_of(pipeline: object) -> Family | None:
    """The family that drives a pipeline class, or None."""
    return FAMILIES.get(PIPELINES.get(str(pipeline), ""))
