"""LoRA files laid over a model's weights: ``model.loras`` (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from research.errors import ConfigError
from research.hashing import sha256_files
from research.models.inspect.families import family_of
from research.models.inspect.find_model import pipeline_class
from research.models.inspect.fit import quietly, reason
from research.models.inspect.parts import folder_of
from research.models.inspect.safe_files import read_json
from research.models.inspect.weights import read_header, weight_files
from research.models.lora_files import KEY, Lora

_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
# a layer and which of its two factors, in the names of diffusers and of peft
_FACTOR = re.compile(r"^(.+?)[._](?:lora_(A|B)|lora(?:_linear_layer)?\.(down|up))(?:\.\w+)?\.weight$")


def check_loras(loras: Sequence[Lora], directory: Path, model: str) -> None:
    """Check names and shapes of LoRAs against the weights of a diffusers directory, from the headers of both. Names of other
    programs than diffusers and peft are left to `check_converted`.

    Raises:
        ConfigError: one is of another model, or the model's pipeline takes none.
    """
    if not loras:
        return
    _check_takes(pipeline_class(directory))
    for place, lora in enumerate(loras):
        _check_shapes(place, lora, _header(lora), directory, model)


def check_converted(loras: Sequence[Lora], directory: Path, model: str) -> None:
    """The same of LoRAs in the names of other programs, as the loader of the model's pipeline reads them. It imports diffusers
    and reads these files whole, but no weights of the model.

    Raises:
        ConfigError: one is of another model, or the loader does not know its names.
    """
    for place, lora in enumerate(loras):
        header = _header(lora)
        if all(_parsed(name) for name in header if "lora" in name):
            continue
        pipeline = pipeline_class(directory)
        network = read_json(folder_of(directory, _network_of(pipeline)) / "config.json")
        known = _converted(lora.path, lora.path.stat().st_mtime_ns, pipeline, _Config.of(network))
        if isinstance(known, str):
            raise ConfigError(f"{KEY}[{place}].path: {lora.path} does not fit: {known}")
        if not any(_parsed(name) for name in known):
            raise ConfigError(f"{KEY}[{place}].path: {lora.path} is of another model: it fits no part of {pipeline}.")
        _check_shapes(place, lora, known, directory, model)


def _check_takes(pipeline: str) -> None:
    family = family_of(pipeline)
    if family is not None and not family.loras:
        raise ConfigError(f"{KEY}: {pipeline} takes no LoRA; accepted is null.")


def _loader(pipeline: str) -> Any:
    """The class that loads LoRAs: the pipeline's, or for one that diffusers has no more that of its family."""
    import diffusers

    family = family_of(pipeline)
    assert family is not None
    return getattr(diffusers, pipeline, None) or getattr(diffusers, family.pipelines[0])


def _network_of(pipeline: str) -> str:
    family = family_of(pipeline)
    assert family is not None
    return family.network


class _Config(dict[str, Any]):
    """A network's config as the loaders ask it, by attributes; a key of caches."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Config:
        return cls(config)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items(), key=str)))


@lru_cache(maxsize=32)
def _converted(file: Path, changed: int, pipeline: str, network: _Config) -> Mapping[str, Sequence[int]] | str:
    """Shapes of a file's tensors by the names that the loader of a pipeline gives them; or why it gives none."""
    cls = _loader(pipeline)
    told = {"unet_config": network} if _network_of(pipeline) == "unet" else {}
    try:
        with quietly():
            found = cls.lora_state_dict(str(file.parent), weight_name=file.name, local_files_only=True, **told)
    except Exception as error:  # what a file for another model makes libraries raise is no closed list
        return reason(error)
    state = found[0] if isinstance(found, tuple) else found
    return {name: tuple(value.shape) for name, value in state.items() if hasattr(value, "shape")}


def _header(lora: Lora) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in read_header(lora.path).items()}


def _check_shapes(place: int, lora: Lora, shapes: Mapping[str, Sequence[int]], directory: Path, model: str) -> None:
    weights: dict[str, dict[str, tuple[int, ...]]] = {}
    for part, layer, down, width in _factors(shapes):
        if part not in weights:
            weights[part] = _weights(folder_of(directory, part))
        known = weights[part]
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
        if len(shape) >= 2 and (found := _parsed(name)):
            part, layer, down = found
            yield part, layer, down, shape[1 if down else 0]


def _parsed(name: str) -> tuple[str, str, bool] | None:
    """Part, layer, and whether it is the factor on the layer's inputs, of a name of diffusers or peft."""
    part, _, rest = name.partition(".")
    if part not in _PARTS or not (match := _FACTOR.match(rest)):
        return None
    layer = re.sub(r"\.processor\.to_out$", ".to_out.0", match[1]).replace(".processor.", ".")
    return part, layer, "A" in (match[2] or "") or match[3] == "down"


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

    _check_takes(pipeline)
    cls = _loader(pipeline)
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
