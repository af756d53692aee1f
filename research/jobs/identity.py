"""The identity of a job: a hash of what decides its images and its scores."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from research import pictures
from research.errors import ModelError
from research.jobs import own_model, revisions
from research.jobs.job_images import uses_prompts
from research.jobs.own_scheduler import scheduler_class
from research.jobs.plan_cache import NoCache, PlanCache
from research.jobs.plug_sources import plug_sources, targets_of
from research.jobs.schema import MODEL_IDENTITY, NOT_IDENTITY
from research.jobs.targets import without_defaults
from research.metrics.extractors.find import EFFICIENTNET, INCEPTION, INCEPTION_ANTIALIASED, REFERENCES_DIR
from research.models.inspect.find_model import find_configured, find_pipeline
from research.models.inspect.kinds import look_at
from research.models.lora_files import read_loras
from research.zoo import ZOO_DIR, zoo_path

ID_LENGTH = 12  # hex digits: with a million jobs in one sweep, a collision has a chance of 1 in 500
# what names a file, and not a model or statistics that ship with the project
_LIKE_A_PATH = re.compile(r"[/\\]|\.[A-Za-z0-9]{2,12}$")
_OF_PLUGS = ("sigmas", "guidance", "sampler", "task", "hooks", "metrics")  # sections whose arguments may name files
_PATHS = frozenset(("reference", "model", "features", "classifier", "path", "file", "folder", "directory", "images"))
_LONGEST_PATH = 1024  # characters
_WHOLE = 32 << 20  # files up to this size are hashed whole ...
_PIECES, _PIECE = 32, 256 << 10  # ... and larger ones in so many pieces of so many bytes, spread evenly


def job_id(config: Mapping[str, Any]) -> str:
    """Short hex hash of a validated config: equal for equal meaning.

    The order of keys, ``1`` or ``1.0``, a default said or left out, and the place from which a model is read make no difference;
    nor does where, how fast and how visibly the job runs.
    """
    return job_digest(config)[:ID_LENGTH]


def job_digest(
    config: Mapping[str, Any], cache: PlanCache | None = None, sources: Mapping[str, str] | None = None
) -> str:
    """The whole hash that `job_id` is the beginning of: 64 hex digits, which tell jobs apart that share a short id."""
    canonical = json.dumps(identity(config, cache, sources), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def identity(
    config: Mapping[str, Any], cache: PlanCache | None = None, sources: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What the hash is made of.

    Args:
        config: a validated config.
        cache: shared by the jobs of a plan, so that a section of several jobs is looked at once.
        sources: of the user's own plugs, as `plug_sources` gives them; by default those that are on this disk now.
    """
    cache = NoCache() if cache is None else cache
    if sources is None:
        sources = sources_of(config, cache)
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    model = config["model"]
    kept["model"] = {
        **(
            {"own": own_model.node_of(model)}
            if own_model.is_own(model)
            else {"content": cache.get("content", _place_of(model), lambda: model_content(**_place_of(model)))}
        ),
        # a checkpoint file has its scheduler and tokenizer from there
        **({"config": model_content(model["config"])} if model.get("config") else {}),
        **({} if own_model.is_own(model) else _marks(model)),
        "dtype": _DTYPES.get(model["dtype"], model["dtype"]),
        **({"variant": model["variant"]} if model.get("variant") is not None else {}),
        **_weights_changed(model),
        **{key: model[key] for key in MODEL_IDENTITY if model.get(key) is not None},
    }
    # the short name of a scheduler is a name for its class and options
    kept["scheduler"] = {key: value for key, value in config["scheduler"].items() if key != "name"}
    if "class_name" in kept["scheduler"]:  # the model's own is that of its class, where that is known
        kept["scheduler"]["class_name"] = cache.get(
            "scheduler class", [config["model"], config["scheduler"]["class_name"]], lambda: scheduler_class(config)
        )
    if levels := {key: value for key, value in (config.get("sigmas") or {}).items() if key != "name"}:
        kept["sigmas"] = levels
    else:  # the model's own are what they were before there was such a key
        kept.pop("sigmas", None)
    if sampler := {key: value for key, value in (config.get("sampler") or {}).items() if key != "name"}:
        kept["sampler"] = sampler
    else:  # jobs of the loop alone are what they were before there was such a key
        kept.pop("sampler", None)
    if revisions.of_levels(config):
        kept["scheduler"]["revision"] = 2
    kept["guidance"] = _in_order(config["guidance"])
    kept["runtime"] = {"parity": config["runtime"].get("parity", False)}
    if revisions.of_round_trip(config):
        kept["task"] = {**config["task"], "revision": 2}
    asked = {
        key: config[key] for key in ("model", "scheduler", "task", "guidance", "hooks", "runtime") if key in config
    }
    if more := cache.get("revisions", asked, lambda: revisions.of_runs(config)):
        kept["revisions"] = more
    if sources:  # jobs of the project's classes alone are what they were before there was such a key
        kept["plug sources"] = dict(sources)
    if not cache.get("prompts", [model, config["task"]], lambda: uses_prompts(config)):
        kept.pop("prompts")
    return {key: cache.get(f"canonical {key}", value, partial(_section, key, value)) for key, value in kept.items()}


def _weights_changed(model: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's settings those that change its weights or its decoder, where they say something: LoRAs by content."""
    found: dict[str, Any] = {}
    if loras := read_loras(model.get("loras"), offline=model.get("offline")):
        found["loras"] = [{"content": f"sha256:{_file_hash(lora.path).hex()}", "weight": lora.weight} for lora in loras]
    if (quantize := model.get("quantize") or "none") != "none":
        found["quantize"] = quantize
    if model.get("vae_tiling"):
        found["vae_tiling"] = True
    return found


def _marks(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint file says of how it was trained, which was not heeded at first."""
    file = find_configured(model).file
    checkpoint = look_at(file).checkpoint if file is not None else None
    if checkpoint is None or not (checkpoint.marks.prediction_type or checkpoint.marks.zero_terminal_snr):
        return {}
    return {"marks": [checkpoint.marks.prediction_type, checkpoint.marks.zero_terminal_snr]}


def sources_of(config: Mapping[str, Any], cache: PlanCache | None = None) -> dict[str, str]:
    """The sources of the user's own plugs that a job names, see `plug_sources`."""
    cache = NoCache() if cache is None else cache
    found = cache.get("plug sources", targets_of(config), lambda: plug_sources(config))
    model = config.get("model") or {}
    if not own_model.is_own(model):
        return found
    return {
        **found,
        model["_target_"]: cache.get("own model", own_model.node_of(model), lambda: own_model.digest(model)),
    }


def settings_digest(config: Mapping[str, Any]) -> str:
    """A hash of the settings as they are written: equal for jobs that differ in nothing but what their files and plugs hold."""
    kept = {key: value for key, value in config.items() if key not in (*NOT_IDENTITY, "runtime")}
    kept["parity"] = bool((config.get("runtime") or {}).get("parity"))
    return hashlib.sha256(json.dumps(_as_written(kept), sort_keys=True, default=str).encode()).hexdigest()


def _as_written(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_written(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_written(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _section(key: str, value: Any) -> Any:
    found = canonical({key: value})[key]
    # once defaults are left out, which are names and not contents
    if key == "guidance":
        found = _by_content(found, key)
    if key == "model" and "own" in found:
        return {**found, "own": _files_by_content(found["own"], key)}
    return _files_by_content(found, key) if key in _OF_PLUGS else found


def _files_by_content(value: Any, key: str) -> Any:
    """The arguments of plugs with files and folders as what is in them: statistics, pictures, a model of one's own."""
    if isinstance(value, dict):
        return {name: inner if name == "_target_" else _files_by_content(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_files_by_content(inner, key) for inner in value]
    if not isinstance(value, str) or "\0" in value or len(value) > _LONGEST_PATH:
        return value
    # a bare word is a path only where paths are asked for, and where it names nothing that ships with the project
    if not _LIKE_A_PATH.search(value) and (key not in _PATHS or value in _shipped()):
        return value
    place = Path(value).expanduser()
    if place.is_file():
        return f"sha256:{_file_hash(place).hex()}"
    if not place.is_dir():
        return value
    # strings and one look a file: a reference may have tens of thousands, and each job of a plan asks
    found, root = [], os.path.join(place, "")
    for folder, _, names in os.walk(place):
        for file in (os.path.join(folder, name) for name in names):
            if os.path.isfile(file):
                stat = os.stat(file)
                found.append((file[len(root) :].replace(os.sep, "/"), file, stat.st_size, stat.st_mtime_ns))
    return f"folder:{_hash_of(tuple((name, Path(file), size, time) for name, file, size, time in sorted(found)))}"


@lru_cache(maxsize=1)
def _shipped() -> frozenset[str]:
    """Bare names that mean what comes with the project, whatever folders there are."""
    references = (file.stem for file in REFERENCES_DIR.glob("*.safetensors"))
    return frozenset(
        (
            INCEPTION,
            INCEPTION_ANTIALIASED,
            EFFICIENTNET,
            *references,
            *(p.name for p in ZOO_DIR.iterdir() if zoo_path(p.name)),
        )
    )


def _in_order(guidance: Mapping[str, Any]) -> dict[str, Any]:
    """The modifiers as a list: their order counts, and their names do not."""
    found = dict(guidance)
    if modifiers := found.pop("modifiers", None):
        found["modifiers"] = list(modifiers.values())
    return found


def _by_content(value: Any, key: str) -> Any:
    """Further models that a section names by path, as what is in them."""
    if isinstance(value, list):
        return [_by_content(inner, f"{key}[{place}]") for place, inner in enumerate(value)]
    if isinstance(value, dict):
        return {name: _by_content(inner, f"{key}.{name}") for name, inner in value.items()}
    if not key.endswith(".model") or not isinstance(value, str):
        return value
    try:
        return model_content(value)
    except ModelError as error:
        raise ModelError(str(error).replace("model.path", key, 1)) from error


_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def canonical(value: Any, where: str = "") -> Any:
    """A config value, that of the key ``where``, with one form for each meaning. A picture is what is in its file."""
    if isinstance(value, Mapping):
        node, inside = without_defaults(dict(value)), f"{where}." if where else ""
        room, _, name = str(node.get("_target_", "")).rpartition(".")
        if room.startswith("research.") and name in revisions.OF_CLASSES:
            node["revision"] = revisions.OF_CLASSES[name]
        return {
            str(key): (_picture if key in pictures.KEYS else canonical)(inner, f"{inside}{key}")
            for key, inner in sorted(node.items(), key=lambda item: str(item[0]))
        }
    if isinstance(value, list | tuple):
        return [canonical(inner, where) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _picture(value: Any, where: str) -> Any:
    if isinstance(value, list | tuple):
        return [_picture(inner, where) for inner in value]
    if not isinstance(value, str):
        return canonical(value, where)
    return f"sha256:{hashlib.sha256(pictures.find(where, value).read_bytes()).hexdigest()}"


def _place_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """Where a config's model is."""
    return {key: model[key] for key in ("path", "revision", "subfolder") if model.get(key) is not None}


def model_content(path: str, *, revision: str | None = None, subfolder: str | None = None) -> str:
    """A model by its content if it is on this disk, wherever it lies, and by its name and revision on the hub otherwise."""
    found = find_pipeline(path, revision=revision, subfolder=subfolder)
    if found.file is not None:
        return f"sha256:{_file_hash(found.file).hex()}"
    if found.directory is None:
        return f"hub:{found.hub}{'/' if found.subfolder else ''}{found.subfolder or ''}"
    return f"sha256:{_folder_hash(found.directory.resolve())}"


def _folder_hash(folder: Path) -> str:
    # components may be links to those of another model
    files = [
        file
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if (file := Path(place, name)).is_file() and file.suffix in (".json", ".txt", ".safetensors", ".bin", ".model")
    ]
    named = sorted((file.relative_to(folder).as_posix(), file, file.stat()) for file in files)
    return _hash_of(tuple((name, file, stat.st_size, stat.st_mtime_ns) for name, file, stat in named))


@lru_cache(maxsize=64)
def _hash_of(files: tuple[tuple[str, Path, int, int], ...]) -> str:
    """Of names and contents; files are read again when size or time of modification is another."""
    digest = hashlib.sha256()
    for name, file, size, _ in files:
        digest.update(f"{name}\0{size}\0".encode())
        digest.update(_file_hash(file))
    return digest.hexdigest()


def _file_hash(file: Path) -> bytes:
    """Of a large file only pieces count: gigabytes need not be read to tell two checkpoints apart."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as stream:
        if size <= _WHOLE:
            return hashlib.sha256(stream.read()).digest()
        for piece in range(_PIECES):
            stream.seek(piece * (size - _PIECE) // (_PIECES - 1))
            digest.update(stream.read(_PIECE))
    return digest.digest()
