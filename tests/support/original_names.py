"""The weights of a diffusers directory under the names of the checkpoints that are published as single files: the inverse of what
a converter has to do, written down apart from it. For Stable Diffusion XL, 3, 3.5 and FLUX.1 of any size."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

UNET = "model.diffusion_model."


def single_file_of(directory: Path, *, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """All weights of a directory in one dict, as its family's single files name them.

    Args:
        without: parts that are left out.
    """
    index = json.loads((directory / "model_index.json").read_text())
    parts = {name: _state(directory / name) for name in index if any((directory / name).glob("*.safetensors"))}
    named: dict[str, Tensor] = {}
    for name, state in parts.items():
        if name not in without:
            named |= _named(name, state, directory, refiner="text_encoder" not in parts)
    return {name: value.contiguous().clone() for name, value in named.items()}


def _state(folder: Path) -> dict[str, Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def _named(part: str, state: Mapping[str, Tensor], directory: Path, *, refiner: bool) -> dict[str, Tensor]:
    config = json.loads((directory / part / "config.json").read_text())
    latents = "first_stage_model."
    if part == "unet":
        return {UNET + _unet(key, config["layers_per_block"]): value for key, value in state.items()}
    if part == "vae":
        return {latents + k: v for k, v in _vae(state, len(config["block_out_channels"])).items()}
    if part == "transformer":
        convert = _sd3 if config["_class_name"].startswith("SD3") else _flux
        return {UNET + key: value for key, value in convert(dict(state)).items()}
    if (directory / "unet").is_dir():
        place = {"text_encoder": "0", "text_encoder_2": "0" if refiner else "1"}[part]
        if part == "text_encoder":
            return {f"conditioner.embedders.{place}.transformer.{k}": v for k, v in _wrapped(state).items()}
        return {f"conditioner.embedders.{place}.model.{k}": v for k, v in open_clip(_wrapped(state)).items()}
    if "T5" in str(config["architectures"]):
        return {f"text_encoders.t5xxl.transformer.{k}": v for k, v in state.items()}
    place = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}[part]
    return {f"text_encoders.{place}.transformer.{k}": v for k, v in _wrapped(state).items()}


def _wrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of a CLIP text encoder with the first word that newer versions of transformers leave out."""
    return {k if k.startswith(("text_model.", "text_projection")) else f"text_model.{k}": v for k, v in state.items()}


def open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder under the names of OpenCLIP, with its queries, keys and values in one."""
    words = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    found = {}
    for key, value in state.items():
        if match := re.match(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", key):
            joined = torch.cat([state[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")])
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = joined
        elif (match := re.match(r"text_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", key)) and match[2] in words:
            found[f"transformer.resblocks.{match[1]}.{words[match[2]]}.{match[3]}"] = value
    outer = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    found |= {new: state[old] for old, new in outer.items()}
    if "text_projection.weight" in state:
        found["text_projection"] = state["text_projection.weight"].T
    return found


# --- UNet and VAE

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
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _unet(key: str, layers: int) -> str:
    for new, old in _OUTER.items():
        if key.startswith(f"{new}."):
            return key.replace(new, old, 1)
    if match := re.match(r"mid_block\.(\w+)\.(\d)\.(.*)", key):
        part, place, rest = match.groups()
        return f"middle_block.1.{rest}" if part == "attentions" else f"middle_block.{2 * int(place)}.{_resnet(rest)}"
    match = re.match(r"(down_blocks|up_blocks)\.(\d)\.(\w+)\.(\d)\.(.*)", key)
    assert match
    side, block, part, layer, rest = match.groups()
    each = layers + 1
    at = each * int(block) + int(layer)
    if part == "downsamplers":
        return f"input_blocks.{each * int(block) + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":  # of blocks with attention, which are the first
        return f"output_blocks.{each * int(block) + layers}.2.{rest}"
    where = f"input_blocks.{at + 1}" if side == "down_blocks" else f"output_blocks.{at}"
    return f"{where}.1.{rest}" if part == "attentions" else f"{where}.0.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    name, _, ending = rest.partition(".")
    return f"{_RESNET[name]}.{ending}"


def _vae(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.conv", r"down.\1.downsample.conv", key)
        key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", key)
        key = re.sub(
            r"up_blocks\.(\d)\.upsamplers\.0\.conv", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.conv", key
        )
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        key = re.sub(r"attn_1\.to_(q|k|v)", r"attn_1.\1", key).replace("to_out.0", "proj_out")
        key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        # attention was a convolution of one pixel there
        found[key] = value[:, :, None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", key) else value
    return found


# --- transformers


def _swapped(value: Tensor) -> Tensor:
    """Scale before shift, or the other way round."""
    return torch.cat(value.chunk(2)[::-1])


def _joined(state: dict[str, Tensor], start: str, names: tuple[str, ...], kind: str) -> Tensor:
    return torch.cat([state.pop(f"{start}.{name}.{kind}") for name in names])


def _sd3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {"pos_embed": state.pop("pos_embed.pos_embed")}
    last = max(int(k.split(".")[1]) for k in state if k.startswith("transformer_blocks."))
    outer = {
        "pos_embed.proj": "x_embedder.proj",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "context_embedder": "context_embedder",
        "proj_out": "final_layer.linear",
    }
    inner = {
        "attn.to_out.0": "x_block.attn.proj",
        "attn.to_add_out": "context_block.attn.proj",
        "attn2.to_out.0": "x_block.attn2.proj",
        "norm1.linear": "x_block.adaLN_modulation.1",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "ff.net.0.proj": "x_block.mlp.fc1",
        "ff.net.2": "x_block.mlp.fc2",
        "ff_context.net.0.proj": "context_block.mlp.fc1",
        "ff_context.net.2": "context_block.mlp.fc2",
        "attn.norm_q": "x_block.attn.ln_q",
        "attn.norm_k": "x_block.attn.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q",
        "attn.norm_added_k": "context_block.attn.ln_k",
        "attn2.norm_q": "x_block.attn2.ln_q",
        "attn2.norm_k": "x_block.attn2.ln_k",
    }
    for block in range(last + 1):
        here, there = f"transformer_blocks.{block}", f"joint_blocks.{block}"
        for kind in ("weight", "bias"):
            found[f"{there}.x_block.attn.qkv.{kind}"] = _joined(state, f"{here}.attn", ("to_q", "to_k", "to_v"), kind)
            found[f"{there}.context_block.attn.qkv.{kind}"] = _joined(
                state, f"{here}.attn", ("add_q_proj", "add_k_proj", "add_v_proj"), kind
            )
            if f"{here}.attn2.to_q.{kind}" in state:
                found[f"{there}.x_block.attn2.qkv.{kind}"] = _joined(
                    state, f"{here}.attn2", ("to_q", "to_k", "to_v"), kind
                )
    for key in list(state):
        stem, _, kind = key.rpartition(".")
        value = state.pop(key)
        if stem in outer:
            found[f"{outer[stem]}.{kind}"] = value
        elif stem == "norm_out.linear":
            found[f"final_layer.adaLN_modulation.1.{kind}"] = _swapped(value)
        else:
            match = re.match(r"transformer_blocks\.(\d+)\.(.*)", stem)
            assert match, key
            turned = int(match[1]) == last and match[2] == "norm1_context.linear"
            found[f"joint_blocks.{match[1]}.{inner[match[2]]}.{kind}"] = _swapped(value) if turned else value
    return found


def _flux(state: dict[str, Tensor]) -> dict[str, Tensor]:
    outer = {
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "context_embedder": "txt_in",
        "x_embedder": "img_in",
        "proj_out": "final_layer.linear",
    }
    double = {
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
        "attn.norm_q": "img_attn.norm.query_norm",
        "attn.norm_k": "img_attn.norm.key_norm",
        "attn.norm_added_q": "txt_attn.norm.query_norm",
        "attn.norm_added_k": "txt_attn.norm.key_norm",
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
    }
    single = {
        "norm.linear": "modulation.lin",
        "attn.norm_q": "norm.query_norm",
        "attn.norm_k": "norm.key_norm",
        "proj_out": "linear2",
    }
    found = {}
    for key in [k for k in state if k.endswith((".to_q.weight", ".to_q.bias"))]:
        start, kind = key.rsplit(".to_q.", 1)
        block = start.split(".")[1]
        if start.startswith("single"):
            qkv = _joined(state, start, ("to_q", "to_k", "to_v"), kind)
            mlp = state.pop(f"single_transformer_blocks.{block}.proj_mlp.{kind}")
            found[f"single_blocks.{block}.linear1.{kind}"] = torch.cat([qkv, mlp])
            continue
        found[f"double_blocks.{block}.img_attn.qkv.{kind}"] = _joined(state, start, ("to_q", "to_k", "to_v"), kind)
        found[f"double_blocks.{block}.txt_attn.qkv.{kind}"] = _joined(
            state, start, ("add_q_proj", "add_k_proj", "add_v_proj"), kind
        )
    for key in list(state):
        stem, _, kind = key.rpartition(".")
        value = state.pop(key)
        if stem in outer:
            found[f"{outer[stem]}.{kind}"] = value
        elif stem == "norm_out.linear":
            found[f"final_layer.adaLN_modulation.1.{kind}"] = _swapped(value)
        else:
            match = re.match(r"(single_)?transformer_blocks\.(\d+)\.(.*)", stem)
            assert match, key
            new = (single if match[1] else double)[match[3]]
            kind = "scale" if new.endswith("_norm") else kind
            found[f"{'single' if match[1] else 'double'}_blocks.{match[2]}.{new}.{kind}"] = value
    return found
