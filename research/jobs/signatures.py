"""The arguments of a class named in a config, read from its source: nothing is imported, so checking a job costs no torch."""

from __future__ import annotations

import ast
import builtins
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from research.arguments import parameters_of
from research.errors import ConfigError, nearest
from research.jobs import live_sources, plug_sources
from research.jobs.modules import Module, absolute, longest_module, module_of, spec_of
from research.jobs.moved_names import current_name

UNKNOWN = object()  # a default that is no literal, or an argument without one


@dataclass(frozen=True)
class Signature:
    """Arguments by name with their defaults (UNKNOWN where the source does not spell one out)."""

    arguments: dict[str, Any] = field(default_factory=dict)
    open_ended: bool = False  # takes any keyword
    required: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Found:
    module: Module
    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@lru_cache(maxsize=512)
def signature(target: str) -> Signature | None:
    """The signature of a dotted name, or None where the source alone does not tell (compiled, or made at run time).

    Raises:
        ConfigError: no such module, or no such name in it.
    """
    if live_sources.is_live(target):
        return _signature_of_live(live_sources.find(target))
    target = current_name(target)
    module_name, module = longest_module(target)
    rest = target[len(module_name) + 1 :].split(".")
    if module is None:
        return None
    found = _find(module, rest[0])
    if found is None and len(rest) > 1 and module.is_package:
        inside = [entry.name for entry in pkgutil.iter_modules(spec_of(module_name).submodule_search_locations)]  # type: ignore[union-attr]
        raise ConfigError(f"_target_: no module '{module_name}.{rest[0]}'.{nearest(rest[0], inside)}")
    return _signature_of(found) if found and len(rest) == 1 else None


@lru_cache(maxsize=512)
def method_arguments(target: str, method: str) -> frozenset[str]:
    """Names of the arguments of a method that the class itself defines; empty where the source does not tell."""
    if live_sources.is_live(target):
        there = getattr(live_sources.find(target), method, None)
        return frozenset(inspect.signature(there).parameters) if there is not None else frozenset()
    target = current_name(target)
    module_name, module = longest_module(target)
    found = _find(module, target[len(module_name) + 1 :]) if module else None
    for item in found.node.body if found else ():
        if isinstance(item, ast.FunctionDef) and item.name == method:
            return frozenset(_of_arguments(item.args, skip_first=True).arguments)
    return frozenset()


@lru_cache(maxsize=512)
def methods_of(target: str) -> frozenset[str] | None:
    """Names that a class and all those above it define; None where the source does not tell, and of what is no class."""
    if live_sources.is_live(target):
        thing = live_sources.find(target)
        return frozenset(dir(thing)) if isinstance(thing, type) else None
    target = current_name(target)
    module_name, module = longest_module(target)
    found = _find(module, target[len(module_name) + 1 :]) if module else None
    return _names_of(found, 0) if found is not None and isinstance(found.node, ast.ClassDef) else None


def _names_of(found: _Found, depth: int) -> frozenset[str] | None:
    assert isinstance(found.node, ast.ClassDef)
    names: set[str] = set()
    for item in found.node.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(item.name)
        elif isinstance(item, ast.Assign | ast.AnnAssign):
            named = item.targets if isinstance(item, ast.Assign) else [item.target]
            names.update(target.id for target in named if isinstance(target, ast.Name))
    for base in found.node.bases:
        if _name_of(base) in ("object", "Protocol", "ABC", "Generic"):
            continue
        above = _find(found.module, base.id) if isinstance(base, ast.Name) and depth < 8 else None
        inherited = _names_of(above, depth + 1) if above and isinstance(above.node, ast.ClassDef) else None
        if inherited is None:
            return None
        names |= inherited
    return None if "__getattr__" in names or found.node.keywords else frozenset(names)


def forget() -> None:
    """Read sources anew: files of the user's change between two calls of the command in one process."""
    plug_sources.forget()
    signature.cache_clear()
    methods_of.cache_clear()
    method_arguments.cache_clear()


# -- names


def _find(module: Module, name: str, depth: int = 0) -> _Found | None:
    """The definition of a name, followed through imports; None where that cannot be told."""
    if depth > 8:
        return None
    names: set[str] = set()
    dynamic = False
    for node in _top_level(module.tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name == name:
                return _Found(module, node)
            dynamic |= node.name == "__getattr__"
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                dynamic |= alias.name == "*"
                if (alias.asname or alias.name) == name:
                    source = module_of(absolute(module, node))
                    return _find(source, alias.name, depth + 1) if source else None
                names.add(alias.asname or alias.name)
        elif isinstance(node, ast.Import):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(t.id for t in targets if isinstance(t, ast.Name))
            dynamic |= "__getattr__" in names
    if dynamic or name in names or hasattr(builtins, name):
        return None
    public = sorted(n for n in names if not n.startswith("_") and n not in ("annotations",))
    raise ConfigError(
        f"_target_: module '{module.name}' has no '{name}'.{nearest(name, public)} It has: {', '.join(public) or 'nothing'}."
    )


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements of a module, those under ``if TYPE_CHECKING`` and ``try`` included."""
    stack: list[ast.stmt] = list(reversed(tree.body))
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, ast.If):
            stack.extend(reversed([*node.body, *node.orelse]))
        elif isinstance(node, ast.Try):
            stack.extend(reversed([*node.body, *(s for h in node.handlers for s in h.body), *node.orelse]))


# -- arguments


def _signature_of(found: _Found, depth: int = 0) -> Signature | None:
    node = found.node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return _of_arguments(node.args, skip_first=False)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _of_arguments(item.args, skip_first=True)
    inherited = _inherited(found, depth)
    if any(_name_of(d) == "dataclass" for d in node.decorator_list):
        return None if inherited is None else _of_fields(node, inherited)
    return inherited


def _signature_of_live(thing: Any) -> Signature | None:
    """Of a class or function that is there, and has no file."""
    arguments = thing if inspect.isroutine(thing) else parameters_of(thing)
    if not isinstance(arguments, dict):
        arguments = None if arguments is None else dict(inspect.signature(arguments).parameters)
    if arguments is None:
        return None
    kinds = inspect.Parameter
    named = {key: each for key, each in arguments.items() if each.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)}
    plain = (bool, int, float, str, type(None), list, tuple, dict)
    return Signature(
        {key: each.default if type(each.default) in plain else UNKNOWN for key, each in named.items()},
        open_ended=any(each.kind is kinds.VAR_KEYWORD for each in arguments.values()),
        required=frozenset(key for key, each in named.items() if each.default is kinds.empty),
    )


def _inherited(found: _Found, depth: int) -> Signature | None:
    assert isinstance(found.node, ast.ClassDef)
    for base in found.node.bases:
        name = _name_of(base)
        if name in ("object", "Protocol", "ABC", "Generic"):
            continue
        if depth > 8 or not isinstance(base, ast.Name):
            return None
        above = _find(found.module, base.id)
        return _signature_of(above, depth + 1) if above else None
    return Signature()


def _of_arguments(args: ast.arguments, *, skip_first: bool) -> Signature:
    positional = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    pairs = [*zip(positional, defaults, strict=True)][1 if skip_first else 0 :]
    pairs += [*zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return Signature(
        {arg.arg: _literal(default) for arg, default in pairs},
        open_ended=args.kwarg is not None,
        required=frozenset(arg.arg for arg, default in pairs if default is None),
    )


def _of_fields(node: ast.ClassDef, inherited: Signature) -> Signature:
    arguments, required = dict(inherited.arguments), set(inherited.required)
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            if "ClassVar" in ast.dump(item.annotation):
                continue
            arguments[item.target.id] = _literal(item.value)
            required.discard(item.target.id)
            if item.value is None:
                required.add(item.target.id)
    return Signature(arguments, inherited.open_ended, frozenset(required))


def _literal(node: ast.expr | None) -> Any:
    try:
        return UNKNOWN if node is None else ast.literal_eval(node)
    except (ValueError, SyntaxError):
        return UNKNOWN


def _name_of(node: ast.expr) -> str:
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
