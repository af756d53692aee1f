"""Writing a checkpoint as a diffusers directory: from a single file, or from a directory whose weights are pickled.

The directory is made beside its place under another name, checked, and then moved there, so that it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from research.errors import ConfigError, ModelError
from research.files import umask
from research.models.inspect.checkpoints import UNET, Checkpoint
from research.models.inspect.find_model import find_model, pipeline_class, read_index
from research.models.inspect.fit import checked_parts, reason
from research.models.inspect.parts import Component, components_of, wanted_parts
from research.models.inspect.safe_files import shown, unreadable
from research.models.inspect.weights import TensorInfo, stems
from research.models.single_file import header_of, open_file, single_file_config, write_file

_YAML_LIMIT = 1 << 20  # bytes of YAML; those in use have 2 kB
_HEAD = 64  # channels of an attention head in both text encoders
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def convert_model(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    original_config: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    allow_pickle: bool = False,
    offline: bool | None = None,
) -> Path:
    """Write a single-file checkpoint, or a diffusers directory of pickles, as a diffusers directory of safetensors.

    Weights keep their values and, where a checkpoint has one dtype, that too.

    Args:
        path: the file or directory.
        out: where to write it; a folder that does not exist yet, or is empty.
        config: for a file: a diffusers directory or zoo name that gives component configs, tokenizer and scheduler.
        original_config: for a file, instead of ``config``: the YAML it was trained with, such as ``v1-inference.yaml``.
        tokenizer: with ``original_config``: a tokenizer's folder, or a directory that has one. A YAML names none.
        allow_pickle: read pickles, by PyTorch's ``weights_only`` and after a look at what they name.
        offline: never use the network. By default as the variable HF_HUB_OFFLINE says.

    Returns:
        The directory written.

    Raises:
        ConfigError: arguments that do not go together, or ``out`` is taken.
        ModelError: the checkpoint or what is to go with it is broken, or they do not fit. Nothing is left at ``out`` then.
    """
    if config is not None and original_config is not None:
        raise ConfigError("--config, --original-config: found both; accepted is one of them.")
    if tokenizer is not None and original_config is None:
        raise ConfigError("--tokenizer: goes with --original-config; a directory given as --config has its own.")
    target = Path(out).expanduser()
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise ConfigError(f"--convert: {target} is there already; accepted is a new or an empty folder.")
    found = find_model(path)
    if found.hub is not None:
        raise ModelError(f"model.path: {path!r} is a hub id or does not exist; accepted here is a file or a directory.")
    if found.directory is not None:
        if config is not None or original_config is not None:
            raise ConfigError(f"--config, --original-config: go with a single file; {path} is a directory.")
        parts = _pickled_parts(found.directory, allow_pickle=allow_pickle)
        with _complete_or_absent(target) as scratch:
            _write_directory(found.directory, parts, scratch)
        return target
    assert found.file is not None
    with contextlib.ExitStack() as stack:
        if original_config is not None:
            kind, tensors = open_file(found.file, allow_pickle=allow_pickle)
            assert kind.checkpoint is not None
            if kind.checkpoint.original.name not in ("sd1", "sd2"):
                raise ConfigError(
                    f"--original-config: goes with Stable Diffusion 1.x / 2.x; {found.file} is {kind.what}, accepted is "
                    "--config DIR."
                )
            directory = stack.enter_context(
                _original_config(
                    Path(original_config).expanduser(), tokenizer, _original_names(kind.checkpoint, header_of(tensors))
                )
            )
        else:
            directory = stack.enter_context(
                single_file_config(found.file, config, allow_pickle=allow_pickle, offline=offline)
            )
        with _complete_or_absent(target) as scratch:
            given = config is not None or original_config is not None
            write_file(found.file, directory, scratch, allow_pickle=allow_pickle, given=given)
    return target


def _pickled_parts(directory: Path, *, allow_pickle: bool) -> list[Component]:
    pipeline_class(directory)
    parts = components_of(directory, read_index(directory), allow_pickle=True)
    if problems := [problem for part in parts for problem in part.problems]:
        raise ModelError(problems[0])
    if all(part.safe for part in parts if part.used):
        raise ConfigError(f"--convert: {directory} is a diffusers directory of safetensors already.")
    if not allow_pickle:
        raise ModelError(
            f"model.path: {directory} has pickled weights, which can run code when they are read; give --allow-pickle if you "
            "trust where they come from."
        )
    return parts


def _write_directory(directory: Path, parts: list[Component], scratch: Path) -> None:
    """Copy the parts that are used, with pickles rewritten. Those that are not used, a safety checker say, are left out."""
    from safetensors.torch import save_file

    index = read_index(directory)
    for name in index.keys() - wanted_parts(index).keys():
        if isinstance(index[name], list):
            index[name] = [None, None]
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    (scratch / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for part in parts:
        if not part.used:
            continue
        (scratch / part.name).mkdir()
        for file in part.folder.iterdir():
            if file.suffix in (".json", ".txt", ".model") and ".index." not in file.name and unreadable(file) is None:
                shutil.copyfile(file, scratch / part.name / file.name)
        tensors: dict[str, torch.Tensor] = {}
        for file in part.files:
            tensors |= _tensors(file, part.safe)
        if tensors:
            save_file(tensors, scratch / part.name / f"{stems(part.name)[0]}.safetensors", {"format": "pt"})


def _tensors(file: Path, safe: bool) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    if safe:
        return load_file(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {str(name): tensor.detach().clone().contiguous() for name, tensor in state.items()}
    except Exception as error:
        raise ModelError(f"model.path: {file} cannot be read as a pickle of tensors: {reason(error)}") from error


@contextlib.contextmanager
def _complete_or_absent(target: Path) -> Iterator[Path]:
    """A scratch folder beside a place, moved there if all went well and if what is in it can be loaded."""
    made: list[Path] = []
    # names are noted before they are made: an interruption may come right after
    scratch = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        for folder in reversed([target.parent, *target.parent.parents]):
            if not folder.exists():
                made.append(folder)
                folder.mkdir()
        scratch.mkdir(mode=0o700)
        yield scratch
        checked_parts(scratch, allow_pickle=False)
        scratch.chmod(0o777 & ~umask())
        scratch.rename(target)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise ModelError(f"--convert: {target} cannot be written: {error.strerror or error}") from error
        raise


# -- configs out of the YAML that an original checkpoint was trained with


_CLIP = "cond_stage_model.transformer.text_model."
_OPEN_CLIP = "cond_stage_model.model."


def _original_names(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """A checkpoint's tensors under the names of the original code."""
    starts = {
        "ldm-unet": UNET,
        "ldm-vae": "first_stage_model.",
        "clip": _CLIP.removesuffix("text_model."),
        "open-clip": _OPEN_CLIP,
    }
    return {
        starts[layout] + name: tensors[at]
        for layout, names in checkpoint.parts.values()
        for name, at in names.items()
        if layout in starts
    }


@contextlib.contextmanager
def _original_config(
    file: Path, tokenizer: str | os.PathLike[str] | None, tensors: Mapping[str, TensorInfo]
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
    shapes = dict(tensors)  # diffusers looks at names, and at the shapes of tensors
    try:
        params = original["model"]["params"]
        unet = create_unet_diffusers_config_from_ldm(original, shapes)
        vae = create_vae_diffusers_config_from_ldm(original, shapes)
        scheduler = _scheduler(params)
    except Exception as error:  # whatever a YAML of another model lacks
        raise ModelError(
            f"--original-config: {file} is no config of a Stable Diffusion checkpoint: {type(error).__name__} {reason(error)}"
        ) from error
    text = _text_encoder(tensors, open_clip=any(name.startswith(_OPEN_CLIP) for name in tensors))
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


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    if why := unreadable(file):
        raise ModelError(f"--original-config: {file} {why}.")
    if file.stat().st_size > _YAML_LIMIT:
        raise ModelError(
            f"--original-config: {file} has {file.stat().st_size} bytes; accepted are YAML files up to {_YAML_LIMIT}."
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
    prefix = _OPEN_CLIP if open_clip else f"{_CLIP}embeddings."
    table = tensors.get(f"{prefix}token_embedding.weight")
    places = tensors.get(f"{prefix}{'positional_embedding' if open_clip else 'position_embedding.weight'}")
    layer = f"{_OPEN_CLIP}transformer.resblocks." if open_clip else f"{_CLIP}encoder.layers."
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
