"""Single-file checkpoints of Stable Diffusion 1 to 3.5 and FLUX.1 as diffusers directories, by diffusers' own converters."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from research.errors import ModelError
from research.files import write_atomic
from research.models.inspect.find_model import config_directory
from research.models.inspect.fit import checked_parts, quietly, reason
from research.models.inspect.fit_file import FileFit, check_whole, fit_file, make_module, part_tensors
from research.models.inspect.hub import fetch_configs
from research.models.inspect.kinds import Kind, check_file, is_safetensors, kind_of_tensors
from research.models.inspect.pickles import check_pickle
from research.models.inspect.safe_files import unreadable
from research.models.inspect.weights import TensorInfo, check_safetensors, index_files, plain_name, stems, weight_files

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# under which the tensors of a pickle may lie, the weights that are sampled with first
_WITHIN = ("state_dict", "model", "module", "model_state_dict", "params_ema", "params", "ema", "model_ema")


def open_file(file: Path, *, allow_pickle: bool) -> tuple[Kind, dict[str, Tensor]]:
    """What a single file is, and its tensors, which are read from the disk as they are used.

    Raises:
        ModelError: it is no checkpoint that can be opened, it is broken, or it is a pickle and pickles are not allowed.
    """
    if is_safetensors(file):
        from safetensors.torch import load_file

        check_safetensors(file)
        kind = check_file(file)
        return kind, load_file(file)
    kind = check_file(file, allow_pickle=allow_pickle)
    tensors = _unpickled(file)
    kind = kind_of_tensors(header_of(tensors))
    if not kind.loads:
        raise ModelError(f"model.path: {file} {kind.sentence()}")
    return kind, tensors


def header_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    """Tensors as the header of a safetensors file would tell them."""
    return {
        name: TensorInfo(_DTYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), 0, tensor.nbytes)
        for name, tensor in tensors.items()
    }


@contextlib.contextmanager
def single_file_config(
    file: Path, config: str | os.PathLike[str] | None, *, allow_pickle: bool, offline: bool | None
) -> Iterator[Path]:
    """The directory of configs for a file: the one given (a path or a zoo name), or that of the hub's model of the kind.

    Raises:
        ModelError: there is none, or the file is no checkpoint.
    """
    kind = check_file(file, allow_pickle=allow_pickle)
    if config is None:
        check_whole(file, kind)
    yield config_directory(config) if config is not None else fetch_configs(file, kind, offline=offline)


def write_file(
    file: Path,
    config: Path,
    folder: Path,
    *,
    allow_pickle: bool,
    given: bool = True,
    needs_depth: bool = True,
    dtype: torch.dtype | None = None,
    link: bool = False,
) -> FileFit:
    """Write a single-file checkpoint as a diffusers directory, with what it lacks from another one.

    Weights keep their values, and their dtype where it has 16 bits or more; fp8 is written in 16 bits.

    Args:
        config: the directory that gives component configs, tokenizers, scheduler and the weights that the file lacks.
        given: see `fit_file`.
        needs_depth: refuse a depth checkpoint without an estimator in ``config``, as its pipeline does; else leave it out.
        dtype: that the weights are asked for in: those of more bits are written in it.
        link: weights that are taken from ``config`` may be links to them.

    Raises:
        ModelError: either is broken, or they do not fit.
    """
    import diffusers

    kind, tensors = open_file(file, allow_pickle=allow_pickle)
    found = fit_file(file, kind, header_of(tensors), config, given=given)
    assert kind.checkpoint is not None
    for name, class_name in found.classes.items():
        layout, names = kind.checkpoint.parts[name]
        module = make_module(config / name / "config.json", class_name)
        given_tensors = {key: _plain(tensors[at], dtype) for key, at in names.items()}
        state, _ = part_tensors(file, config, name, layout, given_tensors, module)
        try:
            with quietly():
                module.load_state_dict(
                    {key: _plain(value, dtype).contiguous() for key, value in state.items()}, assign=True
                )
                module.save_pretrained(folder / name, safe_serialization=True)
        except Exception as error:  # what a file that does not fit makes the library raise is no closed list
            raise ModelError(f"model.path: {file}: the {name} cannot be written: {reason(error)}") from error
    for name, variant in found.taken.items():
        _copy_part(config / name, folder / name, variant, link=link)
    index = _index(file, kind, found, config, folder, needs_depth=needs_depth)
    index.setdefault("_diffusers_version", diffusers.__version__)  # which its pipelines ask for
    for name, entry in index.items():
        if name.startswith("tokenizer") and isinstance(entry, list) and entry[0] is not None:
            _copy_small(config / name, folder / name)
    (folder / "scheduler").mkdir()
    # the scheduler as its config says it, and not as the library mends it on reading
    write_atomic(folder / "scheduler" / "scheduler_config.json", json.dumps(found.scheduler, indent=2) + "\n")
    write_atomic(folder / "model_index.json", json.dumps(index, indent=2) + "\n")
    return found


def _index(file: Path, kind: Kind, found: FileFit, config: Path, folder: Path, *, needs_depth: bool) -> dict[str, Any]:
    """``model_index.json``, with the pipeline that the network's input is for; the parts of a depth model are copied."""
    index = dict(found.index)
    kept = {*found.classes, *found.taken, "scheduler"}
    for name, entry in index.items():
        tokens = name.startswith("tokenizer") and name.replace("tokenizer", "text_encoder") in kept
        if isinstance(entry, list) and name not in kept and not tokens:
            index[name] = [None, None]
    checkpoint = kind.checkpoint
    assert checkpoint is not None
    if checkpoint.original.layout != "ldm-unet":
        return index
    latent = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8")).get("latent_channels", 4)
    channels = checkpoint.in_channels or latent
    if checkpoint.original.family == "sdxl":
        inpaint = "StableDiffusionXLInpaintPipeline"
        return {**index, "_class_name": inpaint if channels == 2 * latent + 1 else index["_class_name"]}
    text, depth = "StableDiffusionPipeline", "StableDiffusionDepth2ImgPipeline"
    kinds = {2 * latent + 1: "StableDiffusionInpaintPipeline", latent + 1: depth}
    own = index["_class_name"] if index["_class_name"].startswith("LatentConsistency") else text
    index["_class_name"] = kinds.get(channels, own)
    if index["_class_name"] == depth and (parts := _depth_parts(file, config, needed=needs_depth)):
        index |= parts
        _copy_part(config / "depth_estimator", folder / "depth_estimator", "", link=False)
        _copy_small(config / "feature_extractor", folder / "feature_extractor")
    if index["_class_name"] != depth:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    return index


def _depth_parts(file: Path, config: Path, *, needed: bool) -> dict[str, object]:
    if not (config / "depth_estimator").is_dir():
        if not needed:
            return {}
        raise ModelError(
            f"model.path: {file} takes a depth map, and no single file holds a depth estimator; accepted with it is a "
            "--config DIR with the weights of one (depth_estimator)."
        )
    checked_parts(config, allow_pickle=False)
    index = json.loads((config / "model_index.json").read_text(encoding="utf-8"))
    return {name: index[name] for name in ("depth_estimator", "feature_extractor") if name in index}


def _copy_small(source: Path, target: Path) -> None:
    """Configs and words of a part."""
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".txt", ".model") and unreadable(file) is None:
            shutil.copyfile(file, target / file.name)


def _copy_part(source: Path, target: Path, variant: str, *, link: bool) -> None:
    """A part with its weights, under plain names."""
    target.mkdir()
    weights, _ = weight_files(source, allow_pickle=False, variant=variant)
    for file in (source / "config.json", *index_files(source, stems(source.name)[0], "safetensors", variant), *weights):
        name = plain_name(source.name, file.name) or file.name
        if link and file.suffix == ".safetensors":
            (target / name).symlink_to(file.absolute())
        else:
            shutil.copyfile(file, target / name)


def taken_files(config: Path, fit: FileFit) -> Sequence[Path]:
    """The weight files of a directory that went into a model with a single file."""
    return [
        file
        for name, variant in fit.taken.items()
        for file in weight_files(config / name, allow_pickle=False, variant=variant)[0]
    ]


def _plain(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor in a dtype of 16 bits or more that holds its values, or in a smaller one that is asked for."""
    if not tensor.is_floating_point() or tensor.ndim == 0:
        return tensor
    if tensor.dtype.itemsize == 1:
        tensor = tensor.to(torch.float16)  # which holds all values of both kinds of fp8
    if dtype is not None and dtype.itemsize < tensor.dtype.itemsize:
        tensor = tensor.to(dtype)
    return tensor


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickled checkpoint by their names, less what training left in it."""
    check_pickle(file)
    try:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # of before PyTorch 1.6
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(f"model.path: {file} cannot be read as a pickle of tensors: {reason(error)}") from error
    found: dict[str, Tensor] = {}
    for _ in range(4):
        if not isinstance(state, dict):
            break
        found = {
            name: tensor.detach()
            for name, tensor in state.items()
            if isinstance(name, str) and isinstance(tensor, Tensor)
        }
        inside = next((state[name] for name in _WITHIN if isinstance(state.get(name), dict)), None)
        if inside is None or len(found) > 8:
            break
        state = inside
    if not found:
        raise ModelError(f"model.path: {file} is a pickle that holds no tensors by name.")
    return found
