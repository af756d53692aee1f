"""The parts of a diffusers directory: which there are, what files they have, and what is wrong with each. Needs no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.errors import ModelError
from research.models.inspect.families import FAMILIES, family_of
from research.models.inspect.pickles import check_pickle
from research.models.inspect.safe_files import read_json, shown, unreadable
from research.models.inspect.weights import (
    PICKLE_SUFFIXES,
    TensorInfo,
    check_safetensors,
    index_files,
    read_header,
    stems,
    variants,
    weight_files,
)

TEXT_PARTS = {name: c for name, c in FAMILIES["unet-text"].parts.items() if name not in FAMILIES["unet-text"].optional}
_OF_DIFFUSERS = ("scheduler", "unet", "transformer", "vae")
WEIGHTED = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "depth_estimator")
_MOST_LAYERS = 1000  # a config that says more would keep a library building for hours
_LARGEST = 10**9


@dataclass
class Component:
    """One part of a pipeline.

    Attributes:
        used: whether this project reads it.
        accepted: the classes that its family makes of it.
        files: its weight files, as they would be read, of one variant ("" for plain names); ``safe`` if they are safetensors.
        pickles: pickled files in its folder, read or not; tensors: of all its safetensors.
        problems: what keeps it from being loaded, one line each.
        pickle_refusal: why it is not loaded as long as pickles are not allowed.
    """

    name: str
    library: str | None
    class_name: str | None
    folder: Path
    used: bool
    accepted: tuple[str, ...] = ()
    files: list[Path] = field(default_factory=list)
    safe: bool = True
    variant: str = ""
    pickles: list[Path] = field(default_factory=list)
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    pickle_refusal: str | None = None

    @property
    def parameters(self) -> int:
        return sum(t.parameters for t in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        tensors = sum(t.nbytes for t in self.tensors.values())
        return tensors or sum(file.stat().st_size for file in self.files if file.is_file())

    @property
    def dtypes(self) -> dict[str, int]:
        """Parameters of each dtype."""
        counted: Counter[str] = Counter()
        for tensor in self.tensors.values():
            counted[tensor.dtype] += tensor.parameters
        return dict(counted)


def wanted_parts(index: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The parts that the family of a pipeline reads, with the classes accepted; empty for a pipeline of no family."""
    family = family_of(index["_class_name"])
    return {} if family is None else family.wanted(index)


def choose_variant(directory: Path, parts: list[str]) -> str:
    """The variant of weights to load, one for all parts: plain files if every part has them, else fp16, else another.

    Raises:
        ModelError: no variant is there for every part; half one and half another is never loaded.
    """
    have = {
        part: variants(directory / part) or variants(directory / part, pickled=True)
        for part in parts
        if (directory / part).is_dir()
    }
    have = {part: found for part, found in have.items() if found}
    common = set.intersection(*have.values()) if have else {""}
    if not common:
        found = ", ".join(f"{part}: {' and '.join(sorted(v or 'plain' for v in vs))}" for part, vs in have.items())
        raise ModelError(
            f"model.path: {directory} mixes variants of weights ({shown(found)}); accepted is one variant that every part has."
        )
    return min(common, key=lambda v: (v != "", v != "fp16", v))


def components_of(directory: Path, index: Mapping[str, Any], *, allow_pickle: bool) -> list[Component]:
    """Every part that ``model_index.json`` names or its family needs, with what is wrong with it."""
    wanted = wanted_parts(index)
    names = [key for key, value in index.items() if not key.startswith("_") and isinstance(value, list)]
    found = []
    for name in names:
        if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
            where = directory / "model_index.json"
            raise ModelError(
                f"model.path: {where} names a part {shown(name, 40)!r}; accepted are names of folders beside it."
            )
    order = {name: place for place, name in enumerate(WEIGHTED)}
    for name in sorted({*names, *wanted}, key=lambda n: (order.get(n, len(order)), n)):
        library, class_name = entry_of(index.get(name))
        part = Component(name, library, class_name, directory / name, name in wanted, wanted.get(name, ()))
        found.append(part)
        if name in wanted:
            part.problems += index_problems(directory, name, index.get(name), wanted[name])
        if class_name is not None or name in wanted:
            _look_for_pickles(part)
    weighted = [part.name for part in found if part.used and part.name in WEIGHTED]
    try:
        variant = choose_variant(directory, weighted)
    except ModelError as error:
        next(part for part in found if part.name == weighted[0]).problems.append(str(error))
        return found
    for part in found:
        if part.used and part.name in WEIGHTED and not part.problems:
            _read_weighted(part, allow_pickle=allow_pickle, variant=variant)
        elif not part.used and part.folder.is_dir():
            _read_unused(part)
    return found


def entry_of(value: object) -> tuple[str | None, str | None]:
    """Library and class of an entry of model_index.json."""
    if isinstance(value, list) and len(value) == 2 and all(v is None or isinstance(v, str) for v in value):
        return value[0], value[1]
    return None, None


def index_problems(directory: Path, name: str, entry: object, classes: tuple[str, ...]) -> list[str]:
    """What is wrong with what ``model_index.json`` says of a part that is needed, and whether its folder is there."""
    where = directory / "model_index.json"
    library, class_name = entry_of(entry)
    if class_name is None:
        return [f"model.path: {where} names no {name}, which its pipeline needs."]
    wanted = "diffusers" if name in _OF_DIFFUSERS else "transformers"
    if library != wanted or (classes and class_name not in classes):
        return [
            f"model.path: {where} names {shown(f'{library}.{class_name}')} as {name}; "
            f"accepted: {wanted}.{' or '.join(classes) or '*'}."
        ]
    if not (directory / name).is_dir():
        why = unreadable(directory / name) or "is no folder"
        return [f"model.path: component folder {directory / name} {why}."]
    return []


def _look_for_pickles(part: Component) -> None:
    try:
        part.pickles = sorted(p for p in part.folder.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES)
    except OSError as error:
        if part.folder.is_dir() and not part.problems:
            part.problems.append(f"model.path: {part.folder} cannot be read: {shown(error.strerror)}.")


def _read_weighted(part: Component, *, allow_pickle: bool, variant: str) -> None:
    """Config, weight files and their headers."""
    part.variant = variant
    try:
        part.config = read_json(part.folder / "config.json")
        part.problems += config_problems(part.folder / "config.json", part.config, part.class_name)
        if (part.folder / "adapter_config.json").exists():
            # transformers would go and load the model that an adapter names instead
            raise ModelError(f"model.path: {part.folder} holds an adapter (adapter_config.json); merge it first.")
        try:
            part.files, part.safe = weight_files(part.folder, allow_pickle=allow_pickle, variant=variant)
        except ModelError as refusal:
            if allow_pickle:
                raise
            part.files, part.safe = weight_files(part.folder, allow_pickle=True, variant=variant)
            for file in part.files:
                check_pickle(file)
            part.pickle_refusal = str(refusal)
            return
        for file in part.files:
            if part.safe:
                check_safetensors(file)
                _add_tensors(part, file)
            else:
                check_pickle(file)
        if part.safe:
            part.problems += _index_mismatch(part, variant)
    except ModelError as error:
        part.safe = part.safe and not allow_pickle
        part.problems.append(str(error))


def _read_unused(part: Component) -> None:
    """What a part that is not loaded weighs; nothing that is wrong with it matters."""
    try:
        part.files, part.safe = weight_files(part.folder, allow_pickle=True)
        for file in part.files if part.safe else ():
            _add_tensors(part, file)
    except (ModelError, OSError):
        part.files = []


def _add_tensors(part: Component, file: Path) -> None:
    tensors = read_header(file)
    if twice := sorted(part.tensors.keys() & tensors.keys()):
        raise ModelError(f"model.path: {file} holds {shown(twice[0])}, which another shard holds too.")
    part.tensors |= tensors


def _index_mismatch(part: Component, variant: str) -> list[str]:
    """Where an index of shards and the shards disagree about what is in which."""
    indices = index_files(part.folder, stems(part.folder)[0], "safetensors", variant)
    if not indices:
        return []
    named = read_json(indices[0])["weight_map"]
    inside = {file.name: read_header(file) for file in part.files}
    for tensor, file in named.items():
        if tensor not in inside[file]:
            return [f"model.path: {indices[0]} names {shown(tensor)} in {shown(file)}, which does not hold it."]
    for file, tensors in inside.items():
        if strange := sorted(tensors.keys() - named.keys()):
            return [
                f"model.path: {part.folder / file} holds {shown(strange[0])}, which {indices[0].name} does not name."
            ]
    return []


def config_problems(file: Path, config: Mapping[str, Any], class_name: str | None) -> list[str]:
    """What makes a component's config one that cannot be built, or not in any sensible time."""
    named = config.get("_class_name", class_name)
    if class_name is not None and named != class_name:
        return [f"model.path: {file} is of class {shown(named)}; model_index.json names {shown(class_name)}."]
    if config.get("quantization_config") is not None:
        return [f"model.path: {file} says that its weights are quantised; accepted are plain weights."]
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += [(key, inner) for inner in value]
            if len(value) > _MOST_LAYERS and key.endswith("block_types"):
                return [
                    f"model.path: {file}: {shown(key)} has {len(value)} blocks; accepted are at most {_MOST_LAYERS}."
                ]
        elif type(value) is int:
            limit = _MOST_LAYERS if "layers" in key else _LARGEST
            if abs(value) > limit:
                return [f"model.path: {file}: {shown(key)} is {shown(value, 30)}; accepted is at most {limit}."]
    return []
