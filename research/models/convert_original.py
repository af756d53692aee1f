"""Component configs out of the YAML that an original Stable Diffusion checkpoint was trained with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.errors import ModelError
from research.models.inspect.kinds import CLIP, OPEN_CLIP, Kind
from research.models.inspect.safe_files import shown, unreadable
from research.models.inspect_fit import reason
from research.models.weights import TensorInfo

_LIMIT = 1 << 20  # bytes of YAML; those in use have 2 kB
_HEAD = 64  # channels of an attention head in both text encoders
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


@contextlib.contextmanager
def original_config_directory(
    file: Path, tokenizer: str | os.PathLike[str] | None, tensors: Mapping[str, TensorInfo], kind: Kind
) -> Iterator[Path]:
    """A temporary directory of the configs that a YAML and the shapes of a checkpoint give.

    Args:
        tokenizer: the folder of a CLIP tokenizer, or a diffusers directory that has one.

    Raises:
        ModelError: the YAML is none or is of another model, or there is no tokenizer.
    """
    from diffusers.loaders.single_file_utils import (
        create_unet_diffusers_config_from_ldm,
        create_vae_diffusers_config_from_ldm,
    )

    original = _read_yaml(file)
    words = _tokenizer_folder(tokenizer, file)
    shapes = _Shapes(tensors)
    try:
        params = original["model"]["params"]
        unet = create_unet_diffusers_config_from_ldm(original, shapes)
        vae = create_vae_diffusers_config_from_ldm(original, shapes)
        scheduler = _scheduler(params)
    except Exception as error:  # whatever a YAML of another model lacks
        raise ModelError(
            f"--original-config: {file} is no config of a Stable Diffusion checkpoint: {type(error).__name__} {reason(error)}"
        ) from error
    text = _text_encoder(tensors, open_clip="2.x" in kind.what)
    with tempfile.TemporaryDirectory(prefix="research-") as scratch:
        folder = Path(scratch)
        for name, content in (
            ("unet/config.json", {"_class_name": "UNet2DConditionModel", **unet}),
            ("vae/config.json", {"_class_name": "AutoencoderKL", **vae}),
            ("text_encoder/config.json", text),
            ("scheduler/scheduler_config.json", scheduler),
            ("model_index.json", _INDEX),
        ):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
        (folder / "tokenizer").mkdir()
        for name in _TOKENIZER_FILES:
            if unreadable(words / name) is None:
                shutil.copyfile(words / name, folder / "tokenizer" / name)
        yield folder


_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


class _Shapes(dict[str, Any]):
    """A checkpoint as diffusers' config functions look at it: names, and tensors that have a shape."""

    def __init__(self, tensors: Mapping[str, TensorInfo]):
        super().__init__(tensors)


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    if why := unreadable(file):
        raise ModelError(f"--original-config: {file} {why}.")
    if file.stat().st_size > _LIMIT:
        raise ModelError(
            f"--original-config: {file} has {file.stat().st_size} bytes; accepted are YAML files up to {_LIMIT}."
        )
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise ModelError(
            f"--original-config: {file} cannot be read as YAML: {shown(str(error).splitlines()[0])}"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ModelError(
            f"--original-config: {file} is not the config of a Stable Diffusion checkpoint: it has no 'model'."
        )
    return content


def _tokenizer_folder(tokenizer: str | os.PathLike[str] | None, file: Path) -> Path:
    if tokenizer is None:
        raise ModelError(
            f"--original-config: {file} says nothing of a tokenizer, and neither does the checkpoint; give --tokenizer DIR "
            "(a CLIP tokenizer's folder, or a diffusers directory that has one), or --config DIR instead."
        )
    folder = Path(tokenizer).expanduser()
    for candidate in (folder / "tokenizer", folder):
        if any(unreadable(candidate / name) is None for name in ("tokenizer.json", "vocab.json")):
            return candidate
    raise ModelError(
        f"--tokenizer: {folder} has no tokenizer; accepted is a tokenizer.json, or a vocab.json with merges.txt."
    )


def _scheduler(params: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule of training; the original code squares a line between the square roots of two betas."""
    kind = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
    return {
        "_class_name": "DDIMScheduler",
        "beta_start": float(params.get("linear_start", 1e-4)),
        "beta_end": float(params.get("linear_end", 2e-2)),
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": int(params.get("timesteps", 1000)),
        "prediction_type": kind[params.get("parameterization", "eps")],
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def _text_encoder(tensors: Mapping[str, TensorInfo], *, open_clip: bool) -> dict[str, Any]:
    """The config of the text encoder, from its shapes. That of 2.x is used without its last layer."""
    prefix = OPEN_CLIP if open_clip else f"{CLIP}embeddings."
    table = tensors.get(f"{prefix}token_embedding.weight")
    places = tensors.get(f"{prefix}{'positional_embedding' if open_clip else 'position_embedding.weight'}")
    layer = f"{OPEN_CLIP}transformer.resblocks." if open_clip else f"{CLIP}encoder.layers."
    found = {int(m[1]) for name in tensors if (m := re.match(re.escape(layer) + r"(\d+)\.", name))}
    inner = tensors.get(f"{layer}0.mlp.{'c_fc' if open_clip else 'fc1'}.weight")
    if table is None or places is None or inner is None or not found or len(table.shape) != 2:
        raise ModelError(
            "model.path: the checkpoint's text encoder is not whole: its embeddings or layers are missing."
        )
    vocabulary, hidden = table.shape
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner.shape[0],
        "num_hidden_layers": len(found) - (1 if open_clip else 0),
        "num_attention_heads": max(hidden // _HEAD, 1),
        "max_position_embeddings": places.shape[0],
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "projection_dim": hidden,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 1 if open_clip else vocabulary - 1,
    }
