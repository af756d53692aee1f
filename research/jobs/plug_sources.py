"""The source of the user's own plugs: what a config names by ``_target_`` and is neither the project's nor an installed library's
is a part of the job, by its module and all that this module imports from the user's folders.

Modules are found and read as an import would find them, and none is imported: planning needs no torch. Comments, docstrings,
blank lines and the way in which code is broken into lines make no difference. Files that a plug reads are no source; those that
its arguments name are counted by `research.jobs.identity`.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from research.errors import ConfigError
from research.jobs import live_sources, modules
from research.jobs.modules import Module, absolute, longest_module, module_of, spec_of
from research.jobs.plugins import is_of_plugin
from research.jobs.schema import NOT_IDENTITY
from research.jobs.source_words import words_of

LENGTH = 16  # hex digits that are kept of each hash
_OWN = "research"
# whichever folder they are installed in: a record notes their versions
_LIBRARIES = frozenset(
    (
        "torch",
        "torchvision",
        "torchmetrics",
        "diffusers",
        "transformers",
        "accelerate",
        "safetensors",
        "numpy",
        "scipy",
        "PIL",
    )
)
_INSTALLED = frozenset(("site-packages", "dist-packages"))
_STDLIB = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
# of the modules that this process may have imported: their source when it was last looked at
_seen: dict[str, str] = {}


def targets_of(config: Mapping[str, Any]) -> list[str]:
    """The classes, by their dotted names, that decide a job's images and scores and are not the project's."""
    found = dict.fromkeys(_named({key: value for key, value in config.items() if key not in NOT_IDENTITY}, ""))
    return [name for name in found if name.partition(".")[0] not in (_OWN, *_LIBRARIES)]


def plug_sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Of each class of the user's own that a job names, the hash of its source: `LENGTH` hex digits, by the dotted name.

    Raises:
        ConfigError: a class is not there, or its module is no Python.
    """
    found = {target: source_of(target) for target in sorted(targets_of(config))}
    return {target: digest for target, digest in found.items() if digest is not None}


@lru_cache(maxsize=256)
def source_of(target: str) -> str | None:
    """The hash of the source of a class of the user's own; None of one that is not, but of an installed library.

    A module that this process has imported before and that has changed since is forgotten, so that what runs is what was hashed.

    Raises:
        ConfigError: see `plug_sources`.
    """
    if live_sources.is_live(target):
        return live_sources.digest(target, _of_module)[:LENGTH]
    first, _ = longest_module(target)
    if not _is_users(first):
        return None
    hashes = {name: _source(name) for name in _reached(first)}
    changed = [name for name, now in hashes.items() if name in sys.modules and _seen.get(name, now) != now]
    if changed:
        for name in hashes:
            sys.modules.pop(name, None)
    _seen.update(hashes)
    whole = hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items())).encode())
    return whole.hexdigest()[:LENGTH]


def hash_of_value(value: Any, key: str) -> str:
    """The hash of a value that is there in this process, code and weights included; see `research.jobs.live_sources`.

    Raises:
        ConfigError: it holds something of which that cannot be told.
    """
    return live_sources.digest_of_value(value, _of_module, key)


def _of_module(name: str) -> str | None:
    """The hash of what a name of some module is made of; None of a library's."""
    return source_of(f"{name}.it") if _is_users(name) else None


def forget() -> None:
    """Read sources anew."""
    source_of.cache_clear()
    _source.cache_clear()
    modules.forget()


# -- which classes


def _named(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _named(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, key)
    # a scheduler is named by its class, of diffusers unless it is a dotted name
    elif isinstance(value, str) and "." in value and key in ("_target_", "class_name"):
        yield value


# -- which modules


def _reached(first: str) -> list[str]:
    """A module of the user's and all of theirs that importing it imports: packages around it, and what these import."""
    found: dict[str, None] = {}
    left = [first]
    while left:
        name = left.pop()
        if name in found or not _is_users(name):
            continue
        found[name] = None
        if above := name.rpartition(".")[0]:
            left.append(above)
        if (module := _read(name)) is not None:
            left += _imports(module)
    return list(found)


def _is_users(name: str) -> bool:
    if name.partition(".")[0] in (_OWN, *_LIBRARIES, *sys.builtin_module_names):
        return False
    spec = spec_of(name) if all(part.isidentifier() for part in name.split(".")) else None
    if spec is None:
        return False
    place = _place(spec)
    if place is None:
        return False
    if is_of_plugin(name):  # installed, and as much a part of the job as a file of the user's
        return True
    if _INSTALLED & set(place.parts):
        return False
    return not any(place.is_relative_to(folder) for folder in _STDLIB)


def _place(spec: ModuleSpec) -> Path | None:
    """The file of a module, or the folder of a package without one."""
    if spec.origin and spec.origin not in ("built-in", "frozen", "namespace"):
        return Path(spec.origin).resolve()
    inside = list(spec.submodule_search_locations or ())
    return Path(inside[0]).resolve() if inside else None


def _read(name: str) -> Module | None:
    try:
        return module_of(name)
    except ConfigError:  # its bytes count; whoever imports it will hear what is wrong
        return None


def _imports(module: Module) -> Iterator[str]:
    for node in _run(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = absolute(module, node)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and node.args and _name(node.func) in ("import_module", "__import__"):
            named = node.args[0]
            if isinstance(named, ast.Constant) and isinstance(named.value, str) and not named.value.startswith("."):
                yield named.value


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module less what stands under ``if TYPE_CHECKING``, which never runs."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        yield node
        if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
            left += node.orelse
        else:
            left += ast.iter_child_nodes(node)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


# -- the hash of one


@lru_cache(maxsize=4096)
def _source(name: str) -> str:
    """The hash of a module's source as it is run, the same with all versions of Python; of what is no Python, of its bytes."""
    digest = hashlib.sha256()
    module, spec = _read(name), spec_of(name)
    if module is not None:
        for word in words_of(module.tree):
            digest.update(word.encode("utf-8", "backslashreplace") + b"\0")
    elif spec is not None and (place := _place(spec)) is not None and place.is_file():
        digest.update(place.read_bytes())
    return digest.hexdigest()
