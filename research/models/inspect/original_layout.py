"""From the names of original checkpoints to those of diffusers and transformers, by diffusers' own converters.

The converters are called as they stand in ``diffusers.loaders``, on the names of one part at a time; they work on tensors without
contents too, so that a file is held against configs before its weights are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from research.models.inspect.checkpoints import SCALE, Layout

_FLUX_WIDTH = 3072  # of FLUX.1, at which diffusers splits
_LAST_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


def converted(
    layout: Layout, tensors: Mapping[str, Tensor], config: Mapping[str, Any], module: Any
) -> dict[str, Tensor]:
    """The tensors of one part under the names of its module; those that the converter knows no place for are left out.

    Args:
        tensors: by their names in the part, as `research.models.inspect.checkpoints.Checkpoint.parts` has them.
        config: of the module.
        module: made of it, on any device.
    """
    tensors = without_scales(tensors)
    wanted = module.state_dict().keys()
    if wanted <= tensors.keys():  # named as the module names them already
        return dict(tensors)
    if layout == "t5":
        shared = {} if "encoder.embed_tokens.weight" in tensors else {"encoder.embed_tokens.weight": "shared.weight"}
        return {**tensors, **{new: tensors[old] for new, old in shared.items() if old in tensors}}
    if layout in ("clip", "open-clip"):
        found = _open_clip(tensors) if layout == "open-clip" else dict(tensors)
        if not any(name.startswith("text_model.") for name in wanted):
            found = {name.removeprefix("text_model."): value for name, value in found.items()}
        return found
    if layout == "flux":
        return _flux(tensors)
    from diffusers.loaders import single_file_utils as library

    if layout == "sd3":
        return library.convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))
    if layout == "ldm-vae":
        return library.convert_ldm_vae_checkpoint(
            {f"vae.{name}": value for name, value in tensors.items()}, dict(config)
        )
    named = {f"model.diffusion_model.{name}": value for name, value in tensors.items()}
    found = library.convert_ldm_unet_checkpoint(named, dict(config))
    if (
        embedded := tensors.get("time_embed.cond_proj.weight")
    ) is not None:  # of the guidance scale; it is not converted
        found["time_embedding.cond_proj.weight"] = embedded
    return found


def fitted(found: Mapping[str, Tensor], module: Any, *, projected: bool) -> dict[str, Tensor]:
    """The tensors of a CLIP text encoder less what such files hold besides: the top layers that the model is used without, and
    the projection of a pooled text that is not asked for.

    Args:
        projected: whether the projection is the file's; Stable Diffusion 3 pools its first text without one.
    """
    wanted = module.state_dict()
    kept = {name: value for name, value in found.items() if name in wanted}
    if not projected and "text_projection.weight" in wanted:
        shape = wanted["text_projection.weight"].shape
        kept["text_projection.weight"] = torch.eye(*shape)
    return kept


def surplus_layers(found: Mapping[str, Tensor], module: Any) -> int:
    """How many layers of a text encoder lie above those that its module has."""

    def layers(names: Any) -> set[str]:
        return {match[1] for name in names if (match := _LAST_LAYER.search(name))}

    return len(layers(found) - layers(module.state_dict()))


def _open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    class Sized:
        """What the converter asks of a text model: its width, where the file has no projection."""

        class config:
            hidden_size = tensors["positional_embedding"].shape[-1] if "positional_embedding" in tensors else 0

    prefix = (
        "open_clip."  # under its usual name the converter leaves out the last of 24 layers, whatever the config says
    )
    return convert_open_clip_checkpoint(Sized, {prefix + name: value for name, value in tensors.items()}, prefix)


def _flux(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By diffusers' converter; what it splits at the width of FLUX.1 alone is split at the file's."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    width = tensors["img_in.weight"].shape[0]
    joined = {name: value for name, value in tensors.items() if re.fullmatch(r"single_blocks\.\d+\.linear1\.\w+", name)}
    stand_ins = {name: value.new_empty(7 * _FLUX_WIDTH, device="meta") for name, value in joined.items()}
    found = convert_flux_transformer_checkpoint_to_diffusers({**tensors, **stand_ins})
    for name, value in joined.items():
        _, block, _, kind = name.split(".")
        pieces = value.split([width, width, width, len(value) - 3 * width])
        for layer, piece in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), pieces, strict=True):
            found[f"single_transformer_blocks.{block}.{layer}.{kind}"] = piece
    return found


def without_scales(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in scaled fp8 multiplied by their scales, and without what is for the arithmetic in fp8 alone."""
    scales = {SCALE.sub(".weight", name): value for name, value in tensors.items() if SCALE.search(name)}
    beside = re.compile(r"(^|\.)(scale_weight|weight_scale|scale_input|input_scale|scaled_fp8|comfy_quant)$")
    found = {name: value for name, value in tensors.items() if not beside.search(name)}
    for name, scale in scales.items():
        if name in found:
            value = found[name]
            by = scale.float().reshape(-1, *[1] * (value.ndim - 1)) if scale.numel() > 1 else scale.float().reshape(())
            found[name] = (value.float() * by).to(torch.bfloat16)
    return found
