"""What a set of tensors or a folder is, told from names: a checkpoint, one component of one, a LoRA, ... Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from research.errors import ModelError
from research.models.inspect.safe_files import described, read_json, shown, sniff, unreadable
from research.models.inspect.weights import PICKLE_SUFFIXES, TensorInfo

UNET = "model.diffusion_model."
VAE = ("first_stage_model.", "vae.")
CLIP = "cond_stage_model.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."


@dataclass(frozen=True)
class Kind:
    """What something is.

    Attributes:
        name: a short name for scripts, such as "sd-checkpoint" or "lora".
        what: in words, with its article.
        advice: what to do with it, or empty.
        in_channels: of the UNet, where that is known.
        loads: whether `load_model` opens it.
    """

    name: str
    what: str
    advice: str = ""
    in_channels: int | None = None
    loads: bool = False

    def sentence(self, otherwise: str = "") -> str:
        """What is to be said of a path: "is a LoRA; it changes a model and is none"."""
        what = f"is {self.what}"
        return "; ".join(text for text in (what, self.advice, otherwise) if text) + "."


_ADAPTER = (
    "it changes a model and is none: merge it into one in diffusers (load_lora_weights, fuse_lora, save_pretrained), "
    "and load that"
)
_EXTRA = "it goes with a model and is none"
_OTHER = "accepted as a single file are checkpoints of Stable Diffusion 1.x / 2.x"
_AS_DIRECTORY = f"{_OTHER}; give its diffusers directory instead (from_single_file, then save_pretrained, writes one)"
_PART = "give the directory of the whole pipeline (with model_index.json), of which this is one part"

# what one tensor's name gives away, as (name, what, advice, pattern); the first that matches counts
_SIGNS = (
    (
        "lora",
        "a LoRA",
        _ADAPTER,
        r"lora_(up|down|A|B|a|b)\b|lora_(unet|te\d?)_|\.lora\.(up|down)\.|\.hada_w|\.lokr_w|_lora\.",
    ),
    ("controlnet", "a ControlNet", _EXTRA, r"^control_model\.|input_hint_block|controlnet_cond_embedding"),
    ("ip-adapter", "an IP-Adapter", _EXTRA, r"^ip_adapter\.|^image_proj"),
    (
        "textual-inversion",
        "a textual inversion",
        "it is a word for a tokenizer, and no model",
        r"^emb_params$|^string_to_param|^clip_[lg]$|^<.*>$",
    ),
    ("sdxl-checkpoint", "a single-file checkpoint of Stable Diffusion XL", _AS_DIRECTORY, r"^conditioner\.embedders\."),
    ("sd3-checkpoint", "a single-file checkpoint of Stable Diffusion 3", _AS_DIRECTORY, r"joint_blocks\."),
    ("flux-checkpoint", "a single-file checkpoint of Flux", _AS_DIRECTORY, r"(^|\.)double_blocks\.\d+\.img_"),
    ("video-checkpoint", "a video model", _OTHER, r"temporal_|motion_modules|time_stack"),
)
_COMPONENTS = (
    ("unet", "a diffusers UNet", _PART, r"^(down_blocks\.\d+\.(resnets|attentions)|up_blocks\.\d+\.resnets)\."),
    ("vae", "a diffusers VAE", _PART, r"^(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\."),
    (
        "ldm-vae",
        "a VAE of the original Stable Diffusion layout",
        _PART,
        r"^(first_stage_model\.)?(encoder|decoder)\.(down|up|mid)\.",
    ),
    ("transformer", "a diffusers transformer", _OTHER, r"^(single_)?transformer_blocks\."),
    (
        "clip",
        "a CLIP model of transformers",
        _PART,
        r"^(text_model|vision_model)\.|^encoder\.layers\.\d+\.self_attn|^embeddings\.token_embedding",
    ),
    ("upscaler", "an upscaler", _OTHER, r"\.rdb\d\.|^conv_body\."),
)


def kind_of_tensors(tensors: Mapping[str, TensorInfo | None]) -> Kind:
    """What a single file is, from the names of its tensors, and their shapes where those are known."""
    names = list(tensors)
    for name, what, advice, pattern in _SIGNS:
        if any(re.search(pattern, tensor) for tensor in names):
            return Kind(name, what, advice)
    if any(tensor.startswith(UNET) for tensor in names):
        return _checkpoint(tensors)
    for name, what, advice, pattern in _COMPONENTS:
        if any(re.search(pattern, tensor) for tensor in names):
            return Kind(name, what, advice)
    return Kind("unknown", "a file of tensors that are of no known model", _OTHER)


def _checkpoint(tensors: Mapping[str, TensorInfo | None]) -> Kind:
    entrance = tensors.get(f"{UNET}input_blocks.0.0.weight")
    channels = entrance.shape[1] if entrance and len(entrance.shape) == 4 else None
    clip = any(name.startswith(CLIP) for name in tensors)
    open_clip = any(name.startswith(OPEN_CLIP) for name in tensors)
    version = "1.x" if clip else "2.x" if open_clip else ""
    what = f"a single-file checkpoint of Stable Diffusion {version}".rstrip()
    absent = [] if clip or open_clip else ["text encoder"]
    absent += [] if any(name.startswith(VAE) for name in tensors) else ["VAE"]
    absent += [] if f"{UNET}input_blocks.0.0.weight" in tensors else ["first UNet layer"]
    if absent:
        return Kind(
            "sd-checkpoint-part", f"{what} without its {' and '.join(absent)}",
            "accepted are files with UNet, VAE and text encoder", channels,
        )  # fmt: skip
    return Kind("sd-checkpoint", what, "", channels, loads=True)


def kind_of_file(file: Path) -> Kind:
    """What a file is that holds no safetensors, by content first and by name where that says nothing."""
    content = sniff(file)
    if content == "gguf":
        return Kind("gguf", "a GGUF file (quantised weights)", "accepted are safetensors")
    if content in ("zip", "pickle", "tar") or (content in ("unknown", "text") and file.suffix in PICKLE_SUFFIXES):
        return Kind("pickle", "a pickled checkpoint", "accepted are safetensors")
    return Kind(content.replace(" ", "-"), f"a file that {described(file)}")


def kind_of_folder(folder: Path) -> Kind:
    """What a folder without model_index.json is.

    Raises:
        ModelError: it cannot be looked into.
    """
    try:
        names = sorted(p.name for p in folder.iterdir())
    except OSError as error:
        raise ModelError(f"model.path: {folder} cannot be read: {shown(error.strerror)}.") from error
    if not names:
        return Kind("empty", "an empty directory")
    if "adapter_config.json" in names:
        return Kind("lora", "an adapter of PEFT (a LoRA)", _ADAPTER)
    if "config.json" in names and unreadable(folder / "config.json") is None:
        return _from_config(folder / "config.json")
    if "scheduler_config.json" in names:
        return Kind("scheduler", "a scheduler's folder", _PART)
    if "tokenizer_config.json" in names:
        return Kind("tokenizer", "a tokenizer's folder", _PART)
    if parts := [n for n in names if (folder / n / "config.json").is_file()]:
        return Kind(
            "no-index", f"a directory of components ({shown(', '.join(parts[:6]))}) without its model_index.json"
        )
    weights = [n for n in names if Path(n).suffix in (".safetensors", ".gguf", *PICKLE_SUFFIXES)]
    kinds = {"gguf" if n.endswith(".gguf") else "weights" for n in weights}
    if kinds == {"gguf"}:
        return Kind("gguf", f"a directory of GGUF files ({shown(weights[0])})", "accepted are safetensors")
    if weights:
        return Kind("files", f"a directory of weight files ({shown(weights[0])})", "give the file itself")
    return Kind(
        "folder", f"no model in diffusers layout: it has no model_index.json (found {shown(', '.join(names[:6]))})"
    )


def _from_config(file: Path) -> Kind:
    try:
        config = read_json(file)
    except ModelError as error:
        return Kind("broken-config", f"a folder whose config cannot be read: {str(error).removeprefix('model.path: ')}")
    name = config.get("_class_name")
    if isinstance(name, str):
        kind = "controlnet" if "ControlNet" in name else "component"
        return Kind(kind, f"one component of a diffusers model, a {shown(name)}", _PART)
    if isinstance(model := config.get("model_type"), str):
        return Kind("transformers", f"a model of transformers ({shown(model)})", _PART)
    return Kind("folder", "a folder with a config.json that names no class")
