"""Writing a checkpoint as a diffusers directory: from a single file, or from a directory whose weights are pickled.

The directory is made beside its place under another name, checked, and then moved there, so that it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from research.errors import ConfigError, ModelError
from research.models.convert_original import original_config_directory
from research.models.find_model import find, pipeline_class, read_index
from research.models.inspect.parts import Component, checked_parts, components_of, wanted_parts
from research.models.inspect.safe_files import unreadable
from research.models.inspect_fit import reason
from research.models.single_file import as_safetensors, single_file_config, write_file
from research.models.weights import read_header, stems


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
    found = find(path)
    if found.hub_id is not None:
        raise ModelError(f"model.path: {path!r} is a hub id or does not exist; accepted here is a file or a directory.")
    if found.directory is not None:
        if config is not None or original_config is not None:
            raise ConfigError(f"--config, --original-config: go with a single file; {path} is a directory.")
        parts = _pickled_parts(found.directory, allow_pickle=allow_pickle)
        with _whole_or_not_at_all(target) as scratch:
            _write_directory(found.directory, parts, scratch)
        return target
    assert found.file is not None
    with contextlib.ExitStack() as stack:
        if original_config is not None:
            link, kind = stack.enter_context(as_safetensors(found.file, allow_pickle=allow_pickle))
            directory = stack.enter_context(
                original_config_directory(Path(original_config).expanduser(), tokenizer, read_header(link), kind)
            )
        else:
            directory = stack.enter_context(
                single_file_config(found.file, config, allow_pickle=allow_pickle, offline=offline)
            )
        with _whole_or_not_at_all(target) as scratch:
            write_file(found.file, directory, scratch, allow_pickle=allow_pickle)
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
            save_file(tensors, scratch / part.name / f"{stems(part.folder)[0]}.safetensors", {"format": "pt"})


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
def _whole_or_not_at_all(target: Path) -> Iterator[Path]:
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
        scratch.chmod(0o777 & ~_umask())
        scratch.rename(target)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise ModelError(f"--convert: {target} cannot be written: {error.strerror or error}") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
