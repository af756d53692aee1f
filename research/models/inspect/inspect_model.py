"""`inspect_model`: what a model is and whether it can be loaded safely, found out without loading it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import ModelError
from research.models.inspect.families import PIPELINES, family_of
from research.models.inspect.find_model import (
    Located,
    config_directory,
    find_model,
    index_notes,
    pipeline_class,
    read_index,
)
from research.models.inspect.fit import READ_UNASKED, examine, make_scheduler
from research.models.inspect.fit_file import check_whole, fit_file
from research.models.inspect.hub import cached_directory, is_offline, remote_parts
from research.models.inspect.inspection import ComponentEntry, Inspection, count
from research.models.inspect.kinds import Kind, is_safetensors, kind_of_file, kind_of_folder, kind_of_tensors, look_at
from research.models.inspect.parts import Component, is_whole
from research.models.inspect.pickles import check_pickle, report_pickle
from research.models.inspect.safe_files import read_json, shown
from research.models.inspect.weights import TensorInfo, check_safetensors, first_not_finite, read_header
from research.solvers.names import resolve, scheduler_names

_TASKS = {
    "text": ["text_to_image", "image_to_image", "inpaint", "interpolation", "inversion"],
    "inpaint": ["inpaint"],
    "depth": ["depth_to_image"],
    "pixel": ["unconditional", "interpolation"],
    "classes": ["unconditional"],
}
_TELLING = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "timestep_spacing",
    "rescale_betas_zero_snr",
)


def inspect_model(
    path: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    deep: bool = False,
    offline: bool | None = None,
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
) -> Inspection:
    """Look at a model: a zoo name, a directory, a single file or a hub id. No weight is loaded and no pickle is opened.

    Args:
        config: for a single file, the diffusers directory whose configs it would be opened with.
        deep: look through all weights for values that are not finite, however large they are.
        offline: never use the network. By default as the variable HF_HUB_OFFLINE says.
        revision, variant, subfolder: as of `research.load_model`.

    Whatever is wrong with the model is in the result; nothing is raised for it.
    """
    found = Inspection(path=os.fspath(path) if isinstance(path, str | os.PathLike) else repr(path))
    try:
        place = find_model(path, revision=revision, subfolder=subfolder)
        if place.file is not None:
            _file(found, place.file, config, deep)
        elif place.directory is not None:
            _directory(found, place.directory, deep, variant)
        else:
            _hub(found, place, deep, offline, variant)
    except ModelError as error:
        found.refuse(str(error))
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        found.refuse(f"{type(error).__name__}: {error}")
    found.kind = found.kind if found.what else "missing"
    found.what = found.what or "nothing that can be looked at"
    return found


# -- a directory


def _directory(found: Inspection, directory: Path, deep: bool, variant: str | None) -> None:
    found.location = str(directory)
    index_file = directory / "model_index.json"
    if not index_file.exists() and not index_file.is_symlink():
        kind = kind_of_folder(directory)
        found.kind, found.what = kind.name, kind.what
        _list_pickles(found, sorted(p for p in directory.iterdir() if p.suffix in (".bin", ".ckpt", ".pt", ".pth")))
        read_index(directory)  # raises, with the same words as load_model
    found.kind, found.what = "pipeline", "a directory with a model_index.json"
    index = read_index(directory)
    version = index.get("_diffusers_version")
    made = f", made with diffusers {shown(version, 20)}" if version else ""
    found.pipeline = shown(index["_class_name"])
    found.what = f"a diffusers pipeline, {found.pipeline}{made}"
    examined = examine(directory, variant=variant, deep=deep)
    found.notes += examined.notes
    _pipeline(found, examined.parts, examined.problems, directory)


def _pipeline(found: Inspection, parts: list[Component], problems: list[str], directory: Path) -> None:
    """Everything that can be said of a pipeline whose parts have been looked at."""
    by_name = {part.name: part for part in parts}
    refusals = [part.pickle_refusal for part in parts if part.pickle_refusal]
    supported = family_of(found.pipeline) is not None
    found.components = [_component_entry(part) for part in parts]
    for part in parts:
        _list_pickles(found, part.pickles, read=[] if part.safe else part.files)
    found.pickles.sort(key=lambda each: not each["read"])
    for problem in problems:
        found.refuse(problem)
    for refusal in refusals:
        found.problems.append(shown(refusal.removeprefix("model.path: "), 1000))
    if not found.reason:
        found.verdict = "pickle" if refusals else "safe"
        found.reason = found.problems[0] if refusals else None
    scheduler = by_name.get("scheduler")
    if scheduler is not None and scheduler.config:
        found.scheduler = _described(scheduler.config, scheduler.folder / "scheduler_config.json")
    if supported:
        used = [part for part in parts if part.used]
        _estimate_memory(found, used)
        found.family = PIPELINES[str(found.pipeline)]
        found.role = _role_of({name: part.config for name, part in by_name.items()})
        _fill_fitting(found)


def _component_entry(part: Component) -> ComponentEntry:
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
        "problems": [
            problem.removeprefix("model.path: ") for problem in (*part.problems, part.pickle_refusal) if problem
        ],
    }


# -- the hub


def _hub(found: Inspection, place: Located, deep: bool, offline: bool | None, variant: str | None) -> None:
    assert place.hub is not None
    found.location = str(place.hub)
    cached = cached_directory(place)
    if cached is not None and (is_offline(offline) or is_whole(cached, variant)):
        _directory(found, cached, deep, variant)
        return
    directory, parts = remote_parts(place, offline=offline, variant=variant)
    found.kind, found.pipeline = "pipeline", shown(read_index(directory)["_class_name"])
    found.what = f"a diffusers pipeline on the hub, {found.pipeline}"
    found.notes += index_notes(directory)
    found.notes.append("its weights are not here yet; what is said of them is from their headers")
    problems = [problem for part in parts for problem in part.problems]
    try:
        pipeline_class(directory)
    except ModelError as error:
        problems.insert(0, str(error))
    _pipeline(found, parts, problems, directory)


# -- a single file


def _file(found: Inspection, file: Path, config: str | os.PathLike[str] | None, deep: bool) -> None:
    found.location = str(file)
    if is_safetensors(file):
        found.kind, found.what = "file", "a file that is named safetensors"
        check_safetensors(file)
        _checkpoint(found, file, look_at(file), config, read_header(file))
        _look_through(found, [file], deep)
        return
    kind = look_at(file)
    found.kind, found.what = kind.name, kind.what
    if kind_of_file(file).name == "pickle":
        report = report_pickle(file)
        _list_pickles(found, [file], read=[file])
        if report.problem or report.foreign:
            found.what = (
                f"a pickle, by its strings {kind_of_tensors(dict.fromkeys(report.texts)).what}"
                if report.texts
                else "a pickle"
            )
            check_pickle(file)
        found.what += ", pickled"
    _checkpoint(found, file, kind, config, None)
    if found.verdict == "safe":
        found.verdict, found.reason = "pickle", f"{file} is pickled, which can run code when it is read."
        found.problems.append(str(found.reason))


def _checkpoint(
    found: Inspection,
    file: Path,
    kind: Kind,
    config: str | os.PathLike[str] | None,
    tensors: dict[str, TensorInfo] | None,
) -> None:
    if tensors:
        part = Component("file", None, None, file, True, tensors=tensors)
        found.kind, found.what = kind.name, kind.what
        found.what += f": {len(tensors)} tensors, {count(part.parameters)} parameters, {', '.join(part.dtypes)}"
    checkpoint = kind.checkpoint
    if checkpoint is None:
        raise ModelError(f"model.path: {file} {kind.sentence()}")
    found.verdict, found.family = "safe", checkpoint.original.family
    latent = 4 if checkpoint.original.layout == "ldm-unet" else None
    found.role = {4: "text", 9: "inpaint", 5: "depth"}.get(checkpoint.in_channels or 4) if latent else "text"
    if config is None:
        found.notes += checkpoint.notes if tensors else []
        found.notes.append(
            "its configs and tokenizer stand in no such file: load_model(..., config=DIR) and --config DIR take them from a "
            "diffusers directory of the same kind, otherwise the hub is asked for them"
        )
        if checkpoint.marks.by:
            found.notes.append(f"{checkpoint.marks.by}: heeded, whatever the configs say")
        check_whole(file, kind)
    else:
        directory = config_directory(config)
        fit = fit_file(file, kind, tensors, directory)
        found.notes += fit.notes
        found.warnings += fit.warnings
        found.scheduler = _described(fit.scheduler, directory / "scheduler" / "scheduler_config.json")
    if tensors:
        modules = {at: tensors[at] for _, names in checkpoint.parts.values() for at in names.values()}
        _estimate_memory(found, [Component("file", None, None, file, True, tensors=modules)])
    _fill_fitting(found)


# -- what directories and single files have in common


def _role_of(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What a network's input channels are: "text", "classes" (latents alone), "inpaint", "depth" or "pixel"."""
    if "vae" not in configs:
        return "pixel"
    if "unet" not in configs:  # a transformer, of texts or of classes
        return "text" if "text_encoder" in configs else "classes"
    latent, entry = configs["vae"].get("latent_channels"), configs.get("unet", {}).get("in_channels")
    if not isinstance(latent, int):
        return None
    return {latent: "text", 2 * latent + 1: "inpaint", latent + 1: "depth"}.get(entry or -1)


def _fill_fitting(found: Inspection) -> None:
    """The tasks and schedulers that go with what was found."""
    if found.verdict == "no":
        return
    found.tasks = _TASKS.get(found.role or "", [])
    settings = found.scheduler or {}
    flow = "FlowMatch" in str(settings.get("class_name")) or settings.get("prediction_type") in (
        "flow",
        "flow_prediction",
    )
    # every solver of the project's own runs on flow models too; diffusers' flow classes on no others
    found.schedulers = [n for n in scheduler_names() if flow or "FlowMatch" not in resolve(n).class_name]


def _describe_scheduler(file: Path) -> dict[str, Any] | None:
    try:
        return _described(read_json(file), file)
    except ModelError:
        return None


def _described(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The class and the telling settings, as they are in force (defaults included) where the class is known."""
    settings: dict[str, Any] = dict(config)
    snr = None
    with contextlib.suppress(ModelError):
        scheduler = make_scheduler(config, file)
        settings = {**dict(scheduler.config), **config}
        if (left := getattr(scheduler, "alphas_cumprod", None)) is not None:
            snr = float(left[-1] / (1 - left[-1]))
    flow = "flow" if "FlowMatch" in str(config.get("_class_name")) else "epsilon"
    return {
        "class_name": shown(config.get("_class_name")),
        "prediction_type": shown(settings.get("prediction_type") or flow),
        **{key: settings[key] for key in _TELLING if key in settings},
        "terminal_snr": snr,
        "zero_terminal_snr": None if snr is None else snr < 1e-6,
    }


def _list_pickles(found: Inspection, files: list[Path], read: list[Path] | None = None) -> None:
    """Note pickled files and what they name; ``read`` are those that would be read."""
    root = Path(found.location)
    for file in files:
        report = report_pickle(file)
        found.pickles.append(
            {
                "file": shown(file.relative_to(root) if file != root and root in file.parents else file.name),
                "read": file in (read or []),
                "names": list(report.names),
                "foreign": list(report.foreign),
                "problem": report.problem,
            }
        )


def _estimate_memory(found: Inspection, parts: list[Component]) -> None:
    """The bytes that the weights of parts take, and the bytes that are free."""
    parameters = sum(part.parameters for part in parts)
    if not parameters:
        return
    ram, gpu = _free_memory()
    needed = {"float32": 4 * parameters, "float16": 2 * parameters, "bfloat16": 2 * parameters}
    fits = ram is None or needed["float32"] <= ram
    found.memory = {"parameters": parameters, "bytes": needed, "ram_free": ram, "gpu_free": gpu, "fits": fits}
    if not fits:
        found.warnings.append("the weights in float32 are more than the memory that is free here")


def _look_through(found: Inspection, files: list[Path], deep: bool) -> None:
    """Refuse weights with values that are not finite; large files are looked at only if asked for."""
    if found.verdict == "no" or not (deep or sum(f.stat().st_size for f in files) <= READ_UNASKED):
        return
    for file in files:
        if name := first_not_finite(file):
            found.refuse(
                f"{file}: {shown(name)} has values that are not finite (NaN or infinite), so no picture can come of it."
            )
            return


def _free_memory() -> tuple[int | None, int | None]:
    """Bytes of RAM and of the first GPU that are free; None where that cannot be told."""
    ram = None
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                ram = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    if ram is None and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        ram = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    torch = sys.modules.get("torch")  # not worth importing for this alone
    gpu = int(torch.cuda.mem_get_info()[0]) if torch is not None and torch.cuda.is_available() else None
    return ram, gpu
