"""What a single file is: a checkpoint that can be opened with configs, or something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from research.errors import ModelError
from research.models.inspect.kinds import CLIP, UNET, VAE, Kind, kind_of_file, kind_of_tensors
from research.models.inspect.parts import Component
from research.models.inspect.pickles import check_pickle, report_pickle
from research.models.inspect.report import Inspection, count
from research.models.inspect.safe_files import sniff
from research.models.inspect_filled import describe_scheduler, estimate_memory, fill_fitting, list_pickles, look_through
from research.models.weights import TensorInfo, check_safetensors, read_header


def inspect_file(found: Inspection, file: Path, config: Any, deep: bool) -> None:
    found.location = str(file)
    if sniff(file) == "safetensors" or file.suffix == ".safetensors":
        found.kind, found.what = "file", "a file that is named safetensors"
        check_safetensors(file)
        tensors = read_header(file)
        _checkpoint(found, kind_of_tensors(tensors), config, tensors)
        look_through(found, [file], deep)
        return
    kind = kind_of_file(file)
    found.kind, found.what = kind.name, kind.what
    if kind.name != "pickle":
        raise ModelError(f"model.path: {file} {kind.sentence()}")
    report = report_pickle(file)
    list_pickles(found, [file], read=[file])
    inside = kind_of_tensors(dict.fromkeys(report.texts))
    if report.problem or report.foreign:
        found.what = f"a pickle, by its strings {inside.what}" if report.texts else "a pickle"
        check_pickle(file)
    _checkpoint(found, inside, config, None)
    found.what += ", pickled"
    if found.verdict == "safe":
        found.verdict, found.reason = "pickle", f"{file} is pickled, which can run code when it is read."
        found.problems.append(str(found.reason))


def _checkpoint(found: Inspection, kind: Kind, config: Any, tensors: dict[str, TensorInfo] | None) -> None:
    found.kind, found.what = kind.name, kind.what
    if tensors:
        part = Component("file", None, None, Path(found.location), True, tensors=tensors)
        found.what += f": {len(tensors)} tensors, {count(part.parameters)} parameters, {', '.join(part.dtypes)}"
    if not kind.loads:
        raise ModelError(f"model.path: {found.location} {kind.sentence()}")
    found.verdict, found.family = "safe", "unet-text"
    found.role = {4: "text", 9: "inpaint", 5: "depth"}.get(kind.in_channels or 4)
    if config is None:
        found.notes.append(
            "its configs and tokenizer stand in no such file: load_model(..., config=DIR) and --config DIR take them from a "
            "diffusers directory of the same kind, otherwise the hub is asked for them"
        )
    else:
        _with_config(found, config, tensors)
    if tensors:
        modules = {k: t for k, t in tensors.items() if k.startswith((UNET, *VAE, CLIP.partition(".")[0]))}
        estimate_memory(found, [Component("file", None, None, Path(found.location), True, tensors=modules)])
    fill_fitting(found)


def _with_config(found: Inspection, config: Any, tensors: dict[str, TensorInfo] | None) -> None:
    from research.models.inspect_fit import size_problem
    from research.models.single_file import check_config, config_directory

    directory = config_directory(config)
    check_config(directory)
    found.scheduler = describe_scheduler(directory / "scheduler" / "scheduler_config.json")
    if tensors and (problem := size_problem(Path(found.location), tensors, directory)):
        raise ModelError(problem)
