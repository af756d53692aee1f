"""What a set of tensors or a folder is, told from names: a checkpoint, one component of one, a LoRA, ... Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from research.errors import ModelError
from research.models.inspect.checkpoints import SINGLE_FILES, UNET, Checkpoint, plain_names, quantised, read_checkpoint
from research.models.inspect.pickles import check_pickle, report_pickle
from research.models.inspect.safe_files import described, read_json, shown, sniff, unreadable
from research.models.inspect.weights import PICKLE_SUFFIXES, TensorInfo, read_header, read_metadata


@dataclass(frozen=True)
class Kind:
    """What something is.

    Attributes:
        name: a short name for scripts, such as "sd-checkpoint" or "lora".
        what: in words, with its article.
        advice: what to do with it, or empty.
        checkpoint: of a single file with a whole network that can be opened, its parts.
    """

    name: str
    what: str
    advice: str = ""
    checkpoint: Checkpoint | None = None

    @property
    def loads(self) -> bool:
        """Whether `load_model` opens it, given configs and the parts that it lacks."""
        return self.checkpoint is not None

    def sentence(self, otherwise: str = "") -> str:
        """What is to be said of a path: "is a LoRA; it changes a model and is none"."""
        what = f"is {self.what}"
        return "; ".join(text for text in (what, self.advice, otherwise) if text) + "."


_ADAPTER = (
    "it changes a model and is none: merge it into one in diffusers (load_lora_weights, fuse_lora, save_pretrained), "
    "and load that"
)
_EXTRA = "it goes with a model and is none"
_OTHER = f"accepted as a single file are checkpoints of {SINGLE_FILES}"
_AS_DIRECTORY = f"{_OTHER}; give its diffusers directory instead (from_single_file, then save_pretrained, writes one)"
_PART = "give the directory of the whole pipeline (with model_index.json), of which this is one part"
_CUT = "accepted are files with a whole network"
_FEW = 0.02  # the share of tensors below which a sign is a leftover

# what names of tensors give away, as (name, what, advice, pattern); the first counts that is the sign of more than a few
_SIGNS = (
    (
        "lora",
        "a LoRA",
        _ADAPTER,
        r"lora_(up|down|A|B|a|b)\b|lora_(unet|te\d?)_|\.lora\.(up|down)\.|\.hada_w|\.lokr_w|_lora\.",
    ),
    (
        "controlnet",
        "a ControlNet",
        _EXTRA,
        r"^control_model\.|input_hint_block|controlnet_cond_embedding|^controlnet_(down_|mid_)?block|^zero_convs\.",
    ),
    ("ip-adapter", "an IP-Adapter", _EXTRA, r"^ip_adapter\.|^image_proj"),
    (
        "textual-inversion",
        "a textual inversion",
        "it is a word for a tokenizer, and no model",
        r"^emb_params$|^string_to_param|^clip_[lg]$|^<.*>$",
    ),
    (
        "sdxl-checkpoint",
        "a part of a single-file checkpoint of Stable Diffusion XL",
        _CUT,
        r"^conditioner\.embedders\.",
    ),
    ("sd3-checkpoint", "a part of a single-file checkpoint of Stable Diffusion 3", _CUT, r"joint_blocks\."),
    ("chroma-checkpoint", "a single-file checkpoint of Chroma", _AS_DIRECTORY, r"(^|\.)distilled_guidance_layer\."),
    (
        "flux2-checkpoint",
        "a single-file checkpoint of FLUX.2",
        _OTHER,
        r"(^|\.)(single_stream_modulation|double_stream_modulation_(img|txt))\.",
    ),
    ("flux-checkpoint", "a part of a single-file checkpoint of FLUX.1", _CUT, r"(^|\.)double_blocks\.\d+\.img_"),
    ("video-checkpoint", "a video model", _OTHER, r"temporal_|motion_modules|time_stack"),
    ("sd-checkpoint", "a part of a single-file checkpoint of Stable Diffusion", _CUT, rf"^{re.escape(UNET)}"),
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
    ("transformer", "a diffusers transformer", _PART, r"^(single_)?transformer_blocks\."),
    (
        "clip",
        "a CLIP model of transformers",
        _PART,
        r"^(text_model|vision_model)\.|^encoder\.layers\.\d+\.self_attn|^embeddings\.token_embedding",
    ),
    ("t5", "a T5 text encoder", _PART, r"^(encoder|decoder)\.block\.\d+\.layer\."),
    ("upscaler", "an upscaler", _OTHER, r"\.rdb\d\.|^conv_body\."),
)


def kind_of_tensors(tensors: Mapping[str, TensorInfo | None], metadata: Mapping[str, str] | None = None) -> Kind:
    """What a single file is as a whole, from the names of its tensors, and their shapes where those are known.

    Args:
        metadata: of a safetensors file.
    """
    if (checkpoint := read_checkpoint(tensors, metadata)) is not None:
        return _checkpoint(checkpoint, tensors)
    names = list(plain_names(tensors))
    for name, what, advice, pattern in (*_SIGNS, *_COMPONENTS):
        if sum(bool(re.search(pattern, tensor)) for tensor in names) > _FEW * len(names):
            return Kind(name, what, advice)
    return Kind("unknown", "a file of tensors that are of no known model", _OTHER)


def _checkpoint(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo | None]) -> Kind:
    original, channels = checkpoint.original, checkpoint.in_channels
    what = f"a single-file checkpoint of {original.what}"
    name = f"{original.name.partition('-')[0].removesuffix('1').removesuffix('2').replace('sd35', 'sd3')}-checkpoint"
    if absent := [_PART_NAMES[part] for part in checkpoint.missing]:
        *first, last = absent
        what += f" without its {', '.join(first)}{' and ' * bool(first)}{last}"
        name += "-part"
    _, network = checkpoint.parts[original.network]
    video = sum("temporal_" in each or "time_stack" in each or "motion_modules" in each for each in network)
    if video > _FEW * len(network):
        return Kind("video-checkpoint", "a video model", _OTHER)
    if how := quantised(checkpoint, tensors):
        return Kind("quantised", f"{what}, quantised {how}", "accepted are weights in floats, fp8 among them")
    if original.layout == "flux" and channels not in (None, 64) and channels in _CONDITIONED:
        return Kind("flux-checkpoint", f"a single-file checkpoint of {_CONDITIONED[channels]}", _OTHER)
    if original.layout == "ldm-unet" and (told := _TOLD.get(channels or 0)):
        return Kind(name, f"a single-file checkpoint of {told}", _OTHER)
    return Kind(name, what, "", checkpoint)


_PART_NAMES = {
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "text_encoder_3": "T5 text encoder",
    "vae": "VAE",
}
# networks that are told more than text, by their input channels
_CONDITIONED = {384: "FLUX.1 Fill", 128: "FLUX.1 Depth or Canny"}
_TOLD = {7: "the upscaler of Stable Diffusion", 8: "InstructPix2Pix"}


def look_at(file: Path) -> Kind:
    """What a file is, told from its header (of safetensors) or from the strings in it (of a pickle, which is not opened).

    Raises:
        ModelError: it is said to be safetensors and is broken.
    """
    seen = file.stat()
    return _looked_at(file, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=32)
def _looked_at(file: Path, size: int, time: int) -> Kind:
    if is_safetensors(file):
        return kind_of_tensors(read_header(file), read_metadata(file))
    kind = kind_of_file(file)
    if kind.name != "pickle":
        return kind
    report = report_pickle(file)
    if report.problem or report.foreign:
        return kind
    if not report.texts:
        return Kind("pickle", "a pickle that holds no tensors by name", _OTHER)
    return kind_of_tensors(dict.fromkeys(report.texts))


def is_safetensors(file: Path) -> bool:
    """Whether a file is to be read as safetensors, by content or by name."""
    return sniff(file) == "safetensors" or file.suffix == ".safetensors"


def check_file(file: Path, *, allow_pickle: bool = True) -> Kind:
    """What a single file is that can be opened, given configs and the parts that it lacks.

    Raises:
        ModelError: no such file can be; one line that says what it is and what to do. Or it is pickled, and that is not allowed.
    """
    kind = look_at(file)
    if kind.name == "pickle":
        check_pickle(file)
    if not kind.loads:
        raise ModelError(f"model.path: {file} {kind.sentence()}")
    if not allow_pickle and not is_safetensors(file):
        raise ModelError(
            f"model.path: {file} is pickled, which can run code when it is read; accepted are safetensors, or set "
            "model.allow_pickle=true if you trust where it comes from."
        )
    return kind


def kind_of_file(file: Path) -> Kind:
    """What a file is that holds no safetensors, by content first and by name where that says nothing."""
    content = sniff(file)
    if content == "gguf":
        return Kind("gguf", "a GGUF file (quantised weights)", "accepted are safetensors")
    if content in ("zip", "pickle", "tar") or (content in ("unknown", "text") and file.suffix in PICKLE_SUFFIXES):
        return Kind("pickle", "a pickled checkpoint", "accepted are safetensors")
    if content == "json":
        return _kind_of_json(file)
    return Kind(content.replace(" ", "-"), f"a file that {described(file)}")


def _kind_of_json(file: Path) -> Kind:
    try:
        content = read_json(file)
    except ModelError:
        return Kind("json", "a file that is JSON", f"{_OTHER}, or a directory in diffusers layout")
    if "weight_map" in content:
        return Kind("index", "an index of shards, without weights", _PART)
    if file.name == "model_index.json" or ("_diffusers_version" in content and "_class_name" in content):
        folder = "the directory it is in" if file.name == "model_index.json" else "the directory of the whole pipeline"
        return Kind("config", f"a JSON config ({shown(content.get('_class_name'))}), without weights", f"give {folder}")
    return Kind("json", "a file that is JSON", f"{_OTHER}, or a directory in diffusers layout")


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
    if len(weights) == 1:
        return _of_folder(folder / weights[0])
    if weights:
        return Kind("files", f"a directory of weight files ({shown(', '.join(weights[:3]))})", "give the file itself")
    return Kind(
        "folder", f"no model in diffusers layout: it has no model_index.json (found {shown(', '.join(names[:6]))})"
    )


def _of_folder(file: Path) -> Kind:
    """What the only weight file of a folder makes it."""
    name = shown(file.name)
    try:
        inside = look_at(file)
    except (ModelError, OSError) as error:
        why = str(error).removeprefix("model.path: ").replace(str(file), name).rstrip(".")
        return Kind("files", f"a directory with one file of weights: {why}")
    if inside.loads:
        return Kind("files", f"a directory of weight files ({name})", "give the file itself")
    return Kind(inside.name, f"a directory with one file of weights, {name}, which is {inside.what}", inside.advice)


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
