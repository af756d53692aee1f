"""Single-file checkpoints, told from the names of their tensors: of which model, with which parts, under which names and with
which marks. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from research.models.inspect.safe_files import shown
from research.models.inspect.weights import TensorInfo

Layout = Literal["ldm-unet", "sd3", "flux", "ldm-vae", "clip", "open-clip", "t5"]
Tensors = Mapping[str, TensorInfo | None]  # None where only the name is known

UNET = "model.diffusion_model."
_VAE_PREFIXES = ("first_stage_model.", "vae.")
# what torch.compile and the wrappers of training put into names, which means nothing
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER = ("module.", "state_dict.")  # before every name
_FLAT_EMA = "model_ema.diffusion_model"
# of names in which the EMA of the original code leaves out the points; numbers but those of blocks have one digit
_WORDS = re.compile(
    r"(?:input|output)_blocks(?=\d)|middle_block|time_embed|label_emb|skip_connection|transformer_blocks|proj_in|proj_out"
    r"|in_layers|out_layers|emb_layers|attn[12]|norm[123]|to_q|to_k|to_v|to_out|norm|conv|proj|weight|bias|out|op|ff|net|\d"
)
_BLOCK = re.compile(r"((?:input|output)_blocks)(\d+?)(\d)(?!\d)")
_COUNTERS = re.compile(r"(^|\.)(position_ids|logit_scale|num_batches_tracked|attn_mask)$")
_OF_VAE = re.compile(r"^(encoder|decoder|quant_conv|post_quant_conv)\.")
_QUANTISED = (
    (re.compile(r"\.(absmax|quant_map|nested_absmax)$|\.quant_state\.bitsandbytes"), "by bitsandbytes"),
    (re.compile(r"\.(qweight|qzeros|wscales|g_idx)$"), "to whole numbers (GPTQ, AWQ, SVDQuant)"),
)
SCALE = re.compile(r"\.(scale_weight|weight_scale)$")  # what a scaled fp8 weight is multiplied by
_SCALES = re.compile(r"(^|\.)(scale_weight|weight_scale|scale_input|input_scale|scaled_fp8|comfy_quant)$")


@dataclass(frozen=True)
class Encoder:
    """Where the weights of a text encoder stand in a file: what their names begin with, and whose names the rest are."""

    prefix: str
    layout: Layout


@dataclass(frozen=True)
class Original:
    """A model that is published as single files.

    Attributes:
        name: a short name.
        what: in words.
        family: of `research.models.inspect.families.FAMILIES`.
        layout: of the network's names.
        encoders: where the text encoders may stand, by part.
        hub: by input channels of the network (0: any), the hub's directory with the same configs.
    """

    name: str
    what: str
    family: str
    layout: Layout
    encoders: Mapping[str, tuple[Encoder, ...]]
    hub: Mapping[int, str] = field(default_factory=dict)

    @property
    def network(self) -> str:
        return "unet" if self.layout == "ldm-unet" else "transformer"

    @property
    def parts(self) -> tuple[str, ...]:
        """With weights, as a diffusers directory names them."""
        return (self.network, "vae", *self.encoders)


_SD = {
    "text_encoder": (Encoder("cond_stage_model.transformer.", "clip"), Encoder("cond_stage_model.model.", "open-clip"))
}
_XL = {
    "text_encoder": (Encoder("conditioner.embedders.0.transformer.", "clip"),),
    "text_encoder_2": (
        Encoder("conditioner.embedders.1.model.", "open-clip"),
        Encoder("conditioner.embedders.1.transformer.", "clip"),
    ),
}
_CLIP_L = Encoder("text_encoders.clip_l.transformer.", "clip")
_T5 = Encoder("text_encoders.t5xxl.transformer.", "t5")
_SD3 = {
    "text_encoder": (_CLIP_L,),
    "text_encoder_2": (Encoder("text_encoders.clip_g.transformer.", "clip"),),
    "text_encoder_3": (_T5,),
}
_FLUX = {"text_encoder": (_CLIP_L,), "text_encoder_2": (_T5,)}

ORIGINALS = {
    original.name: original
    for original in (
        Original(
            "sd1", "Stable Diffusion 1.x", "unet-text", "ldm-unet", _SD,
            {4: "stable-diffusion-v1-5/stable-diffusion-v1-5", 9: "stable-diffusion-v1-5/stable-diffusion-inpainting"},
        ),
        Original(
            "sd2", "Stable Diffusion 2.x", "unet-text", "ldm-unet", _SD,
            {
                4: "stabilityai/stable-diffusion-2",
                5: "stabilityai/stable-diffusion-2-depth",
                9: "stabilityai/stable-diffusion-2-inpainting",
            },
        ),
        Original(
            "sdxl", "Stable Diffusion XL", "sdxl", "ldm-unet", _XL,
            {
                4: "stabilityai/stable-diffusion-xl-base-1.0",
                9: "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
            },
        ),
        Original(
            "sdxl-refiner", "the refiner of Stable Diffusion XL", "sdxl", "ldm-unet",
            {"text_encoder_2": (Encoder("conditioner.embedders.0.model.", "open-clip"),)},
            {4: "stabilityai/stable-diffusion-xl-refiner-1.0"},
        ),
        Original("sd3", "Stable Diffusion 3 medium", "sd3", "sd3", _SD3, {0: "stabilityai/stable-diffusion-3-medium-diffusers"}),
        Original("sd35-large", "Stable Diffusion 3.5 large", "sd3", "sd3", _SD3, {0: "stabilityai/stable-diffusion-3.5-large"}),
        Original(
            "sd35-medium", "Stable Diffusion 3.5 medium", "sd3", "sd3", _SD3, {0: "stabilityai/stable-diffusion-3.5-medium"}
        ),
        Original("flux-dev", "FLUX.1 dev", "flux", "flux", _FLUX, {0: "black-forest-labs/FLUX.1-dev"}),
        Original("flux-schnell", "FLUX.1 schnell", "flux", "flux", _FLUX, {0: "black-forest-labs/FLUX.1-schnell"}),
    )
}  # fmt: skip
SINGLE_FILES = "Stable Diffusion 1.x / 2.x, XL, 3 and 3.5, and FLUX.1 dev / schnell"


@dataclass(frozen=True)
class Marks:
    """What a file says of how its network was trained.

    Attributes:
        prediction_type: as diffusers names it, or None.
        zero_terminal_snr: whether its noisiest level is noise alone.
        by: where it says so, for people; ``sure``: by a tensor's name, which somebody put there by hand, and not by metadata
            that programs write for all.
        edm: the tensor whose name says that the network is preconditioned as by Karras et al. (arXiv:2206.00364), or empty.
    """

    prediction_type: str | None = None
    zero_terminal_snr: bool = False
    by: str = ""
    sure: bool = False
    edm: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A single file with a network, part by part.

    Attributes:
        original: the model that it is of.
        in_channels: of its network, where that is known.
        parts: by part the layout of its names, and by each of these names that of the tensor in the file.
        ema: whether its network is the moving average alone, which the file names otherwise.
        left_out: tensors of no part.
        marks: how it was trained.
    """

    original: Original
    in_channels: int | None
    parts: Mapping[str, tuple[Layout, Mapping[str, str]]]
    ema: bool = False
    left_out: tuple[str, ...] = ()
    marks: Marks = Marks()

    @property
    def missing(self) -> tuple[str, ...]:
        """Parts of the model that are not in the file."""
        return tuple(part for part in self.original.parts if part not in self.parts)

    @property
    def notes(self) -> list[str]:
        """What is good to know of it."""
        found = []
        if self.ema:
            found.append("its network's weights are the moving average (EMA), and that is what is loaded")
        if self.left_out:
            many = f"{len(self.left_out)} tensors that are" if len(self.left_out) > 1 else "a tensor that is"
            named = ", ".join(shown(name, 80) for name in self.left_out[:3])
            found.append(f"{many} of no part of the model and left out: {named}{', ...' * (len(self.left_out) > 3)}")
        return found

    @property
    def hub_id(self) -> str | None:
        """The hub's model with the same configs."""
        hub = self.original.hub
        return hub.get(0) or hub.get(self.in_channels or 4)


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Names without what wrappers of training put before or into them, each with the name as it stands in the file."""
    found = {_WRAPPERS.sub("", name): name for name in names}
    for prefix in _OUTER:
        if sum(name.startswith(prefix) for name in found) > len(found) / 2:
            found = {
                **found,
                **{name.removeprefix(prefix): at for name, at in found.items() if name.startswith(prefix)},
            }
            found = {name: at for name, at in found.items() if not name.startswith(prefix)}
    return found


def with_points(flat: str) -> str | None:
    """A name of the UNet of which the EMA of the original code left out the points: "input_blocks10out_layers3bias" is
    "input_blocks.1.0.out_layers.3.bias". None for a name of something else."""
    words, rest = [], _BLOCK.sub(r"\1\2|\3|", flat)
    while rest:
        if rest[0] == "|":
            rest = rest[1:]
        elif number := re.match(r"\d+(?=\|)", rest):
            words.append(number[0])
            rest = rest[number.end() :]
        elif word := _WORDS.match(rest):
            words.append(word[0])
            rest = rest[word.end() :]
        else:
            return None
    return ".".join(words)


def read_checkpoint(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Checkpoint | None:
    """The checkpoint that a file of these tensors is; None where it has no network, or not a whole one, of a known model."""
    names = plain_names(tensors)
    names, ema = _with_network(names)
    shapes = {name: tensors[at] for name, at in names.items()}
    found = _network(names, shapes)
    if found is None:
        return None
    original, prefix, channels = found
    used: set[str] = set()

    def take(start: str, keep: re.Pattern[str] | None = None) -> dict[str, str]:
        inside = {
            name.removeprefix(start): at
            for name, at in names.items()
            if name.startswith(start) and name not in used and not _COUNTERS.search(name)
        }
        return {name: at for name, at in inside.items() if keep is None or keep.match(name)}

    parts: dict[str, tuple[Layout, Mapping[str, str]]] = {}
    for start in _VAE_PREFIXES:
        if "vae" not in parts and len(inside := take(start, _OF_VAE)) > 1:
            parts["vae"] = "ldm-vae", inside
            used |= {start + name for name in inside}
    for part, places in original.encoders.items():
        for encoder in places:
            inside = take(encoder.prefix)
            if part not in parts and len(inside) > 1:
                parts[part] = encoder.layout, _with_text_model(inside) if encoder.layout == "clip" else inside
                used |= {encoder.prefix + name for name in inside}
    network = take(prefix) if prefix else _bare(names, used)
    parts[original.network] = original.layout, network
    used |= {prefix + name for name in network}
    left = [
        at
        for name, at in names.items()
        if name not in used and not _COUNTERS.search(name) and not _expected_beside(name) and not _SCALES.search(name)
    ]
    return Checkpoint(original, channels, parts, ema, tuple(left), read_marks(tensors, metadata or {}))


def quantised(checkpoint: Checkpoint, tensors: Tensors) -> str | None:
    """How a checkpoint's weights are quantised, if they are, in a way that they cannot be read back from here."""
    for pattern, how in _QUANTISED:
        if any(pattern.search(name) for name in tensors):
            return how
    _, names = checkpoint.parts[checkpoint.original.network]
    dtypes = {
        tensor.dtype for at in names.values() if (tensor := tensors.get(at)) is not None and len(tensor.shape) > 1
    }
    return f"to whole numbers ({', '.join(sorted(dtypes))})" if any("F" not in dtype for dtype in dtypes) else None


def read_marks(tensors: Iterable[str], metadata: Mapping[str, str]) -> Marks:
    """How a network was trained, as names of empty tensors (``v_pred``, ``ztsnr``) or the metadata of a safetensors file say:
    modelspec (https://github.com/Stability-AI/ModelSpec) and that of kohya's scripts."""
    names = set(plain_names(tensors))
    if edm := next((name for name in ("edm_vpred.sigma_max", "edm_mean") if name in names), ""):
        return Marks(edm=edm)
    if "v_pred" in names or "ztsnr" in names:
        keys = [name for name in ("v_pred", "ztsnr") if name in names]
        by = f"its key{'s' * (len(keys) > 1)} {' and '.join(keys)}"
        return Marks("v_prediction" if "v_pred" in names else None, "ztsnr" in names, by, sure=True)
    kinds = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
    prediction: str | None = None
    said: list[str] = []
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        if prediction is None and (kind := kinds.get(str(metadata.get(key)).lower().replace("-", "_"))):
            prediction, said = kind, [f"{key}={metadata[key]}"]
    for key in ("ss_v_parameterization", "modelspec.architecture"):
        value = str(metadata.get(key, ""))
        if prediction != "v_prediction" and (value.lower() == "true" or value.endswith("-768-v")):
            prediction, said = "v_prediction", [f"{key}={shown(value, 40)}"]
    zero = str(metadata.get("ss_zero_terminal_snr", "")).lower() == "true"
    said += ["ss_zero_terminal_snr=True"] * zero
    return Marks(prediction, zero, f"its metadata {' and '.join(said)}" if said else "")


def _with_network(names: dict[str, str]) -> tuple[dict[str, str], bool]:
    """Names with those of the UNet's moving average in its place where the file has no UNet of another kind."""
    averages = {name: at for name, at in names.items() if name.startswith(_FLAT_EMA)}
    if not averages or any(name.startswith(UNET) for name in names):
        return names, False
    kept = {name: at for name, at in names.items() if name not in averages}
    for name, at in averages.items():
        rest = name.removeprefix(_FLAT_EMA)
        if plain := rest.removeprefix(".") if rest.startswith(".") else with_points(rest):
            kept[UNET + plain] = at
    return kept, True


def _network(names: Mapping[str, str], shapes: Tensors) -> tuple[Original, str, int | None] | None:
    """The model, what the names of its network begin with, and the network's input channels."""

    def channels(name: str) -> int | None:
        tensor = shapes.get(name)
        return tensor.shape[1] if tensor is not None and len(tensor.shape) > 1 else None

    for prefix in (UNET, ""):
        if f"{prefix}input_blocks.0.0.weight" in names and f"{prefix}out.2.weight" in names:
            return ORIGINALS[_unet_of(names, shapes, prefix)], prefix, channels(f"{prefix}input_blocks.0.0.weight")
        if f"{prefix}joint_blocks.0.x_block.attn.qkv.weight" in names and f"{prefix}final_layer.linear.weight" in names:
            blocks = {
                name.removeprefix(prefix).split(".")[1] for name in names if name.startswith(f"{prefix}joint_blocks.")
            }
            twice = any(".attn2." in name for name in names)
            kind = "sd35-medium" if twice else "sd35-large" if "37" in blocks else "sd3"
            return ORIGINALS[kind], prefix, channels(f"{prefix}x_embedder.proj.weight")
        if f"{prefix}double_blocks.0.img_attn.qkv.weight" in names and f"{prefix}vector_in.in_layer.weight" in names:
            kind = "flux-dev" if f"{prefix}guidance_in.in_layer.weight" in names else "flux-schnell"
            return ORIGINALS[kind], prefix, channels(f"{prefix}img_in.weight")
    return None


def _unet_of(names: Mapping[str, str], shapes: Tensors, prefix: str) -> str:
    """Which UNet it is: by the text encoders beside it, or by what it is told."""
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return "sdxl"
    if any(name.startswith("conditioner.embedders.0.model.") for name in names):
        return "sdxl-refiner"
    width = next(
        (
            t.shape[1]
            for name, t in shapes.items()
            if t is not None and name.endswith("attn2.to_k.weight") and len(t.shape) == 2
        ),
        None,
    )
    if any(name.startswith("conditioner.embedders.0.") for name in names) or f"{prefix}label_emb.0.0.weight" in names:
        return "sdxl-refiner" if width == 1280 else "sdxl"
    if any(name.startswith("cond_stage_model.transformer.") for name in names):
        return "sd1"
    open_clip = any(name.startswith("cond_stage_model.model.") for name in names)
    return "sd2" if open_clip or width == 1024 else "sd1"


def _bare(names: Mapping[str, str], used: set[str]) -> dict[str, str]:
    """The names of a network that stands in a file without a prefix."""
    others = (
        *_VAE_PREFIXES,
        "text_encoders.",
        "cond_stage_model.",
        "conditioner.",
        "model_ema.",
        "lora_",
        "control_model.",
    )
    return {
        name: at
        for name, at in names.items()
        if name not in used and "." in name and not name.startswith(others) and not _COUNTERS.search(name)
    }


def _with_text_model(names: Mapping[str, str]) -> dict[str, str]:
    """Names of a CLIP text encoder as transformers has them; those of old merges lack the first word."""
    first = ("text_model.", "text_projection", "vision_model.", "visual_projection")
    return {name if name.startswith(first) else f"text_model.{name}": at for name, at in names.items()}


def _expected_beside(name: str) -> bool:
    """Whether such a tensor stands in many checkpoints beside the model, and nobody would miss it."""
    return bool(
        re.match(
            r"(model_ema\.|first_stage_model\.(loss|model_ema)\.|vae\.loss\.|v_pred$|ztsnr$|edm_|scaled_fp8$"
            r"|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_|betas$|posterior_|lvlb_weights|denoiser\.|scale_factor$)",
            name,
        )
    ) or name in ("sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "logvar")
