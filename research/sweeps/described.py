"""Objects as overrides: what ``guidance=CFG(3)`` in Python is on the command line.

A sweep that is asked for in Python becomes points made of overrides, as a command line does, so that jobs have the same configs,
ids, folders and records, and either side goes on where the other stopped. Where a choice of a group stands for an object's class
(``guidance=cfg``) the choice is named; other classes are named by ``_target_``, those of a notebook as ``__main__.Name``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from research.arguments import arguments_of, parameters_of, short
from research.errors import ConfigError
from research.jobs import given_models, live_sources
from research.jobs.plug_sources import LENGTH, hash_of_value
from research.jobs.point_files import written
from research.package import config_dir

Row = tuple[str, ...]  # the overrides that one value of an axis takes
GIVEN = "given"  # folder of pictures that were handed over as objects, in the sweep's
_ROOMS = (
    "research.guidance",
    "research.guidance.losses",
    "research.hooks",
    "research.sigmas",
    "research.metrics",
    "research.tasks",
)
_CLASS_NAME = re.compile(r"^[A-Z]\w+$|\.")


class Described:
    """Writes values as overrides.

    Args:
        folder: of the sweep; pictures are kept in its folder ``given``, by their content.
        groups: config groups with their choices.
    """

    def __init__(self, folder: Path, groups: Mapping[str, Sequence[str]]):
        self.folder, self.groups = folder, groups
        self.models: list[Any] = []  # loaded ones, that need not be loaded again
        self._kept: list[Path] = []

    def take_back(self) -> None:
        """Remove the pictures that were written, as nothing is going to be run."""
        for file in self._kept:
            file.unlink(missing_ok=True)
        for place in (self.folder / GIVEN, self.folder):
            if self._kept and place.is_dir() and not any(place.iterdir()):
                place.rmdir()

    # -- values of the groups

    def model(self, value: Any) -> Row:
        """A name, a path or a hub id; a loaded model; a function that makes one."""
        if isinstance(value, str | os.PathLike):
            name = os.fspath(value)
            return (
                (f"model={name}",) if name in self.groups["model"] else ("model=custom", f"model.path={written(name)}")
            )
        if isinstance(value, functools.partial) or inspect.isroutine(value) or isinstance(value, type):
            node = self.node(value, "model")
            node.pop("_partial_")
            target = node.pop("_target_")
            return ("model=own", f"model._target_={target}", *self._each("model", node))
        if not hasattr(value, "solvers") or not hasattr(value, "denoiser"):
            raise ConfigError(
                f"model: found {short(value)}; accepted is a name, a path, a hub id, a loaded model, or a function "
                "that makes one."
            )
        loaded = getattr(value, "loaded_with", None)
        if loaded is None:
            return self._given(value)
        if loaded[1] != value.weights_stamp():
            raise ConfigError(
                f"model: the weights of {value.name} were changed after it was loaded, and a sweep is known by its files; "
                "accepted is a model that is saved and loaded again, or a function that makes it."
            )
        self.models.append(value)
        defaults = {name: each.default for name, each in inspect.signature(_load_model()).parameters.items()}
        settings = {key: each for key, each in loaded[0].items() if key != "path" and each != defaults[key]}
        for key in ("dtype", "device"):
            if key in settings:
                settings[key] = str(settings[key]).removeprefix("torch.")
        if str(settings.get("device", "auto")) != "auto" or value.device.type != _usual_device():
            settings["device"] = str(value.device)
        return (*self.model(loaded[0]["path"]), *self._each("model", self.plain(settings, "model")))

    def _given(self, model: Any) -> Row:
        """A model that no file holds: known by what it is made of."""
        digest = hash_of_value(_made_of(model), "model")[: 2 * LENGTH]
        given_models.keep(digest, model)
        text = "text" in model.supports
        lines = ["model=own", f"model._target_={given_models.TARGET}", f"model.digest={digest}"]
        lines += [f"model.path={written(str(model.name))}", f"model.device={model.device}"]
        return (*lines, *(["task=text_to_image", "guidance=cfg"] if text else []))

    def scheduler(self, value: Any) -> Row:
        """A name, a class name, a class, or an object of diffusers or of `LinearSolver`."""
        if isinstance(value, str):
            if value not in self.groups["scheduler"] and _CLASS_NAME.search(value):
                return ("scheduler=custom", f"scheduler.class_name={value}")
            return (f"scheduler={value}",)
        cls, options = (value, {}) if isinstance(value, type) else (type(value), self._options(value))
        name = self.target(cls, "scheduler")
        if name.startswith("diffusers."):
            name = cls.__name__
        for choice, node in _choices("scheduler"):
            if node.get("class_name") == name and (node.get("options") or {}) == options:
                return (f"scheduler={choice}",)
        more = () if not options else (f"scheduler.options={written(options)}",)
        return ("scheduler=custom", f"scheduler.class_name={name}", f"scheduler.name={cls.__name__}", *more)

    def _options(self, value: Any) -> dict[str, Any]:
        config = getattr(value, "config", None)
        if config is None:
            return dict(self._arguments(value, "scheduler"))
        names = parameters_of(type(value)) or {}
        return {
            key: self.plain(each, f"scheduler.options.{key}")
            for key, each in dict(config).items()
            if key in names and each is not None
        }

    def sigmas(self, value: Any) -> Row:
        """A name, an object with ``levels``, or a list of levels."""
        if isinstance(value, str):
            return (f"sigmas={value}",)
        if isinstance(value, list | tuple) or hasattr(value, "tolist"):
            return (f"sigmas={written(self.plain(value, 'sigmas'))}",)
        return self._object("sigmas", value, base="model")

    def guidance(self, value: Any) -> Row:
        """A name, or a guidance with modifiers around it."""
        if isinstance(value, str):
            return (f"guidance={value}",)
        from research.guidance.modifier import Modifier

        modifiers: dict[str, Any] = {}
        while isinstance(value, Modifier):
            node = self.node(value, "guidance.modifiers", without="guidance")
            name = self._name("guidance/modifiers", value, node, modifiers)
            modifiers = {name: node, **modifiers}  # the innermost first
            value = value.guidance
        lines = self._object("guidance", value, base="none")
        return (*lines, *(f"guidance.modifiers.{name}={written(node)}" for name, node in modifiers.items()))

    def task(self, value: Any) -> Row:
        """A name, or a task; its sentences are the job's prompts."""
        if isinstance(value, str):
            return (f"task={value}",)
        arguments = self._arguments(value, "task")
        prompts = arguments.pop("prompt", None)
        lines = self._object("task", value, base="text_to_image", arguments=arguments)
        if prompts is None:
            return lines
        return (*lines, f"prompts={written(self.plain([prompts] if isinstance(prompts, str) else prompts, 'prompts'))}")

    def hooks(self, value: Any) -> Row:
        return self._several("hooks", value)

    def metrics(self, value: Any) -> Row:
        return self._several("metrics", value)

    def _several(self, group: str, value: Any) -> Row:
        """Names and objects that go together."""
        each = list(value) if isinstance(value, list | tuple) else [value]
        names = [one for one in each if isinstance(one, str)]
        found: dict[str, Any] = {}
        for one in each:
            if not isinstance(one, str):
                node = self.node(one, group)
                found[self._name(group, one, node, {**dict.fromkeys(names), **found})] = node
        chosen = (names[0] if len(names) == 1 else f"[{','.join(names)}]") if names else "none"
        return (f"{group}={chosen}", *(f"{group}.{name}={written(node)}" for name, node in found.items()))

    def prompts(self, value: Any) -> Row:
        """Sentences, one or several."""
        each = [value] if isinstance(value, str) else list(value)
        for place, one in enumerate(each):
            if not isinstance(one, str):
                raise ConfigError(f"prompts[{place}]: found {short(one)}; accepted is a sentence.")
        return (f"prompts={written(self.plain(each, 'prompts'))}",)

    def setting(self, key: str, value: Any) -> Row:
        """The value of any key of the command line."""
        return (f"{key}={value if key in self.groups and isinstance(value, str) else written(self.plain(value, key))}",)

    # -- objects

    def _object(self, group: str, value: Any, *, base: str, arguments: Mapping[str, Any] | None = None) -> Row:
        """A section that is one object: the choice of its class where there is one, and its arguments."""
        given = self._arguments(value, group) if arguments is None else dict(arguments)
        cls = type(value)
        node = {name: self.plain(each, f"{group}.{name}") for name, each in given.items()}
        for choice, usual in _choices(group):
            written_down = {key: each for key, each in usual.items() if key not in ("_target_", "name")}
            if _class_of(usual.get("_target_")) is not cls or _nested([node, written_down]):
                continue
            defaults = {name: each.default for name, each in (parameters_of(cls) or {}).items()}
            whole = {**{key: defaults.get(key) for key in written_down}, **node}
            if any(whole[key] is inspect.Parameter.empty for key in written_down):
                continue
            changed = {key: each for key, each in whole.items() if key not in written_down or written_down[key] != each}
            return (f"{group}={choice}", *self._each(group, changed))
        return (f"{group}={base}", f"{group}._target_={self.target(cls, group)}", *self._each(group, node))

    def _each(self, key: str, node: Mapping[str, Any]) -> Row:
        return tuple(f"{key}.{name}={written(value)}" for name, value in node.items())

    def node(self, value: Any, key: str, *, without: str | None = None) -> dict[str, Any]:
        """An object, or a function, as a config node with ``_target_``."""
        if isinstance(value, functools.partial):
            if value.args:
                raise ConfigError(f"{key}: found a partial with arguments by place; accepted are arguments by name.")
            inner = self.plain(value.keywords, key)
            return {"_target_": self.target(value.func, key), **inner, "_partial_": True}
        if inspect.isroutine(value) or isinstance(value, type):
            return {"_target_": self.target(value, key), "_partial_": True}
        arguments = self._arguments(value, key)
        if without is not None:
            arguments.pop(without, None)
        inner = {name: self.plain(each, f"{key}.{name}") for name, each in arguments.items()}
        return {"_target_": self.target(type(value), key), **inner}

    def _arguments(self, value: Any, key: str) -> dict[str, Any]:
        found = arguments_of(value)
        if found is None:
            raise ConfigError(
                f"{key}: it cannot be told how {short(value)} was made; accepted are plugs that keep the arguments of their "
                "constructor as attributes of the same names, or derive from the project's bases."
            )
        return dict(found)

    def target(self, thing: Any, key: str) -> str:
        """The dotted name of a class or function."""
        module, name = str(getattr(thing, "__module__", None)), getattr(thing, "__qualname__", "")
        if module == live_sources.MAIN:
            return live_sources.register(thing, key)
        for room in _ROOMS:
            if module.startswith(f"{room}.") and getattr(importlib.import_module(room), name, None) is thing:
                return f"{room}.{name}"
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if "." in name or found is None or getattr(found, "__qualname__", None) != name:
            raise ConfigError(
                f"{key}: found {name or short(thing)}, which cannot be imported by a name; accepted is what stands at the top of "
                "a cell, a script or a module."
            )
        return f"{module}.{name}"

    def plain(self, value: Any, key: str) -> Any:
        """A value as a config holds it."""
        if isinstance(value, str):
            if value == "???":
                raise ConfigError(f"{key}: found '???', which a config takes for a value that is missing.")
            return re.sub(r"(\\*)\$\{", lambda found: f"{2 * found[1]}\\${{", str(value))  # no interpolation
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, Mapping):
            return {str(name): self.plain(each, f"{key}.{name}") for name, each in value.items()}
        if isinstance(value, list | tuple | range):
            return [self.plain(each, f"{key}[{place}]") for place, each in enumerate(value)]
        if hasattr(value, "getbands"):
            return self._picture(value)
        if hasattr(value, "tolist"):  # an array or a tensor
            if getattr(value, "ndim", 0) == 0:
                return value.item()
            if value.ndim == 1 and len(value) <= 1000:
                return value.tolist()
            raise ConfigError(
                f"{key}: found {short(value)}; accepted in a sweep are numbers, text, lists, PIL images and files, from which "
                "a job can be made again."
            )
        if callable(value) and (inspect.isroutine(value) or isinstance(value, type | functools.partial)):
            return self.node(value, key)
        if arguments_of(value) is None or type(value).__module__ == "builtins":
            raise ConfigError(
                f"{key}: found {short(value)}; accepted are numbers, text, lists, PIL images, and objects of classes."
            )
        return self.node(value, key)

    def _picture(self, image: Any) -> str:
        """A picture as a file of the sweep's, named by what is in it."""
        digest = hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()[:LENGTH]
        file = self.folder / GIVEN / f"{digest}.png"
        if not file.is_file():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
            except OSError as error:
                file.unlink(missing_ok=True)
                raise ConfigError(f"output_dir: {file} cannot be written: {error}.") from error
            self._kept.append(file)
        return str(file)

    def _name(self, group: str, value: Any, node: Mapping[str, Any], taken: Iterable[str]) -> str:
        """What an object is called among others: as the choice of its class calls it, else by its class."""
        inner = (
            str((node.get("transform") or {}).get("_target_", "")) if isinstance(node.get("transform"), dict) else ""
        )
        found = None
        for _, entries in _choices(group):
            for name, usual in entries.items():
                alike = isinstance(usual, dict) and _class_of(usual.get("_target_")) is type(value)
                if alike and (usual.get("transform") or {}).get("_target_", "") in ("", inner):
                    found = found or name
        name = found or re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(value).__name__).lower()
        taken, number = set(taken), 2
        while (unique := name if number == 2 and name not in taken else f"{name}_{number}") in taken:
            number += 1
        return unique


@lru_cache(maxsize=16)
def _choices(group: str) -> list[tuple[str, dict[str, Any]]]:
    """The project's choices of a group that are a file of their own."""
    found = []
    for file in sorted((config_dir() / group).glob("*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        if isinstance(content, dict) and "defaults" not in content:
            found.append((file.stem, content))
    return found


@lru_cache(maxsize=512)
def _class_of(target: Any) -> Any:
    if not isinstance(target, str) or not target.startswith("research."):
        return None
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name, None)


def _nested(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_nested, value.values()))
    return isinstance(value, list) and any(map(_nested, value))


def _load_model() -> Callable[..., Any]:
    from research.models.load import load_model

    return load_model


@lru_cache(maxsize=1)
def _usual_device() -> str:
    from research.models.load import resolve_dtype_and_device

    return resolve_dtype_and_device("auto", "auto")[1].type


def _made_of(model: Any) -> dict[str, Any]:
    """What decides what a model does: its settings, its code, and its weights as they are now."""
    network = model.network
    call = vars(network).get("call")
    if call is None:  # of a checkpoint, whose weights were hashed when they were read
        chosen = {
            name: getattr(model, name, None) for name in ("distilled_guidance", "max_length", "size_conditioning")
        }
        about = {"scheduler": dict(model.scheduler_config), "dtype": str(model.dtype), "chosen": chosen}
        return {"class": type(model), "weights": model.weights_sha256, **about}
    from research.models.own.network import weights_hash

    # the callable itself, and not what `research.models.wrap` puts around it, which keeps notes of its own
    around = [getattr(vars(model).get(name), "call", vars(model).get(name)) for name in ("_decode", "_encode", "_text")]
    model.weights_sha256 = weights_hash([call, *(part for part in around if part is not None)])
    settings = {
        name: getattr(model, name) for name in ("predicts", "own_shape", "n_classes", "told", "scaling", "extent")
    }
    levels = {name: getattr(model.levels, name) for name in ("config", "trained", "grid")}
    return {"network": call, "around": around, "settings": settings, "levels": levels, "dtype": str(model.dtype)}
