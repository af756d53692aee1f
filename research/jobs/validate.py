"""Checks of a composed job. They run for every job of a sweep before the first one starts, and import no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from research import pictures
from research.checks import check_choice, check_number, check_whole_number
from research.errors import ConfigError, nearest
from research.jobs import own_model, process_cache
from research.jobs.asked_prompts import OF_PROMPTS, one_job
from research.jobs.job_images import check_frames, image_count, makes_frames, uses_prompts
from research.jobs.other_names import said_otherwise
from research.jobs.own_scheduler import strength_rule
from research.jobs.plan_cache import NoCache, PlanCache
from research.jobs.preflight import check_mapping, check_metrics, check_model, check_plug_configs
from research.jobs.record import ModelSettings, RuntimeSettings
from research.jobs.schema import (
    DTYPES,
    KEYS,
    OF_SWEEPS,
    OFFLOAD,
    ON_FAILURE,
    PROGRESS,
    QUANTIZE,
    RETRY,
    SECTIONS,
    VECTORISE,
)
from research.models.lora_files import read_loras
from research.tasks.checks import check_settings

_DEVICE = re.compile(r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$")
_FOLDER = re.compile(r"^[^/\\\0]+$")
_LARGEST_SEED = 2**63 - 1
_MOST_LEVELS = 60  # a record holds some more
# keys of sections that every job is asked for
_NEEDED = {"model": ("dtype", "device", "allow_pickle", "offline"), "runtime": ("parity", "threads")}


def validate(
    config: Mapping[str, Any], *, extra_keys: Collection[str] = (), cache: PlanCache | None = None
) -> dict[str, Any]:
    """The config with numbers in their proper type (``steps=10.0`` is 10), less what belongs to the sweep and to no job.

    Args:
        config: as `Composer.job` gives it.
        extra_keys: top-level keys accepted besides the project's, those of groups that a user added.
        cache: shared by the jobs of a plan, so that what they have in common is checked once.

    Raises:
        ConfigError: one line with the key, what was found and what is accepted.
    """
    cache = NoCache() if cache is None else cache
    from_file = config.get("prompts_file")
    config = one_job(config)
    config = _with_defaults({**config, "scheduler": _scheduler(config.get("scheduler"))})
    _check_keys(config, extra_keys)
    checked = dict(config)
    for section in (*OF_SWEEPS, *OF_PROMPTS):
        checked.pop(section, None)
    if checked.get("seeds") is None:  # jobs without are what they were before there was such a key
        checked.pop("seeds", None)
    readers: dict[str, Callable[[str, Any], Any]] = {**_READERS}
    readers["model.loras"] = partial(_loras, offline=(config.get("model") or {}).get("offline"))
    for key, read in readers.items():
        section, _, name = key.rpartition(".")
        if not section:
            checked[key] = read(key, checked.get(key))
        elif name in checked[section]:
            checked[section] = {**checked[section], name: read(key, checked[section][name])}
    _check_values(checked, "")
    pictures.limit_pixels(checked["runtime"].get("max_pixels", pictures.MOST_PIXELS))
    check_plug_configs(checked, cache)
    model, task, steps = checked["model"], checked["task"], checked["steps"]
    parity = checked["runtime"].get("parity", False)
    about = (
        [task, steps, model] if parity else [task, steps]
    )  # with parity the model's pipeline counts the steps of a strength
    cache.get("settings", about, lambda: _check_task(checked))
    n_images = _count(checked, cache)
    if from_file is not None and not uses_prompts(checked):
        raise ConfigError(f"prompts_file: found {from_file!r} with a task that takes no prompts; accepted is null.")
    if checked["seed"] + n_images > _LARGEST_SEED:
        raise ConfigError(
            f"seed: found {checked['seed']} for {n_images} images; accepted are seeds up to {_LARGEST_SEED}."
        )
    if "seeds" in checked:
        _check_seeds(checked)
    cache.get("model", [model, checked["scheduler"]["options"], task, steps], lambda: check_model(checked))
    about = [checked[key] for key in ("metrics", "task", "scheduler", "prompts", "steps", "sampler")]
    cache.get("metrics", [about, n_images], lambda: check_metrics(checked["metrics"], n_images, checked))
    # its constructor checks its settings, and is cheap by contract
    cache.get("tracker", checked["tracker"], lambda: process_cache.tracker(checked["tracker"]))
    return checked


def _check_task(config: Mapping[str, Any]) -> None:
    rule = strength_rule(config) or {"parity": True, "flow": True}  # what that refuses is refused whatever the model is
    check_settings(config["task"], config["steps"], **rule)


def _count(config: Mapping[str, Any], cache: PlanCache) -> int:
    def count() -> int:
        if not config["prompts"] and uses_prompts(config):
            raise ConfigError(
                "prompts: found an empty list; accepted is a list of one or more sentences, 'prompts=[a red fox,a blue bird]', "
                "or a prompt_set."
            )
        check_frames(config)
        return image_count(config)

    about = [config["model"]["path"], config["task"], len(config["prompts"]), config["images_per_prompt"]]
    return cache.get("images", about, count)


def _check_seeds(config: dict[str, Any]) -> None:
    """Check that there is a seed a prompt, and make them whole numbers."""
    given, each = config["seeds"], config["images_per_prompt"]
    if not isinstance(given, list):
        raise ConfigError(f"seeds: found {given!r}; accepted is a list with a seed a prompt, or null.")
    if makes_frames(config) or not uses_prompts(config):
        raise ConfigError(
            "seeds: found with a task that has no image a prompt; accepted is seed, which the images count from."
        )
    if len(given) != len(config["prompts"]):
        raise ConfigError(f"seeds: found {len(given)} for {len(config['prompts'])} prompts; accepted is one a prompt.")
    config["seeds"] = [
        check_whole_number(f"seeds[{k}]", seed, most=_LARGEST_SEED - each, integral_float=True)
        for k, seed in enumerate(given)
    ]


# -- keys


def _check_keys(config: Mapping[str, Any], extra_keys: Collection[str]) -> None:
    for key in config:
        if key not in KEYS and key not in extra_keys:
            hint = said_otherwise(key) or nearest(key, KEYS)
            raise ConfigError(f"{key}: unknown key.{hint} Accepted: {', '.join(KEYS)}.")
    # a deleted ~tracker or ~metrics says none of it
    optional = ("sigmas", "sampler", "hooks", "metrics", "tracker", "seeds", *OF_PROMPTS, *OF_SWEEPS)
    if missing := [key for key in KEYS if key not in config and key not in optional]:
        raise ConfigError(f"{missing[0]}: is missing from the config; it must be given.")
    for section, names in SECTIONS.items():
        check_mapping(section, config[section])
        if section == "model" and not config[section].get("path"):
            raise ConfigError("model.path: must be given: a zoo name, a directory, a checkpoint file, or a hub id.")
        if section == "model" and own_model.is_own(config[section]):
            continue  # the arguments of the user's own function
        for name in config[section]:
            if name not in names:
                hint = said_otherwise(str(name)) or nearest(name, names)
                raise ConfigError(f"{section}.{name}: unknown key.{hint} Accepted: {', '.join(names)}.")


def _scheduler(section: Any) -> Any:
    """The section of a solver of one's own, ``_target_`` with its arguments beside it, in the keys that records have."""
    if not isinstance(section, Mapping):
        return section
    if "_target_" not in section:
        named = {**section, "options": {} if section.get("options") is None else section["options"]}
        named.setdefault("name", section.get("class_name"))
        if named["name"] is not None and not isinstance(named["name"], str):
            raise ConfigError(f"scheduler.name: found {named['name']!r}; accepted is text.")
        return named
    if section.get("class_name"):
        raise ConfigError(
            f"scheduler._target_: found beside class_name={section['class_name']}; accepted is one of the two. A solver of one's "
            "own is a file conf/scheduler/NAME.yaml with _target_, or scheduler=custom scheduler.class_name=MODULE.CLASS."
        )
    target = section["_target_"]
    arguments = {
        key: value for key, value in section.items() if key not in ("_target_", "name", "options", "class_name")
    }
    options = {**(section.get("options") or {}), **arguments}
    return {"name": section.get("name") or str(target).rpartition(".")[2], "class_name": target, "options": options}


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """With the keys that a section of fixed keys lacks, as in a YAML of the user's own, or deleted, at their defaults."""
    for section, defaults in (("model", ModelSettings), ("runtime", RuntimeSettings)):
        if isinstance(config.get(section), dict):
            whole = {field.name: field.default for field in msgspec.structs.fields(defaults)}
            lacking = {name: whole[name] for name in _NEEDED[section] if name not in config[section]}
            if isinstance(config[section].get("_target_"), str) and "path" not in config[section]:
                lacking["path"] = config[section]["_target_"]
            config[section] = {**config[section], **lacking}
    return config


def _check_values(value: Any, key: str, depth: int = 0) -> None:
    """Refuse what no config can keep: NaN, half letters, keys that cannot be sorted, and what is nested too deep."""
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{key}: found NaN; accepted is a number.")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{key}: found {value!a}, with half a letter of UTF-16; accepted is text in UTF-8.")
    if depth > _MOST_LEVELS:
        raise ConfigError(f"{key}: is nested deeper than {_MOST_LEVELS} levels; accepted are so many.")
    if isinstance(value, dict) and len({isinstance(name, str) for name in value}) > 1:
        raise ConfigError(
            f"{key}: found the keys {', '.join(map(repr, value))}; accepted are keys of one kind, all text or all numbers."
        )
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        place = f"[{name}]" if isinstance(value, list) else f".{name}"
        _check_values(inner, f"{key}{place}".lstrip("."), depth + 1)


# -- values


def _whole(least: int, *words: str | None) -> Callable[[str, Any], Any]:
    others = " or ".join("null" if word is None else word for word in words)

    def read(key: str, value: Any) -> Any:
        if (value is None and None in words) or (isinstance(value, str) and value in words):
            return value
        return check_whole_number(key, value, least=least, integral_float=True, otherwise=others)

    return read


def _seconds(least: float) -> Callable[[str, Any], Any]:
    def read(key: str, value: Any) -> Any:
        check_number(key, value, least=least, noun="a number of seconds")
        return value  # as it was given, 60 or 60.0: it is a part of the job's record

    return read


def _number_or_none(key: str, value: Any) -> Any:
    return value if value is None else check_number(key, value, otherwise="null")


def _mapping_or_none(key: str, value: Any) -> Any:
    if value:  # what stands in it is checked with the model
        check_mapping(key, value)
    return value or None


def _loras(key: str, value: Any, *, offline: Any = None) -> Any:
    """With each path as it was given, which is a part of the job's record."""
    found = read_loras(value, offline=offline)
    named = [
        {"weight_name": each["weight_name"]} if isinstance(each, Mapping) and each.get("weight_name") else {}
        for each in value or []
    ]
    return [
        {"path": str(each["path"]), "weight": lora.weight, **name}
        for each, lora, name in zip(value or [], found, named, strict=True)
    ] or None


def _one_of(choices: Sequence[Any]) -> Callable[[str, Any], Any]:
    return partial(check_choice, choices=choices)


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ConfigError(f"{key}: found {value!r}; accepted is text that is not empty.")
    return str(value)


def _text_or_none(key: str, value: Any) -> str | None:
    return None if value is None else _text(key, value)


def _folder(key: str, value: Any) -> str:
    name = _text(key, value)
    if not _FOLDER.match(name) or name in (".", ".."):
        raise ConfigError(f"{key}: found {name!r}; accepted is the name of one folder, without slashes.")
    return name


def _device(key: str, value: Any) -> str:
    if not isinstance(value, str) or not _DEVICE.match(value):
        raise ConfigError(f"{key}: found {value!r}; accepted: auto, cpu, cuda, cuda:N, mps, xpu.")
    return value


def _prompts(key: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ConfigError(
            f"{key}: found {value!r}; accepted is a list of sentences: 'prompts=[a red fox,a blue bird]'."
        )
    for place, prompt in enumerate(value):
        if not isinstance(prompt, str):
            raise ConfigError(
                f"{key}[{place}]: found {prompt!r}, which is no text; put it in quotes if it is a sentence."
            )
    return value


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "steps": _whole(1),
    "seed": _whole(0),
    "images_per_prompt": _whole(1),
    "batch_size": _whole(1, "auto"),
    "prompts": _prompts,
    "output_dir": _text,
    "sweep_name": _folder,
    "on_failure": _one_of(ON_FAILURE),
    "resume": _one_of((True, False)),
    "retry": _one_of(RETRY),
    "model.path": _text,
    "model.config": _text_or_none,
    "model.dtype": _one_of(DTYPES),
    "model.device": _device,
    "model.allow_pickle": _one_of((True, False)),
    "model.offline": _one_of((True, False, None)),
    "model.revision": _text_or_none,
    "model.variant": _text_or_none,
    "model.subfolder": _text_or_none,
    "model.attention_slicing": _whole(1, "auto", "max", None),
    "model.compile": _one_of((True, False)),
    "model.channels_last": _one_of((True, False)),
    "model.loras": _loras,
    "model.quantize": _one_of(QUANTIZE),
    "model.offload": _one_of(OFFLOAD),
    "model.drop_text_encoders": _one_of((True, False)),
    "model.vae_tiling": _one_of((True, False)),
    "model.vae_slicing": _one_of((True, False)),
    "model.distilled_guidance": _number_or_none,
    "model.max_sequence_length": _whole(1, None),
    "model.size_conditioning": _mapping_or_none,
    "runtime.threads": _whole(1, None),
    "runtime.progress": _one_of(PROGRESS),
    "runtime.parity": _one_of((True, False)),
    "runtime.vectorise": _one_of(VECTORISE),
    "runtime.claim_timeout": _seconds(1),
    "runtime.grace": _seconds(0),
    "runtime.workers": _whole(1, "auto"),
    "runtime.repeats": _whole(0),
    "runtime.max_pixels": _whole(1),
    "runtime.latency": _whole(0),
}
