"""Weight files of a diffusers directory: which there are, whether they are whole and safe, and what they hash to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import ModelError

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(component: Path, *, allow_pickle: bool) -> tuple[list[Path], bool]:
    """The weight files that diffusers or transformers would read from one component's folder, and whether they are safetensors.

    Raises:
        ModelError: none, a missing shard, or only pickles without ``allow_pickle``.
    """
    if not component.is_dir():
        raise ModelError(f"model.path: component folder {component} is missing.")
    for stem in _STEMS:
        index = component / f"{stem}.safetensors.index.json"
        single = component / f"{stem}.safetensors"
        if index.is_file():
            return _shards(index), True
        if single.is_file():
            return [single], True
    pickles = sorted(p for pattern in _PICKLES for p in component.glob(pattern))
    if pickles and allow_pickle:
        return pickles, False
    if pickles:
        raise ModelError(
            f"model.path: {component} has only pickled weights ({pickles[0].name}), which can run code when they are read; "
            "accepted are safetensors, or set model.allow_pickle=true if you trust where they come from."
        )
    raise ModelError(f"model.path: {component} has no weights; accepted is a .safetensors file.")


def check_safetensors(file: Path) -> None:
    """Read a safetensors file's header and compare it with the file's length.

    Raises:
        ModelError: the file is broken.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as handle:
            if not list(handle.keys()):
                raise ModelError(f"model.path: {file} holds no tensors.")
    except (SafetensorError, OSError, ValueError) as error:
        size = file.stat().st_size if file.exists() else 0
        raise ModelError(
            f"model.path: {file} is not a whole safetensors file ({size} bytes): {error}"
        ) from error


def whole(loaded: tuple[Any, Mapping[str, Any]], component: Path) -> Any:
    """The module of ``from_pretrained(..., output_loading_info=True)``, ready for inference.

    Raises:
        ModelError: the files leave weights out. The libraries only log it and go on with random ones.
    """
    module, info = loaded
    if missing := sorted(info.get("missing_keys") or ()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"model.path: the weights in {component} lack {missing[0]}{more}.")
    return module.eval()


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted({str(n) for n in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"model.path: {index} cannot be read as an index of shards: {error}") from error
    files = [index.parent / name for name in names]
    if missing := [f.name for f in files if not f.is_file()]:
        raise ModelError(f"model.path: {index} names {missing[0]}, which is missing.")
    return files
