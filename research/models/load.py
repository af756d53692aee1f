"""`load_model`: a checkpoint by zoo name, directory or hub id, ready for the loop."""

from __future__ import annotations

import importlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from research.checks import check_number, check_whole_number
from research.errors import ConfigError, ModelError, nearest
from research.hashing import sha256_files
from research.hub_cache import commit_of
from research.models.base import BaseModel
from research.models.inspect.families import ACCEPTED, PIPELINES, family_of
from research.models.inspect.find_model import find_pipeline, pipeline_class
from research.models.inspect.fit import checked
from research.models.inspect.hub import fetch
from research.models.known_tokens import refuse_unknown_tokens
from research.models.lora_files import Lora, read_loras
from research.models.loras import check_converted, check_loras, fuse_loras, hash_with
from research.models.memory import Memory, quantization, use_memory
from research.models.single_file import single_file_config, taken_files, write_file

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_log = logging.getLogger(__name__)
_NOT_SAMPLED_WITH = ("safety_checker", "image_encoder")  # parts of pipelines that the loop has no use for
DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def load_model(
    path: str | os.PathLike[str] | DiffusionPipeline,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    allow_pickle: bool = False,
    offline: bool | None = None,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    attention_slicing: str | int | None = None,
    config: str | os.PathLike[str] | None = None,
    compile: bool = False,
    channels_last: bool = False,
    loras: Sequence[Any] | None = None,
    quantize: str = "none",
    offload: str = "none",
    drop_text_encoders: bool = False,
    vae_tiling: bool = False,
    vae_slicing: bool = False,
    distilled_guidance: float | None = None,
    max_sequence_length: int | None = None,
    size_conditioning: Mapping[str, Any] | None = None,
) -> BaseModel:
    """Load a model.

    Args:
        path: a zoo name ("emoji"), a directory in diffusers layout, a single file of Stable Diffusion 1 to 3.5 or FLUX.1
            (``.safetensors``, or a pickled ``.ckpt`` with ``allow_pickle``), or a hub id ("owner/name" or "owner/name@revision").
            Or a diffusers pipeline that is loaded already: its weights are copied, by way of a temporary directory, and it stays
            as it is.
        dtype: "float32", "float16" / "fp16", "bfloat16" / "bf16", a torch dtype, or "auto": float16 on a CUDA GPU, else float32.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto": a CUDA GPU where there is one, else that of a Mac, else the CPU.
        allow_pickle: read pickled weights (.bin) where there are no safetensors. They can run code: only if you trust them.
        offline: never use the network. By default as the variable HF_HUB_OFFLINE says.
        revision: of a hub model, a branch, a tag or a commit, as well as in its id; the commit that it stood for is ``commit`` of
            the model.
        variant: "fp16", say: the variant of weights to read of the parts that have it, and plain files of the others. By default
            plain files, or the variant that there is in their place.
        subfolder: where in the directory, or in the hub's repository, the model is.
        attention_slicing: None, "auto", "max" or a slice size: less memory for attention at some cost in speed.
        config: for a single file, the diffusers directory (or zoo name) that gives component configs, tokenizers, scheduler
            and the weights of the parts that the file lacks, text encoders and VAE say; its other weights are not read. Without
            it the configs of the hub's model of the kind are used, from the cache or online.
        compile: have torch compile the network (``torch.compile``) when it is first called, and once more for another batch size;
            the seconds of it stand in ``timings["compile"]``. Where a patch or a hook changes layers, it runs as it is written.
        channels_last: lay weights out in memory with the channels last, which convolutions on some GPUs prefer.
        loras: LoRA files (folders with one, or of the hub: "owner/name", "owner/name/file.safetensors") added to the
            weights, each with a factor: ``[("style.safetensors", 0.8)]`` or ``[{"path": ..., "weight": ...,
            "weight_name": ...}]``.
            Weights are those of the pipeline after ``load_lora_weights``, ``set_adapters``
            and ``fuse_lora()``. Needs peft.
        quantize: keep the network's weights in fewer bits: "fp8" (diffusers' layerwise casting; needs nothing), "int8" (needs
            torchao), "nf4" (needs bitsandbytes). Text encoders and VAE stay as they are.
        offload: what waits in the CPU's memory while it is not asked for: "model", all parts but the one at work; "sequential",
            all layers but the one at work: least memory, and slow. Needs a GPU.
        drop_text_encoders: keep text encoders in the CPU's memory but while they encode. On a CPU it does nothing.
        vae_tiling: decode and encode large pictures in overlapping tiles: less memory, other pixels near their seams.
        vae_slicing: decode and encode pictures of a batch one by one.
        distilled_guidance: the guidance scale that a distilled network is told (Flux, LCM); by default what its pipeline tells
            it. It costs nothing, and has nothing to do with the guidance of the sampler.
        max_sequence_length: tokens, from 1, that T5 and encoders like it take of a text; by default what the pipeline has.
        size_conditioning: what Stable Diffusion XL is told of its pictures besides their text, by the names of
            `research.models.size_conditioning.SizeConditioning`, such as ``{"crop": [0, 256]}``.

    Raises:
        ModelError: the model cannot be found, is broken, is pickled, or is of a family that is not supported; a revision is given
            with what is no hub model, or a variant or subfolder that is not there.
        ConfigError: dtype, device or attention_slicing is not one of the accepted, config is given with no single file, the
            network is to be compiled and there is no compiler, or the model knows no such guidance or length. A
            LoRA is not there or is of another model, peft or the backend of ``quantize`` is not installed, there is no GPU to
            offload from, or the VAE cannot do what is asked.
    """
    loaded_with = dict(locals())
    for key, flag in (("compile", compile), ("channels_last", channels_last)):
        if not isinstance(flag, bool):
            raise ConfigError(f"model.{key}: found {flag!r}; accepted: true, false.")
    if distilled_guidance is not None:
        check_number("model.distilled_guidance", distilled_guidance)
    if max_sequence_length is not None:
        check_whole_number("model.max_sequence_length", max_sequence_length, least=1)
    torch_dtype, torch_device = resolve_dtype_and_device(dtype, device)
    files = read_loras(loras, offline=offline)
    memory = Memory(quantize, offload, drop_text_encoders, vae_tiling, vae_slicing)
    memory.check(torch_device.type, compile=compile, loras=bool(files))
    how = _How(torch_dtype, allow_pickle, files, quantization(quantize, torch_dtype), variant)

    def ready(model: BaseModel) -> BaseModel:
        model.choose(
            distilled_guidance=distilled_guidance,
            max_sequence_length=max_sequence_length,
            size_conditioning=size_conditioning,
        )
        _ready(model, torch_device, memory, attention_slicing, compile, channels_last)
        if isinstance(path, str | os.PathLike):
            model.loaded_with = loaded_with, model.weights_stamp()
        return model

    if not isinstance(path, str | os.PathLike):
        if (given := {"revision": revision, "variant": variant, "subfolder": subfolder}) != dict.fromkeys(given):
            key = next(key for key, value in given.items() if value is not None)
            raise ConfigError(f"model.{key}: found {given[key]!r} with a loaded pipeline; accepted is null there.")
        return ready(_from_pipeline(path, how))
    found = find_pipeline(path, revision=revision, subfolder=subfolder)
    if found.file is None and config is not None:
        raise ConfigError(
            f"model.config: found {config!r} with {path}, which is no single file; accepted is null there."
        )
    if found.file is not None:
        if variant is not None:
            raise ConfigError(f"model.variant: found {variant!r} with the file {path}; accepted is null there.")
        model = _from_file(found.file, os.fspath(path), config, how, offline)
    else:
        directory = found.directory or fetch(found, allow_pickle=allow_pickle, offline=offline, variant=variant)
        model = _from_directory(directory, os.fspath(path), how)
        model.commit = commit_of(directory)
    return ready(model)


def _ready(
    model: BaseModel,
    device: torch.device,
    memory: Memory,
    attention_slicing: str | int | None,
    compile: bool,
    channels_last: bool,
) -> BaseModel:
    use_memory(model, memory, device)
    model.weak_models.load = _load_weak
    if attention_slicing is not None:
        model.set_attention_slicing(attention_slicing)
    model.compiled, model.channels_last = compile, channels_last
    return model.made_fast()


@dataclass(frozen=True)
class _How:
    """How weights are read."""

    dtype: torch.dtype
    allow_pickle: bool
    loras: Sequence[Lora]
    quantization: Any  # diffusers' config of a backend, or None
    variant: str | None = None


def _from_pipeline(pipeline: Any, how: _How) -> BaseModel:
    """A pipeline's own parts, saved and loaded like any directory, so that they are checked and hashed like one."""
    if not (hasattr(pipeline, "components") and hasattr(pipeline, "save_config")):
        raise ModelError(
            f"model.path: found {pipeline!r:.100}; accepted are a name, a directory, a file, a hub id or a diffusers pipeline."
        )
    name = type(pipeline).__name__
    if name not in PIPELINES:
        raise ModelError(f"model.path: found a {name}, which is not supported. Accepted: {ACCEPTED}.")
    if any(getattr(part, "peft_config", None) for part in pipeline.components.values()):
        raise ModelError(
            "model.path: the pipeline has LoRA adapters loaded, which would be lost; accepted is one after fuse_lora() and "
            "unload_lora_weights()."
        )
    with tempfile.TemporaryDirectory(prefix="research-") as scratch:
        index: dict[str, Any] = {"_class_name": name}
        for part, value in pipeline.components.items():
            if value is not None and part not in _NOT_SAMPLED_WITH:
                value.save_pretrained(Path(scratch, part))
                index[part] = pipeline.config[part]
        Path(scratch, "model_index.json").write_text(json.dumps(index))
        try:
            return _from_directory(
                Path(scratch), f"{getattr(pipeline, 'name_or_path', '') or name}", replace(how, allow_pickle=False)
            )
        except ModelError as error:
            raise ModelError(str(error).replace(scratch, f"the {name}")) from error


def _load_weak(path: str, dtype: torch.dtype, device: torch.device) -> BaseModel:
    return load_model(path, dtype=dtype, device=device)


def _from_directory(directory: Path, path: str, how: _How) -> BaseModel:
    pipeline = pipeline_class(directory)
    known = family_of(pipeline)
    assert known is not None
    module, _, name = known.driver.partition(":")
    family: type[BaseModel] = getattr(importlib.import_module(module), name)
    examined = checked(directory, allow_pickle=how.allow_pickle, variant=how.variant)
    with examined.shown() as view:
        check_loras(how.loras, view, path)
        check_converted(how.loras, view, path)
        try:
            model = family.from_directory(
                view, path=path, dtype=how.dtype, allow_pickle=how.allow_pickle, quantization=how.quantization
            )
        except ModelError as error:
            raise ModelError(str(error).replace(str(view), str(directory))) from error
    model.pipeline = str(pipeline)
    model.notes = tuple(examined.notes)
    refuse_unknown_tokens(model)
    if how.loras:
        fuse_loras(model.named_parts(), model.pipeline, how.loras)
        model.weights_sha256 = hash_with(model.weights_sha256, how.loras)
    return model


def _from_file(file: Path, path: str, config: Any, how: _How, offline: bool | None) -> BaseModel:
    """By way of a temporary diffusers directory, so that a checkpoint gives the same bits as when it is converted.

    Kernels round differently for weights that lie in memory at other offsets, as those of a mapped file do.
    """
    with tempfile.TemporaryDirectory(prefix="research-") as scratch:
        with single_file_config(file, config, allow_pickle=how.allow_pickle, offline=offline) as directory:
            found = write_file(
                file,
                directory,
                Path(scratch),
                allow_pickle=how.allow_pickle,
                given=config is not None,
                needs_depth=False,
                dtype=how.dtype,
                link=True,
            )
            others = taken_files(directory, found)
        try:
            model = _from_directory(Path(scratch), path, replace(how, allow_pickle=False))
        except ModelError as error:
            raise ModelError(str(error).replace(scratch, str(file))) from error
    model.weights_sha256 = hash_with(sha256_files([file, *others]), how.loras)
    model.notes = tuple(dict.fromkeys([*model.notes, *found.notes]))
    for line in found.warnings:
        _log.warning("warning: model.path: %s: %s", file, line)
    for line in found.notes:
        _log.info("%s: %s", file, line)
    return model


def resolve_dtype_and_device(dtype: str | torch.dtype, device: str | torch.device) -> tuple[torch.dtype, torch.device]:
    """What "auto" stands for on this machine.

    Raises:
        ConfigError: an unknown name, or a device that is not there.
    """
    if isinstance(device, torch.device):
        chosen = device
    elif device == "auto":
        mps = torch.backends.mps.is_available()
        chosen = torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    else:
        try:
            chosen = torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"model.device: found {device!r}; accepted: auto, cpu, cuda, cuda:N, mps.") from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"model.device: found {device!r}; accepted: auto, cpu, cuda, cuda:N, mps.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"model.device: found {device!r}; this machine has {torch.cuda.device_count()} CUDA devices.")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"model.device: found {device!r}; this machine has no MPS device.")
    if isinstance(dtype, torch.dtype) and dtype in (*DTYPES.values(), torch.float64):
        return dtype, chosen
    if dtype == "auto":
        return (torch.float16 if chosen.type == "cuda" else torch.float32), chosen
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ConfigError(
            f"model.dtype: found {dtype!r}.{nearest(str(dtype), DTYPES)} Accepted: auto, {', '.join(DTYPES)}."
        )
    if DTYPES[dtype] is torch.bfloat16 and chosen.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"model.dtype: found {dtype!r}; this GPU has no bfloat16, accepted: auto, float32, float16.")
    return DTYPES[dtype], chosen
