"""The model families: which pipelines each drives, and the parts of a pipeline directory that it reads. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        only_with: of the parts, those that are of use only where another is there too.
        loras: whether its pipelines take LoRAs.
    """

    driver: str
    pipelines: tuple[str, ...]
    parts: Mapping[str, Classes]
    optional: frozenset[str] = frozenset()
    network: str = "transformer"
    only_with: Mapping[str, str] = field(default_factory=dict)
    loras: bool = True

    def wanted(self, index: Mapping[str, Any]) -> dict[str, Classes]:
        """The parts that a directory with this ``model_index.json`` must have, with the classes accepted."""
        absent = {name for name in self.optional if class_in(index, name) is None}
        absent |= {name for name, other in self.only_with.items() if other in absent}
        return {name: classes for name, classes in self.parts.items() if name not in absent}

    def fits(self, index: Mapping[str, Any]) -> int:
        """How many of its parts an index names, each of a class that it accepts; 0 if one that it needs is not among them."""
        named = {name: class_in(index, name) for name in self.parts}
        if any(named[name] is None for name in self.parts if name not in self.optional):
            return 0
        given = [(self.parts[name], found) for name, found in named.items() if found is not None]
        return len(given) if all(not classes or found in classes for classes, found in given) else 0


_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast")
_GEMMA_TOKENIZERS = ("GemmaTokenizer", "GemmaTokenizerFast")
_PROJECTED = ("CLIPTextModelWithProjection",)
_KL = ("AutoencoderKL",)
_LEGACY = "Transformer2DModel"  # as checkpoints of before diffusers 0.29 say; diffusers tells by the config which it is

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
        only_with={"feature_extractor": "depth_estimator"},  # it prepares pictures for that, or for a safety checker
    ),
    "unet-pixel": Family(
        "research.models.unet_pixel:UnetPixelModel",
        ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline"),
        {"scheduler": (), "unet": ("UNet2DModel",)},
        network="unet",
        loras=False,
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
        {"scheduler": (), "transformer": ("DiTTransformer2DModel", _LEGACY), "vae": _KL},
        loras=False,
    ),
    "pixart-alpha": Family(
        "research.models.families.pixart:PixArtAlphaModel",
        ("PixArtAlphaPipeline",),
        {
            "scheduler": (),
            "tokenizer": _T5_TOKENIZERS,
            "text_encoder": ("T5EncoderModel",),
            "transformer": ("PixArtTransformer2DModel", _LEGACY),
            "vae": _KL,
        },
        loras=False,
    ),
    "pixart-sigma": Family(
        "research.models.families.pixart:PixArtSigmaModel",
        ("PixArtSigmaPipeline",),
        {
            "scheduler": (),
            "tokenizer": _T5_TOKENIZERS,
            "text_encoder": ("T5EncoderModel",),
            "transformer": ("PixArtTransformer2DModel", _LEGACY),
            "vae": _KL,
        },
        loras=False,
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


# pipelines whose checkpoints have the parts of a family and another meaning
_OF_ANOTHER_KIND = {
    "ConsistencyModelPipeline": "its network is told scaled noise levels",
    "KarrasVePipeline": "its network is told scaled noise levels",
    "ScoreSdeVePipeline": "its network predicts scores at noise levels of its own",
}
_ONE_OF_TWO = ("PixArtAlpha", "PixArtSigma")  # of the same parts


def class_in(index: Mapping[str, Any], name: str) -> str | None:
    """The class that ``model_index.json`` names for a part; None for one that the pipeline has not got."""
    entry = index.get(name)
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None else None
    return found if isinstance(found, str) else None


def named_pipeline(index: Mapping[str, Any]) -> str | None:
    """The class that ``model_index.json`` says it is of; that of a custom pipeline stands in a list behind its file."""
    name = index.get("_class_name")
    if isinstance(name, list) and len(name) == 2:
        name = name[1]
    return name if isinstance(name, str) and name.isidentifier() else None


def pipeline_of(index: Mapping[str, Any]) -> str | None:
    """The pipeline of a family that an index stands for: the one that it names, or the first of the family whose parts it has."""
    name = named_pipeline(index)
    if name is None or name in PIPELINES:
        return name
    if name in _OF_ANOTHER_KIND:
        return None
    fitting = {key: family.fits(index) for key, family in FAMILIES.items()}
    best = max(fitting.values())
    found = [key for key, count in fitting.items() if count == best > 0]
    if len(found) > 1:  # the one with a scheduler of its own, or of the name of one of two that have the same parts
        own = [key for key in found if FAMILIES[key].parts["scheduler"]]
        twins = [
            key for key in found if name.startswith(_ONE_OF_TWO) and FAMILIES[key].pipelines[0].startswith(name[:11])
        ]
        found = own or twins
    if not found or (found == ["unet-pixel"] and left_out(index, FAMILIES["unet-pixel"])):
        return None  # with a part more, a UNet without texts is one of some latents
    return FAMILIES[found[0]].pipelines[0]


def left_out(index: Mapping[str, Any], family: Family) -> list[str]:
    """The parts that an index names and a family has no use for."""
    wanted = family.wanted(index)
    return [name for name in index if not name.startswith("_") and name not in wanted and class_in(index, name)]


def not_driven(index: Mapping[str, Any]) -> str:
    """Why no family opens what an index describes, and what to do."""
    name = named_pipeline(index)
    if name in _OF_ANOTHER_KIND:
        return f"which is not supported: {_OF_ANOTHER_KIND[name]}. Accepted: {ACCEPTED}."
    return f"which is not supported, and its parts are those of no other. Accepted: {ACCEPTED}."


def mends(pipeline: str) -> bool:
    """Whether a pipeline of this class mends the configs of old checkpoints on loading, as `StableDiffusionPipeline` does."""
    return pipeline.startswith("StableDiffusion") and not pipeline.startswith(("StableDiffusion3", "StableDiffusionXL"))


def tells_strength(pipeline: str) -> bool:
    """Whether the image-to-image pipeline of a checkpoint has its scheduler make all steps below a strength, as that of latent
    consistency models does, and does not leave out the first of them."""
    return pipeline.startswith("LatentConsistencyModel")


def family_of(pipeline: object) -> Family | None:
    """The family that drives a pipeline class, or None."""
    return FAMILIES.get(PIPELINES.get(str(pipeline), ""))
