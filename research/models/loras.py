"""LoRA files laid over a model's weights: ``model.loras`` (Hu et al., arXiv:2106.09685). The checks need no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.checks import check_number
from research.errors import ConfigError, ModelError
from research.hashing import sha256_files
from research.models.inspect.fit import quietly, reason
from research.models.inspect.weights import read_header, weight_files

KEY = "model.loras"
_USUAL = "pytorch_lora_weights.safetensors"  # what diffusers' training scripts write
_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
# a layer and which of its two factors, in the names of diffusers and of peft
_FACTOR = re.compile(r"^(.+?)[._](?:lora_(A|B)|lora(?:_linear_layer)?\.(down|up))(?:\.\w+)?\.weight$")


@dataclass(frozen=True)
class Lora:
    """A file of low-rank factors, and what they are multiplied by before they are added to the weights."""

    path: Path
    weight: float = 1.0


def read_loras(found: Any) -> tuple[Lora, ...]:
    """LoRAs as a config or a caller names them: mappings of ``path`` and ``weight``, or pairs of the two. None is none.

    Raises:
        ConfigError: one is neither; a weight is no number; the file is not there, or is no LoRA; peft is not installed.
    """
    if not found:
        return ()
    if isinstance(found, str | os.PathLike | Mapping) or not isinstance(found, Sequence):
        raise ConfigError(f"{KEY}: found {found!r}; accepted is a list: [{{path: FILE, weight: 0.8}}].")
    loras = tuple(_read(f"{KEY}[{place}]", each) for place, each in enumerate(found))
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(f"{KEY}: peft is not installed; pip install 'diffusion-sampling-research[lora]' brings it.")
    return loras


def _read(key: str, found: Any) -> Lora:
    if isinstance(found, Lora):
        found = {"path": found.path, "weight": found.weight}
    if isinstance(found, Sequence) and not isinstance(found, str) and len(found) == 2:
        found = dict(zip(("path", "weight"), found, strict=True))
    if not isinstance(found, Mapping) or "path" not in found or set(found) - {"path", "weight"}:
        raise ConfigError(f"{key}: found {found!r}; accepted are path and weight: {{path: FILE, weight: 0.8}}.")
    weight = check_number(f"{key}.weight", found.get("weight", 1.0))
    if not isinstance(found["path"], str | os.PathLike) or not os.fspath(found["path"]):
        raise ConfigError(f"{key}.path: found {found['path']!r}; accepted is a .safetensors file or a folder with one.")
    file = _file(f"{key}.path", Path(found["path"]).expanduser())
    try:
        header = read_header(file)
    except ModelError as error:
        raise ConfigError(f"{key}.path: {str(error).removeprefix('model.path: ')}") from error
    if not any("lora" in name for name in header):
        raise ConfigError(f"{key}.path: {file} is no LoRA: none of its {len(header)} tensors is named so.")
    return Lora(file, float(weight))


def _file(key: str, path: Path) -> Path:
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        usual = [file for file in files if file.name == _USUAL] or files
        if len(usual) != 1:
            raise ConfigError(f"{key}: {path} has {len(files)} .safetensors files; accepted is the file itself.")
        return usual[0]
    if not path.is_file():
        raise ConfigError(f"{key}: {path} is not there; accepted is a .safetensors file or a folder with one.")
    if path.suffix != ".safetensors":
        raise ConfigError(f"{key}: {path} may run code when it is read; accepted is a .safetensors file.")
    return path


def check_loras(loras: Sequence[Lora], directory: Path, model: str) -> None:
    """Check names and shapes of LoRAs against the weights of a diffusers directory, from the headers of both. Names of other
    programs than diffusers and peft are left to the loader.

    Raises:
        ConfigError: one is of another model.
    """
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for place, lora in enumerate(loras):
        for part, layer, down, width in _factors({n: t.shape for n, t in read_header(lora.path).items()}):
            known = shapes.setdefault(part, _weights(directory / part)) if part not in shapes else shapes[part]
            names = (layer, f"text_model.{layer}", layer.removeprefix("text_model."))
            shape = next((known[f"{name}.weight"] for name in names if f"{name}.weight" in known), None)
            if shape is not None and width == shape[1 if down else 0]:
                continue
            start = f"{KEY}[{place}].path: {lora.path} is of another model"
            if shape is None:
                raise ConfigError(f"{start}: {model} has no {part}.{layer}.")
            side = "inputs" if down else "outputs"
            raise ConfigError(
                f"{start}: it has {width} {side} for {part}.{layer}, and {model} has {shape[1 if down else 0]}."
            )


def _factors(shapes: Mapping[str, Sequence[int]]) -> Iterable[tuple[str, str, bool, int]]:
    """Part, layer, whether it is the factor on the layer's inputs, and how wide it is there."""
    for name, shape in shapes.items():
        part, _, rest = name.partition(".")
        if part not in _PARTS or not (match := _FACTOR.match(rest)) or len(shape) < 2:
            continue
        layer = re.sub(r"\.processor\.to_out$", ".to_out.0", match[1]).replace(".processor.", ".")
        down = "A" in (match[2] or "") or match[3] == "down"
        yield part, layer, down, shape[1 if down else 0]


def _weights(component: Path) -> dict[str, tuple[int, ...]]:
    if not component.is_dir():
        return {}
    files, safe = weight_files(component, allow_pickle=True)
    return {name: tensor.shape for file in files if safe for name, tensor in read_header(file).items()}


def fuse_loras(parts: Mapping[str, Any], pipeline: str, loras: Sequence[Lora]) -> None:
    """Add LoRAs to the weights of a pipeline's parts, by the pipeline's own loader.

    The weights are bit for bit those of the pipeline after ``load_lora_weights(path, adapter_name=...)`` for each,
    ``set_adapters(names, weights)`` and ``fuse_lora()``; without fusing, its predictions differ in their last bits.

    Raises:
        ConfigError: the pipeline takes no LoRA, or its loader refuses one, or one changes none of the parts.
    """
    import diffusers

    cls: Any = getattr(diffusers, pipeline)
    if not hasattr(cls, "load_lora_weights"):
        raise ConfigError(f"{KEY}: {pipeline} takes no LoRA; accepted is null.")
    given = {name: parts.get(name) for name in cls._lora_loadable_modules}
    # the pipeline of the parts that LoRAs are for, and of no others
    own = {"__init__": lambda self: self.register_modules(**given), "components": property(lambda self: given)}
    holder: Any = type(cls.__name__, (cls,), own)
    with quietly():
        pipe = holder()
        adapters = [f"lora_{place}" for place in range(len(loras))]
        for place, (lora, adapter) in enumerate(zip(loras, adapters, strict=True)):
            try:
                pipe.load_lora_weights(lora.path.parent, weight_name=lora.path.name, adapter_name=adapter)
            except Exception as error:  # what a file for another model makes libraries raise is no closed list
                raise ConfigError(f"{KEY}[{place}].path: {lora.path} does not fit: {reason(error)}") from error
            if not any(adapter in found for found in pipe.get_list_adapters().values()):
                raise ConfigError(
                    f"{KEY}[{place}].path: {lora.path} is of another model: it fits no part of {pipeline}."
                )
        pipe.set_adapters(adapters, [lora.weight for lora in loras])
        pipe.fuse_lora(components=list(pipe.get_list_adapters()), adapter_names=adapters)
        pipe.unload_lora_weights()


def hash_with(weights: str, loras: Sequence[Lora]) -> str:
    """The hash of weights with LoRAs added to them, of the hash of the weights alone."""
    told = [weights, *(f"{sha256_files([lora.path])} {lora.weight!r}" for lora in loras)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest() if loras else weights
