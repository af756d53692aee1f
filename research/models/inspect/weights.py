"""Weight files of a diffusers directory: which there are, whether they are whole, safe and finite. Needs no torch."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from research.errors import ModelError
from research.models.inspect.safe_files import described, read_json, shown, sniff, unreadable

HEADER_LIMIT = 100_000_000  # bytes; what the safetensors library accepts
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# bits of the dtypes of the format
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
_CHUNK = 16 << 20  # bytes
# of the dtypes that numpy does not know: the type of the same size, and the bits that are all set in NaN and infinity
_NOT_FINITE_BITS = {"BF16": ("<u2", 0x7F80), "F8_E5M2": ("u1", 0x7C), "F8_E4M3": ("u1", 0x7F)}
_NUMPY_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_WRAPPER, _PARALLEL = "._orig_mod.", "module."
_TRANSFORMERS = re.compile(r"text_encoder|image_encoder|safety_checker|depth_estimator")
# tensors that checkpoints carry and their modules no longer have, or have in another class of the same weights
_HARMLESS = re.compile(r"position_ids$|^text_projection\.weight$|^logit_scale$|^vision_model\.|^visual_projection\.")


_LAYER = re.compile(r"(?:^|\.)(?:layers|block)\.(\d+)\.")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as a safetensors header names it; ``start`` counts from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def stems(part: str) -> tuple[str, str]:
    """The names, less the ending, under which a part's safetensors and its pickles are read."""
    if _TRANSFORMERS.match(part):
        return "model", "pytorch_model"
    return "diffusion_pytorch_model", "diffusion_pytorch_model"


def variants(component: Path, part: str | None = None, *, pickled: bool = False) -> set[str]:
    """The variants of weights there are in the folder of a part: "" for plain names, "fp16" for ``model.fp16.safetensors``."""
    of_part = stems(part or component.name)
    stem, ending = (of_part[1], "bin") if pickled else (of_part[0], "safetensors")
    pattern = _name_pattern(stem, ending)
    found = (pattern.fullmatch(p.name) for p in component.iterdir())
    return {m["a"] or m["b"] or m["c"] or "" for m in found if m}


def plain_name(part: str, name: str) -> str | None:
    """A weight file's (or index's) name without its variant, None for a file of another kind. Shards keep the name that their
    index says."""
    for stem, ending in zip(stems(part), ("safetensors", "bin"), strict=True):
        if match := _name_pattern(stem, ending).fullmatch(name):
            return name if match["shard"] else f"{stem}.{ending}{'.index.json' * bool(match['index'])}"
    return None


def _name_pattern(stem: str, ending: str) -> re.Pattern[str]:
    """Weight files and their index, with the variant in any of the places where the libraries have put it."""
    return re.compile(
        rf"{stem}(?:\.(?P<a>[\w-]+?))?(?P<shard>-\d{{5}}-of-\d{{5}})?(?:\.(?P<b>\w+))?\.{ending}"
        r"(?P<index>\.index(?:\.(?P<c>\w+))?\.json)?"
    )


def weight_files(
    component: Path, *, allow_pickle: bool, variant: str = "", part: str | None = None
) -> tuple[list[Path], bool]:
    """The weight files that diffusers or transformers would read from one component's folder, and whether they are safetensors.

    Where one file and an index of shards lie side by side, transformers reads the file and diffusers the shards.

    Args:
        part: the component's name, where its folder is not called so.

    Raises:
        ModelError: none, a missing shard, or only pickles without ``allow_pickle``.
    """
    if not component.is_dir():
        raise ModelError(f"model.path: component folder {component} is missing.")
    name = part or component.name
    safe_stem, pickle_stem = stems(name)
    for stem, ending, safe in ((safe_stem, "safetensors", True), (pickle_stem, "bin", False)):
        single = component / f"{stem}{'.' * bool(variant)}{variant}.{ending}"
        indices = index_files(component, stem, ending, variant)
        if _there(single) and (_TRANSFORMERS.match(name) or not indices):
            files = [single]
        else:
            files = _shards(indices[0], ending) if indices else []
        if not files:
            continue
        if not safe and not allow_pickle:
            raise ModelError(
                f"model.path: {component} has only pickled weights ({files[0].name}), which can run code when they are read; "
                "accepted are safetensors, or set model.allow_pickle=true if you trust where they come from."
            )
        return files, safe
    raise ModelError(_no_weights(component, variant, name))


def stripped_names(names: Sequence[str]) -> dict[str, str] | None:
    """Tensor names without what wrappers put into them: torch.compile ``_orig_mod.`` wherever it compiled, and data parallelism
    ``module.`` before all of them. None where there is nothing of the kind, or two names would become one."""
    found = {name: f".{name}".replace(_WRAPPER, ".")[1:] for name in names}
    while found and all(plain.startswith(_PARALLEL) for plain in found.values()):
        found = {name: f".{plain.removeprefix(_PARALLEL)}".replace(_WRAPPER, ".")[1:] for name, plain in found.items()}
    changed = any(name != plain for name, plain in found.items())
    return found if changed and len(set(found.values())) == len(found) else None


def write_renamed(file: Path, names: Mapping[str, str], target: Path) -> None:
    """Write a safetensors file with other names for its tensors, and the same bytes."""
    with file.open("rb") as source, target.open("wb") as copy:
        length = int.from_bytes(source.read(8), "little")
        header = json.loads(source.read(length))
        renamed = json.dumps({names.get(name, name): entry for name, entry in header.items()}).encode()
        renamed += b" " * (-len(renamed) % 8)  # tensors begin at a multiple of 8 bytes
        copy.write(len(renamed).to_bytes(8, "little") + renamed)
        shutil.copyfileobj(source, copy, _CHUNK)


def index_files(component: Path, stem: str, ending: str, variant: str = "") -> list[Path]:
    """The index of shards of a component, under either of the names that are in use for a variant."""
    names = [f"{stem}.{ending}.index.json"]
    if variant:
        names = [f"{stem}.{ending}.index.{variant}.json", f"{stem}.{variant}.{ending}.index.json"]
    return [component / name for name in names if _there(component / name)]


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, from its header alone, which is compared with the file's length.

    Raises:
        ModelError: it is no safetensors file, or a broken one.
    """
    return _header(file)[0]


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself in its header, see `read_header`."""
    return _header(file)[1]


def _header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    if why := unreadable(file):
        raise ModelError(f"model.path: {file} {why}.")
    size = file.stat().st_size
    broken = f"model.path: {file} is not a whole safetensors file ({size} bytes): "
    if (kind := sniff(file)) not in ("safetensors", "unknown", "text"):
        raise ModelError(f"{broken}it {described(file) if kind != 'pickle' else 'is a pickle'}.")
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise ModelError(f"{broken}its header is said to have {length} bytes.")
        if length > HEADER_LIMIT:
            raise ModelError(f"{broken}its header has {length} bytes, more than {HEADER_LIMIT}.")
        raw = stream.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError(f"found a {type(header).__name__}")
        tensors = {name: _tensor(name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
        _check_places(tensors, 8 + length, size)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else shown(error)
        raise ModelError(f"{broken}header: {what}.") from error
    if not tensors:
        raise ModelError(f"model.path: {file} holds no tensors.")
    metadata = header.get("__metadata__")
    said = metadata.items() if isinstance(metadata, dict) else ()
    return tensors, {str(key): value for key, value in said if isinstance(value, str)}


def check_safetensors(file: Path) -> None:
    """Read a safetensors file's header and compare it with the file's length, here and by the library that will load it.

    Raises:
        ModelError: the file is broken.
    """
    from safetensors import SafetensorError, safe_open

    read_header(file)
    try:
        with safe_open(file, framework="numpy") as handle:
            handle.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"model.path: {file} is not a whole safetensors file ({file.stat().st_size} bytes): {shown(error)}"
        ) from error


def first_not_finite(file: Path) -> str | None:
    """The first tensor of a whole safetensors file with a value that is NaN or infinite."""
    import numpy as np

    for name, tensor in read_header(file).items():
        dtype, bits = _NOT_FINITE_BITS.get(tensor.dtype, (_NUMPY_DTYPES.get(tensor.dtype), 0))
        if dtype is None or not tensor.nbytes:
            continue
        values = np.memmap(file, dtype=np.uint8, mode="r", offset=tensor.start, shape=(tensor.nbytes,))
        for start in range(0, tensor.nbytes, _CHUNK):
            piece = np.frombuffer(values[start : start + _CHUNK].tobytes(), dtype=dtype)
            if bits and ((piece & bits) == bits).any():
                return name
            if not bits and not np.isfinite(piece).all():
                return name
    return None


def loaded_module(loaded: tuple[Any, Mapping[str, Any]], component: Path) -> Any:
    """The module of ``from_pretrained(..., output_loading_info=True)``, ready for inference.

    Raises:
        ModelError: the files leave weights out, or hold some that the module has no place for. The libraries only log it,
            and go on with random or without them.
    """
    module, info = loaded
    if problem := misfit(info, component, module):
        raise ModelError(problem)
    return module.eval()


def surplus_layers(info: Mapping[str, Any], module: Any) -> set[str]:
    """Of tensors that a text encoder has no place for, those of layers above the last that its config says: who skips layers of
    CLIP writes it so."""
    kept = getattr(module.config, "num_hidden_layers", None)
    found = {key: _LAYER.search(key) for key in info.get("unexpected_keys") or ()}
    return {key for key, match in found.items() if match and isinstance(kept, int) and int(match[1]) >= kept}


def misfit(info: Mapping[str, Any], component: Path, module: Any) -> str | None:
    """What of a component's weights does not fit its config, from the libraries' loading info."""
    if wrong := sorted(info.get("mismatched_keys") or ()):
        name, found, wanted = wrong[0]
        return (
            f"model.path: the weights in {component} do not fit its config.json: {shown(name)} has shape "
            f"{list(found)}, accepted {list(wanted)}{_more(wrong)}."
        )
    if missing := sorted(info.get("missing_keys") or ()):
        return f"model.path: the weights in {component} lack {shown(missing[0])}{_more(missing)}."
    surplus = surplus_layers(info, module) if component.name.startswith("text_encoder") else set()
    strange = sorted(set(info.get("unexpected_keys") or ()) - surplus)
    strange = [key for key in strange if not _HARMLESS.search(key)]
    if strange:
        return (
            f"model.path: the weights in {component} do not fit its config.json: there is no place for "
            f"{shown(strange[0])}{_more(strange)}."
        )
    return None


def _more(found: Sequence[object]) -> str:
    return f" and {len(found) - 1} more" if len(found) > 1 else ""


def _there(file: Path) -> bool:
    return file.is_symlink() or file.exists()


def _no_weights(component: Path, variant: str, part: str) -> str:
    stem = stems(part)[0]
    inside = sorted(p.name for p in component.iterdir() if p.suffix in (".safetensors", ".gguf", *PICKLE_SUFFIXES))
    found = f" (found {shown(', '.join(inside[:4]))})" if inside else ""
    wanted = f"{stem}{'.' * bool(variant)}{variant}.safetensors"
    return f"model.path: {component} has no weights{found}; accepted is a .safetensors file, {wanted}."


def _shards(index: Path, ending: str) -> list[Path]:
    try:
        names = set(read_json(index)["weight_map"].values())
        if not names or not all(isinstance(n, str) for n in names):
            raise TypeError("weight_map names no files")
    except ModelError as error:
        raise ModelError(f"{error} It should be an index of shards.") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"model.path: {index} cannot be read as an index of shards: {error}") from error
    for name in sorted(names):
        # the libraries join whatever stands there to the folder, and choose how to read it by its ending
        if Path(name).name != name or not name.endswith(f".{ending}"):
            raise ModelError(
                f"model.path: {index} names {shown(name)!r}; accepted are .{ending} files of the same folder."
            )
    files = [index.parent / name for name in sorted(names)]
    if missing := [f.name for f in files if not f.is_file()]:
        raise ModelError(f"model.path: {index} names {shown(missing[0])}, which is missing.")
    return files


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} stands there twice")
    return dict(pairs)


def _tensor(name: str, entry: object, base: int) -> TensorInfo:
    def whole_numbers(values: object) -> TypeGuard[list[int]]:
        return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)

    if not isinstance(entry, dict) or not whole_numbers(entry.get("shape")):
        raise ValueError(f"{name!r} has no shape")
    places = entry.get("data_offsets")
    if not whole_numbers(places) or len(places) != 2 or places[0] > places[1]:
        raise ValueError(f"{name!r} has impossible data_offsets {places}")
    if entry.get("dtype") not in BITS:
        raise ValueError(f"{name!r} has an unknown dtype {entry.get('dtype')!r}")
    bits = math.prod(entry["shape"]) * BITS[entry["dtype"]]
    if bits != 8 * (places[1] - places[0]):
        raise ValueError(f"{name!r} has {places[1] - places[0]} bytes, its shape {entry['shape']} needs {bits // 8}")
    return TensorInfo(entry["dtype"], tuple(entry["shape"]), base + places[0], places[1] - places[0])


def _check_places(tensors: Mapping[str, TensorInfo], start: int, size: int) -> None:
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if tensor.start != end:
            raise ValueError(f"{name!r} {'overlaps' if tensor.start < end else 'leaves a gap to'} the tensor before it")
        end += tensor.nbytes
    if end != size:
        raise ValueError(f"its tensors end at byte {end}")
