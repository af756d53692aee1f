"""The parts of a diffusers directory: which there are, what files they have, and what is wrong with each. Needs no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from research.errors import ModelError
from research.models.inspect.families import class_in, family_of, mends, pipeline_of
from research.models.inspect.pickles import check_pickle
from research.models.inspect.safe_files import read_json, shown, unreadable
from research.models.inspect.view import View
from research.models.inspect.weights import (
    PICKLE_SUFFIXES,
    TensorInfo,
    check_safetensors,
    index_files,
    read_header,
    stems,
    stripped_names,
    variants,
    weight_files,
)

_OF_DIFFUSERS = ("scheduler", "unet", "transformer", "vae")
WEIGHTED = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "depth_estimator")
_IN_THE_ROOT = ("unet", "transformer", "vae")
# of one transformer, before and after diffusers 0.29
_ONE_LEGACY_CLASS = frozenset({"Transformer2DModel", "DiTTransformer2DModel", "PixArtTransformer2DModel"})
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
        view: how its folder is to be shown to the libraries, where that is otherwise than it is.
        notes: what is read otherwise than it stands there, one line each.
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
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    pickle_refusal: str | None = None

    def __post_init__(self) -> None:
        self.view = View(self.name, self.folder)

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
    family = family_of(pipeline_of(index))
    return {} if family is None else family.wanted(index)


def choose_variants(directory: Path, parts: Sequence[str], asked: str | None = None) -> dict[str, str]:
    """The variant of weights to load of each part ("" for plain files): plain files if every part has them, else fp16, else
    another that every part has, else the one variant that there is of the parts that have no plain files.

    Args:
        asked: a variant to take where a part has it, as diffusers does; plain files of the others.

    Raises:
        ModelError: parts have no plain files and different variants; or none has the one asked for.
    """
    folders = {part: folder_of(directory, part) for part in parts}
    have = {
        part: variants(folder, part) or variants(folder, part, pickled=True)
        for part, folder in folders.items()
        if folder.is_dir()
    }
    have = {part: found for part, found in have.items() if found}
    told = ", ".join(f"{part}: {' and '.join(sorted(v or 'plain' for v in vs))}" for part, vs in have.items())
    if asked is not None:
        if have and not any(asked in found for found in have.values()):
            raise ModelError(f"model.variant: found {shown(asked)!r}; {directory} has {shown(told)}.")
        return {part: asked if asked in have.get(part, ()) else "" for part in parts}
    common = set.intersection(*have.values()) if have else {""}
    if common:
        one = min(common, key=lambda v: (v != "", v != "fp16", v))
        return dict.fromkeys(parts, one)
    without = [found for found in have.values() if "" not in found]
    shared = set.intersection(*without)
    if not shared:
        raise ModelError(
            f"model.path: {directory} mixes variants of weights ({shown(told)}); accepted is one variant, and plain weights "
            "where a part has it not."
        )
    one = min(shared, key=lambda v: (v != "fp16", v))
    return {part: "" if "" in have.get(part, {""}) else one for part in parts}


def folder_of(directory: Path, part: str) -> Path:
    """The folder of a part: the one of its name, or, as diffusers has it, the directory itself where there is none."""
    folder = directory / part
    marker = "scheduler_config.json" if part == "scheduler" else "config.json" if part in _IN_THE_ROOT else None
    if marker and not (folder.is_dir() or folder.is_symlink() or folder.exists()) and (directory / marker).is_file():
        return directory
    return folder


def scheduler_settings(directory: Path, index: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The scheduler's config of a directory as its pipeline reads it, of the class that the index names; and notes of that.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    config = read_json(folder_of(directory, "scheduler") / "scheduler_config.json")
    named, own = class_in(index, "scheduler"), config.get("_class_name")
    if isinstance(own, str) and own.startswith("Flax"):
        own = own.removeprefix("Flax")
    if named is None or named.startswith("Flax") or (own == named and own == config.get("_class_name")):
        return {**config, "_class_name": own}, []
    notes = (
        []
        if own is None or own == named
        else [f"scheduler: its config names {shown(own)}, and model_index.json {named}, which counts"]
    )
    return {**config, "_class_name": named}, notes


def components_of(
    directory: Path, index: Mapping[str, Any], *, allow_pickle: bool, variant: str | None = None
) -> list[Component]:
    """Every part that ``model_index.json`` names or its family needs, with what is wrong with it; weights of a variant, if one
    is given, where a part has it."""
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
        folder = folder_of(directory, name) if name in wanted else directory / name
        part = Component(name, library, class_name, folder, name in wanted, wanted.get(name, ()))
        found.append(part)
        if name in wanted:
            part.problems += index_problems(directory, name, index.get(name), wanted[name])
        if class_name is not None or name in wanted:
            _look_for_pickles(part)
    weighted = [part.name for part in found if part.used and part.name in WEIGHTED]
    try:
        chosen = choose_variants(directory, weighted, variant)
    except ModelError as error:
        next(part for part in found if part.name == weighted[0]).problems.append(str(error))
        return found
    for part in found:
        if part.used and part.name in WEIGHTED and not part.problems:
            _read_weighted(part, index, allow_pickle=allow_pickle, variant=chosen[part.name])
        elif part.name == "scheduler" and part.used and not part.problems:
            _read_scheduler(part, directory, index)
        elif not part.used and part.folder.is_dir():
            _read_unused(part)
    return found


def is_whole(directory: Path, variant: str | None = None) -> bool:
    """Whether the files that a pipeline needs are all in a directory; what is in them is another question."""
    try:
        wanted = wanted_parts(read_json(directory / "model_index.json"))
        folders = {name: folder_of(directory, name) for name in wanted}
        weighted = [name for name in wanted if name in WEIGHTED]
        chosen = choose_variants(directory, weighted, variant)
        for name in weighted:
            weight_files(folders[name], allow_pickle=True, variant=chosen[name], part=name)
    except (ModelError, OSError, KeyError):
        return False
    return bool(wanted) and all(folder.is_dir() and any(folder.iterdir()) for folder in folders.values())


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
    if not folder_of(directory, name).is_dir():
        why = unreadable(directory / name) or "is no folder"
        return [f"model.path: component folder {directory / name} {why}."]
    return []


def _look_for_pickles(part: Component) -> None:
    try:
        part.pickles = sorted(p for p in part.folder.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES)
    except OSError as error:
        if part.folder.is_dir() and not part.problems:
            part.problems.append(f"model.path: {part.folder} cannot be read: {shown(error.strerror)}.")


def _read_scheduler(part: Component, directory: Path, index: Mapping[str, Any]) -> None:
    file = part.folder / "scheduler_config.json"
    try:
        part.config, notes = scheduler_settings(directory, index)
        if part.config != read_json(file):
            part.view.written[file.name] = part.config
        part.notes += notes
    except ModelError as error:
        part.problems.append(str(error))
    if part.folder == directory:
        part.view.only = (file.name,)


def _read_weighted(part: Component, index: Mapping[str, Any], *, allow_pickle: bool, variant: str) -> None:
    """Config, weight files and their headers."""
    part.variant = variant
    try:
        file = part.folder / "config.json"
        stored = read_json(file)
        part.config, notes = repaired_config(part.name, stored, index)
        part.notes += notes
        part.problems += config_problems(file, part.config, part.class_name)
        if (part.folder / "adapter_config.json").exists():
            # transformers would go and load the model that an adapter names instead
            raise ModelError(f"model.path: {part.folder} holds an adapter (adapter_config.json); merge it first.")
        weights = partial(weight_files, part.folder, part=part.name, variant=variant)
        try:
            part.files, part.safe = weights(allow_pickle=allow_pickle)
        except ModelError as refusal:
            if allow_pickle:
                raise
            part.files, part.safe = weights(allow_pickle=True)
            part.pickle_refusal = str(refusal)
        for each in part.files:
            if part.safe:
                check_safetensors(each)
                _add_tensors(part, each)
            else:
                check_pickle(each)
        if part.safe:
            part.problems += _index_mismatch(part, variant)
            _strip_wrappers(part)
        part.view.of_weights(part.files, variant)
        if part.config != stored:
            part.view.written[file.name] = part.config
        if part.folder.name != part.name:
            part.view.only = (file.name,)
    except ModelError as error:
        part.safe = part.safe and not allow_pickle
        part.problems.append(str(error))


def _strip_wrappers(part: Component) -> None:
    """Names of weights that were saved out of a wrapper, of torch.compile or of data parallelism, without it."""
    plain = stripped_names(list(part.tensors))
    if plain is None:
        return
    part.tensors = {plain[name]: tensor for name, tensor in part.tensors.items()}
    part.view.renamed = plain
    one = next(name for name in plain if plain[name] != name)
    part.notes.append(
        f"{part.name}: weights are named as in a wrapper, {shown(one, 60)}, and read as {shown(plain[one], 60)}"
    )


def _read_unused(part: Component) -> None:
    """What a part that is not loaded weighs; nothing that is wrong with it matters."""
    try:
        part.files, part.safe = weight_files(part.folder, part=part.name, allow_pickle=True)
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
    indices = index_files(part.folder, stems(part.name)[0], "safetensors", variant)
    if not indices or (len(part.files) == 1 and part.files[0].name not in read_json(indices[0])["weight_map"].values()):
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


def _is_another(named: object, class_name: str) -> bool:
    """Whether a config is of another class of the library than the one that reads it. A class that nobody knows does not count,
    as little as for diffusers: whether the weights fit is looked at."""
    import diffusers

    if not isinstance(named, str):
        return True
    return hasattr(diffusers, named) and not {named, class_name} <= _ONE_LEGACY_CLASS


def repaired_config(name: str, config: dict[str, Any], index: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A part's config as its pipeline mends it on loading, and notes of that.

    UNets of before diffusers 0.9 say a sample_size of less than 64 and mean 64 (`StableDiffusionPipeline.__init__`).
    """
    found, notes = dict(config), []
    size = found.get("sample_size")
    old = _version(found.get("_diffusers_version")) < (0, 9)
    if name == "unet" and mends(str(index.get("_class_name"))) and old and type(size) is int and size < 64:
        notes.append(f"unet: sample_size is {size} in a config of before diffusers 0.9, which means 64")
        found["sample_size"] = 64
    return found, notes


def _version(text: object) -> tuple[int, ...]:
    """Of a version's first two numbers; of none a late one."""
    match = re.match(r"(\d{1,4})\.(\d{1,4})", text) if isinstance(text, str) else None
    return (int(match[1]), int(match[2])) if match else (99,)


def config_problems(file: Path, config: Mapping[str, Any], class_name: str | None) -> list[str]:
    """What makes a component's config one that cannot be built, or not in any sensible time."""
    named = config.get("_class_name") or class_name
    if isinstance(named, str):  # as diffusers is told by it, whose classes for Flax were of the same configs
        named = named.removeprefix("Flax")
    if class_name is not None and named != class_name and _is_another(named, class_name):
        return [f"model.path: {file} is of class {shown(named)}; model_index.json names {shown(class_name)}."]
    if "transformers_weights" in config:
        return [
            f"model.path: {file} names a file of weights of its own (transformers_weights); accepted are the usual names."
        ]
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
