"""Objects of the classes that a config names.

What the user composes now may name any class. What is read from disk may not: a folder of results may come from a
stranger, and building what it names would run the stranger's code. A config from a record builds the project's own classes
alone, and each only where its role stands in a config (a metric among the metrics, a loss inside a guidance), unless the user
trusts the record or has named the class by hand.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object, instantiate

from research.errors import ConfigError, UserError, nearest
from research.jobs import live_sources
from research.jobs.moved_names import current_name, with_current_names
from research.jobs.plugins import plugin_packages
from research.jobs.roles import ROLES, Role, role_at
from research.jobs.targets import check
from research.package import config_dir
from research.solvers.levels import Schedule
from research.text_files import load_yaml, read_text


@dataclass(frozen=True)
class Origin:
    """Where a config comes from, which decides which classes it may name.

    Attributes:
        record: the file that it was read from, for the message; None for a config that the user composes now.
        trusted: the user vouches for the record: it may name any class, as a composed config may.
        named: dotted names that the user gave by hand, on the command line or in a config folder of theirs.
    """

    record: Path | None = None
    trusted: bool = False
    named: frozenset[str] = frozenset()

    @property
    def is_free(self) -> bool:
        """Whether any class may be built."""
        return self.record is None or self.trusted


COMPOSED = Origin()


_SCHEDULERS = ("research.solvers.", "diffusers.schedulers.")


def names_in(folder: Path) -> frozenset[str]:
    """The classes that the YAML files of a config folder name; a file that cannot be read names none."""
    found: set[str] = set()
    for file in sorted(folder.rglob("*.yaml")):
        try:
            content = load_yaml("config", file, read_text("config", file))
        except UserError:
            continue
        found.update(target for _, target in _targets(content, "") if isinstance(target, str))
    return frozenset(found)


def names_of_plugins() -> frozenset[str]:
    """The classes that the configs of installed plugin packages name: whoever installed them vouches for them."""
    return frozenset().union(*(names_in(plugin.configs) for plugin in plugin_packages()))


def check_names(config: Mapping[str, Any], origin: Origin) -> None:
    """Refuse a config from a record that names a class which is not the project's own for its place. Imports nothing of it.

    Raises:
        ConfigError: one line with the record's file, the key, what it names and what to do.
    """
    if origin.is_free:
        return
    check_model_name(config.get("model") or {}, origin)
    for section, role in ROLES.items():
        node = config.get(section)
        if node is None:
            continue
        rooms = [role.room, *(ROLES[inner].room for inner in role.inside)]
        for key, target in _targets(node, section):
            if section == "metrics":  # whose room costs no torch
                _class_of(target, key, (role,), origin, imports=False)
            elif not _is_named(target, origin) and not _is_in(target, rooms):
                raise _foreign(key, target, role, origin)
    scheduler = config.get("scheduler")
    if isinstance(scheduler, Mapping):
        check_scheduler_name(scheduler.get("class_name"), "scheduler.class_name", origin)


def check_model_name(model: Mapping[str, Any], origin: Origin) -> None:
    """Refuse a model that a record has made by code of somebody's.

    Raises:
        ConfigError: see `check_names`.
    """
    for key, target in _targets(model, "model"):
        if not origin.is_free and not _is_named(target, origin):
            raise _foreign(key, target, Role("model", "", ()), origin)


def check_scheduler_name(class_name: Any, key: str, origin: Origin) -> None:
    """Refuse a scheduler's class that a record names by a path into another package.

    Raises:
        ConfigError: see `check_names`.
    """
    if origin.is_free or class_name is None or _is_named(class_name, origin):
        return
    if not isinstance(class_name, str) or ("." in class_name and not class_name.startswith(_SCHEDULERS)):
        raise _foreign(key, class_name, Role("scheduler", "", ()), origin)


def _targets(value: Any, key: str) -> Iterable[tuple[str, Any]]:
    """Every ``_target_`` in a config with its dotted key. No recursion: a record may be nested without end."""
    left = [(key, value)]
    while left:
        where, node = left.pop()
        if isinstance(node, Mapping):
            left += [(f"{where}.{name}" if where else str(name), inner) for name, inner in node.items()]
            if "_target_" in node:
                yield f"{where}._target_", node["_target_"]
        elif isinstance(node, list):
            left += [(f"{where}[{place}]", inner) for place, inner in enumerate(node)]


def _is_named(target: Any, origin: Origin) -> bool:
    return isinstance(target, str) and target in origin.named


def _is_in(target: Any, rooms: Iterable[str]) -> bool:
    return isinstance(target, str) and any(current_name(target).startswith(f"{room}.") for room in rooms)


def _foreign(key: str, target: Any, role: Role, origin: Origin) -> ConfigError:
    found = target if isinstance(target, str) else repr(target)
    return ConfigError(
        f"{origin.record}: {key}: names {found[:200]}, which is no {role.name} of the project, and a record may name no other "
        "code; if it is your own, give --trust-plugs, or --config-dir with the folder whose configs name it."
    )


def build(node: Mapping[str, Any], key: str, origin: Origin = COMPOSED, /, **arguments: Any) -> Any:
    """The object of a config node with a ``_target_``, with plain lists and dicts as its arguments.

    Args:
        node: the config node; nodes inside it are built first.
        key: where it stands in the config, for the message; it begins with the section, which gives the role.
        origin: where the config comes from.
        arguments: given to the outermost class besides the node's own.

    Raises:
        UserError: the class's own complaint as it is, or one line for any other error of the constructor; or the node comes
            from a record and names what a record may not.
    """
    try:
        if not origin.is_free:
            return _from_record(node, key, ROLES[key.partition(".")[0]], origin, arguments)
        made = _composed(node, arguments)
        role = role_at(key)
        if role is not None and (lacks := role.lacks(dir(made))):
            raise ConfigError(f"{key}._target_: {node.get('_target_')} {lacks}")
        return made
    except UserError:
        raise
    except Exception as error:  # a class of somebody else's may raise anything
        for _, target in _targets(node, key):
            if isinstance(target, str) and live_sources.is_live(target):
                live_sources.find(target)  # says it, should the class be one of another process
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise ConfigError(f"{key}: {node.get('_target_')} cannot be built: {reason}") from error


def _composed(node: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """The object of a node that the user composes now."""
    if (own := _own_class(node)) is not None:
        settings = {name: value for name, value in node.items() if name != "_target_"}
        return _built(own, {**copy.deepcopy(settings), **arguments})
    if not arguments:
        return instantiate(with_current_names(node), _convert_="all")
    # given past Hydra: a prompt may well hold "${", which in a config is an interpolation
    return instantiate({**with_current_names(node), "_partial_": True}, _convert_="all")(**arguments)


class _Failed(Exception):
    """A constructor's error, which is its cause."""


def _from_record(node: Mapping[str, Any], key: str, role: Role, origin: Origin, arguments: Mapping[str, Any]) -> Any:
    """The object of a node from a record, built without Hydra: no interpolation is looked up, no other callable is called."""
    settings: dict[str, Any] = {}
    for name, value in node.items():
        if name != "_target_" and str(name).startswith("_"):
            raise ConfigError(f"{origin.record}: {key}.{name}: is not accepted from a record; --trust-plugs allows it.")
        settings[name] = _argument(value, f"{key}.{name}", role, origin)
    settings.pop("_target_", None)
    return _built(_class_of(node.get("_target_"), f"{key}._target_", (role,), origin), {**settings, **arguments})


def _argument(value: Any, key: str, role: Role, origin: Origin) -> Any:
    if isinstance(value, Mapping) and "_target_" in value:
        inner = [ROLES[name] for name in role.inside] or [role]
        target = value["_target_"]
        _class_of(target, f"{key}._target_", inner, origin)
        fitting = next((one for one in inner if not _is_named(target, origin) and _fits(target, one)), inner[0])
        return _from_record(value, key, fitting, origin, {})
    if isinstance(value, Mapping):
        return {name: _argument(each, f"{key}.{name}", role, origin) for name, each in value.items()}
    if isinstance(value, list):
        return [_argument(each, f"{key}[{place}]", role, origin) for place, each in enumerate(value)]
    return value


def _class_of(target: Any, key: str, roles: Iterable[Role], origin: Origin, *, imports: bool = True) -> Any:
    """The class that a record names, if it may; one of the user's own is not imported with ``imports`` off.

    Raises:
        ConfigError: it is none of the project's for this place, and the user has not named it.
    """
    if _is_named(target, origin):
        if not imports:
            return None
        try:
            return get_object(target)
        except Exception as error:  # a module of the user's own may fail in any way
            raise ConfigError(f"{key}: {target} cannot be imported: {error}") from error
    roles = list(roles)
    for role in roles:
        if (found := _fits(target, role)) is not None:
            return found
    raise _foreign(key, target, roles[0], origin)


def _fits(target: Any, role: Role) -> type | None:
    """The project's class of a name, if it fills the role."""
    if not _is_in(target, [role.room]):
        return None
    module, _, name = current_name(target).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    if not isinstance(found, type) or not found.__module__.startswith(f"{role.room}."):
        return None
    # __call__ is looked for where instances have it: a class itself can always be called
    return found if all(any(method in vars(base) for base in found.__mro__) for method in role.methods) else None


def _built(cls: Any, settings: dict[str, Any]) -> Any:
    try:
        return cls(**settings)
    except UserError:
        raise
    except Exception as error:
        raise _Failed from error


def _own_class(node: Mapping[str, Any]) -> type | None:
    """The project's class that a node names, if there is nothing in the node that only Hydra can build.

    Hydra takes milliseconds a node, most of which go to copying it; a sweep of small jobs notices. Other classes are left
    to Hydra, which refuses some.
    """
    target = node.get("_target_")
    if not isinstance(target, str) or not target.startswith("research.") or _special(node, 0):
        return None
    module, _, name = current_name(target).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    return found if isinstance(found, type) and found.__module__.startswith("research.") else None


def _special(value: Any, depth: int) -> bool:
    """Whether a node has nodes inside, or settings of Hydra's own."""
    if isinstance(value, Mapping):
        own = any(str(key).startswith("_") and (depth or key != "_target_") for key in value)
        return own or any(_special(inner, depth + 1) for inner in value.values())
    return isinstance(value, list) and any(_special(inner, depth + 1) for inner in value)


def sigmas_of(config: Mapping[str, Any], origin: Origin = COMPOSED) -> Schedule | None:
    """The grid of noise levels of a job's config; None leaves them to the model and its scheduler.

    Raises:
        UserError: see `build`.
    """
    node = {key: value for key, value in (config.get("sigmas") or {}).items() if key != "name"}
    found: Schedule | None = build(node, "sigmas", origin) if node else None
    return found


def sigmas_named(name: Any, options: Mapping[str, Any]) -> Schedule | None:
    """The grid of a choice of the group ``sigmas``, with options in the place of the choice's own; a list is the grid of these
    levels.

    Raises:
        ConfigError: no such choice; else see `build`.
    """
    if isinstance(name, list):
        name, options = "list", {"sigmas": name, **options}
    files = {file.stem: file for file in sorted((config_dir() / "sigmas").glob("*.yaml"))}
    if not isinstance(name, str) or name not in files:
        raise ConfigError(
            f"sigmas: found {name!r}.{nearest(str(name), files)} Accepted: {', '.join(files)}, or a list of levels."
        )
    node = {**yaml.safe_load(files[name].read_text(encoding="utf-8")), **options}
    check({key: value for key, value in node.items() if key != "name"}, "sigmas")
    if options and "_target_" not in node:
        raise ConfigError(f"sigmas.{next(iter(options))}: sigmas={name} has no options.")
    return sigmas_of({"sigmas": node})


def sampler_of(config: Mapping[str, Any], origin: Origin = COMPOSED, loop: Any = None) -> Any:
    """The sampler of a job's config around its loop; None for the loop alone.

    Args:
        loop: the `LoopSampler` that makes candidates; None where only the settings are asked.

    Raises:
        UserError: see `build`.
    """
    node = {key: value for key, value in (config.get("sampler") or {}).items() if key != "name"}
    return build(node, "sampler", origin, sampler=loop) if node else None


def guidance_of(config: Mapping[str, Any], origin: Origin = COMPOSED) -> Any:
    """The guidance of a job's config with its modifiers around it, the first of them innermost.

    Raises:
        UserError: see `build`.
    """
    node = dict(config["guidance"])
    modifiers = node.pop("modifiers", None) or {}
    guidance = build(node, "guidance", origin)
    for name, modifier in modifiers.items():
        guidance = build(modifier, f"guidance.modifiers.{name}", origin, guidance=guidance)
    return guidance
