"""`inspect_model`: what a model is and whether it can be loaded safely, found out without loading it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from research.errors import ModelError, nearest
from research.models.find_model import FAMILIES, Located, find, read_index
from research.models.inspect.hub import cached_snapshot, remote_parts
from research.models.inspect.kinds import kind_of_folder
from research.models.inspect.parts import Component, components_of
from research.models.inspect.report import Inspection
from research.models.inspect.safe_files import shown
from research.models.inspect_filled import (
    describe_scheduler,
    estimate_memory,
    fill_fitting,
    list_pickles,
    look_through,
    refuse,
    role_of,
)
from research.models.inspect_single import inspect_file


def inspect_model(
    path: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    deep: bool = False,
    offline: bool | None = None,
) -> Inspection:
    """Look at a model: a zoo name, a directory, a single file or a hub id. No weight is loaded and no pickle is opened.

    Args:
        config: for a single file, the diffusers directory whose configs it would be opened with.
        deep: look through all weights for values that are not finite, however large they are.
        offline: never use the network. By default as the variable HF_HUB_OFFLINE says.

    Whatever is wrong with the model is in the result; nothing is raised for it.
    """
    found = Inspection(path=os.fspath(path) if isinstance(path, str | os.PathLike) else repr(path))
    try:
        place = find(path)
        if place.directory is not None:
            _directory(found, place.directory, deep)
        elif place.file is not None:
            inspect_file(found, place.file, config, deep)
        else:
            _hub(found, place, deep, offline)
    except ModelError as error:
        refuse(found, str(error))
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        refuse(found, f"{type(error).__name__}: {error}")
    found.kind = found.kind if found.what else "missing"
    found.what = found.what or "nothing that can be looked at"
    return found


# -- a directory


def _directory(found: Inspection, directory: Path, deep: bool) -> None:
    found.location = str(directory)
    index_file = directory / "model_index.json"
    if not index_file.exists() and not index_file.is_symlink():
        kind = kind_of_folder(directory)
        found.kind, found.what = kind.name, kind.what
        list_pickles(found, sorted(p for p in directory.iterdir() if p.suffix in (".bin", ".ckpt", ".pt", ".pth")))
        read_index(directory)  # raises, with the same words as load_model
    found.kind, found.what = "pipeline", "a directory with a model_index.json"
    index = read_index(directory)
    version = index.get("_diffusers_version")
    made = f", made with diffusers {shown(version, 20)}" if version else ""
    found.pipeline = shown(index["_class_name"])
    found.what = f"a diffusers pipeline, {found.pipeline}{made}"
    parts = components_of(directory, index, allow_pickle=False)
    _pipeline(found, parts, directory, deep)


def _pipeline(found: Inspection, parts: list[Component], directory: Path, deep: bool | None) -> None:
    """Everything that can be said of a pipeline whose parts have been looked at; ``deep=None`` if its weights are not here."""
    from research.models.inspect_fit import fit_problems

    by_name = {part.name: part for part in parts}
    refusals = [p for part in parts for p in part.problems if "only pickled weights" in p]
    broken = [p for part in parts for p in part.problems if p not in refusals]
    supported = found.pipeline in FAMILIES
    if supported and not broken and deep is not None:
        broken += fit_problems(parts)
    found.components = [_component_dict(part) for part in parts]
    for part in parts:
        list_pickles(found, part.pickles, read=[] if part.safe else part.files)
    found.pickles.sort(key=lambda each: not each["read"])
    if not supported:
        refuse(
            found,
            f"{found.pipeline} is not supported.{nearest(str(found.pipeline), FAMILIES)} "
            f"Accepted: {', '.join(sorted(FAMILIES))}.",
        )
    for problem in broken:
        refuse(found, problem)
    for refusal in refusals:
        found.problems.append(shown(refusal.removeprefix("model.path: "), 1000))
    if not found.reason:
        found.verdict = "pickle" if refusals else "safe"
        found.reason = found.problems[0] if refusals else None
    found.scheduler = describe_scheduler(directory / "scheduler" / "scheduler_config.json")
    if supported:
        used = [part for part in parts if part.used]
        estimate_memory(found, used)
        found.family = FAMILIES[str(found.pipeline)].rpartition(":")[0].rpartition(".")[2].replace("_", "-")
        found.role = role_of({name: part.config for name, part in by_name.items()})
        fill_fitting(found)
        if deep is not None:
            look_through(found, [file for part in used if part.safe for file in part.files], deep)
    if any(part.variant for part in parts):
        found.notes.append(
            "the weights are of one variant, and that is what is loaded, converted to the dtype asked for"
        )


def _component_dict(part: Component) -> dict[str, Any]:
    return {
        "name": shown(part.name),
        "library": part.library and shown(part.library),
        "class_name": part.class_name and shown(part.class_name),
        "used": part.used,
        "variant": part.variant,
        "parameters": part.parameters,
        "bytes": part.nbytes,
        "dtypes": part.dtypes,
        "files": [str(file) for file in part.files],
        "pickled": not part.safe,
        "problems": [problem.removeprefix("model.path: ") for problem in part.problems],
    }


# -- the hub


def _hub(found: Inspection, place: Located, deep: bool, offline: bool | None) -> None:
    hub_id = str(place.hub_id)
    found.location = hub_id
    if (snapshot := cached_snapshot(hub_id)) is not None:
        _directory(found, snapshot, deep)
        return
    directory, parts = remote_parts(hub_id, offline=offline)
    found.kind, found.pipeline = "pipeline", shown(read_index(directory)["_class_name"])
    found.what = f"a diffusers pipeline on the hub, {found.pipeline}"
    found.notes.append("its weights are not here yet; what is said of them is from their headers")
    _pipeline(found, parts, directory, deep=None)
