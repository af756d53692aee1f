"""Rules of the interfaces that can be looked up without running anything: names of methods, their arguments, what is required,
and returns where assignments are expected."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from research.metrics.base import AdditiveMetric, JobMetric, Metric
from research.samplers.search import Search
from research.sampling.interfaces import Guidance, Hook, Model, Solver, Task
from research.solvers.linear import LinearSolver

Role = Literal["guidance", "hook", "metric", "task", "model", "solver", "linear solver", "sampler"]
Severity = Literal["error", "warning"]

# what models and schedulers may offer, and what a plug may require of them
_OF_MODELS = ("text", "uncond", "latents", "pixels", "class_label", "attention", "network", "word-places")
_OF_SCHEDULERS = ("deterministic", "first-order", "noise-levels", "renoise", "revisits")
REQUIREMENTS = frozenset((*_OF_MODELS, *_OF_SCHEDULERS))
INTERFACES: dict[Role, type] = {
    "guidance": Guidance,
    "hook": Hook,
    "metric": Metric,
    "task": Task,
    "model": Model,
    "solver": Solver,
    "linear solver": LinearSolver,
    "sampler": Search,
}
# points whose hooks change what they are given; what they return goes nowhere
ASSIGNING = ("on_start", "pre_step", "post_guidance", "post_step", "on_end")
_ASSIGNED = {"on_start": "run.x", "on_end": "run.x", "post_guidance": "state.guided"}
_NEAR = 0.8  # of difflib: "combin" and "combine" are at 0.92, "start" and "state" at 0.8
_SECTIONS = re.compile(r"[^a-z]")


@dataclass(frozen=True)
class Finding:
    """A rule that a plug breaks.

    Attributes:
        severity: "error" for what is certainly a fault, "warning" for what most probably is one.
        rule: its name, such as "batch" or "method name".
        place: class and method, with file and line where they are known.
        problem: what was found.
        cure: what to do.
    """

    severity: Severity
    rule: str
    place: str
    problem: str
    cure: str

    def __str__(self) -> str:
        return f"{self.severity} [{self.rule}] {self.place}: {self.problem.rstrip('.')}. {self.cure}"


def role_of(plug: object) -> Role | None:
    """What a plug is, by its class, or else by the methods that it has; None where these do not say."""
    cls = plug if isinstance(plug, type) else type(plug)
    known = (
        ("guidance", Guidance),
        ("hook", Hook),
        ("metric", Metric),
        ("linear solver", LinearSolver),
        ("sampler", Search),
    )
    for role, base in known:
        if issubclass(cls, base):
            return role  # type: ignore[return-value]
    has = {name for name in dir(cls) if callable(getattr(cls, name, None))}
    if "denoiser" in has and "decode" in has:
        return "model"
    if {"step", "timeline"} <= has or {"step", "set_timesteps"} <= has:
        return "solver"
    if {"finish", "conditions"} <= has:
        return "task"
    if "combine" in has and "branches" in has:
        return "guidance"
    if "compute" in has:
        return "metric"
    return "hook" if has & {"pre_step", "post_step", "pre_model", "post_model", "post_guidance"} else None


def static_findings(plug: object, role: Role | None = None) -> list[Finding]:
    """The rules that a plug's class breaks, found in milliseconds and without running it.

    Args:
        plug: an object, or a class.
        role: what it is; by default `role_of` says.
    """
    cls = plug if isinstance(plug, type) else type(plug)
    role = role or role_of(plug)
    if role is None:
        return []
    found = [*_base(cls, role), *_names(cls, role), *_arguments(cls, role), *_requirements(plug, cls, role)]
    if role == "hook":
        found += _returns(cls)
    return found


# -- where


def place_of(owner: object, method: str | None = None) -> str:
    """A class or one of its methods, with file and line where they are known."""
    cls = owner if isinstance(owner, type) else type(owner)
    name = cls.__qualname__ + (f".{method}" if method else "")
    found: Any = cls
    if method is not None:
        found = next((vars(base)[method] for base in cls.__mro__ if method in vars(base)), cls)
    found = getattr(found, "fget", found)
    try:
        file, line = inspect.getsourcefile(found), inspect.getsourcelines(found)[1]
    except (OSError, TypeError):
        return name
    return f"{name} ({Path(str(file)).name}:{line})"


def _own_classes(cls: type) -> Iterator[type]:
    """A class and its ancestors, less the project's and those of libraries."""
    for base in cls.__mro__:
        if is_own(base):
            yield base


def is_own(cls: type) -> bool:
    """Whether a class is neither the project's nor a library's, as far as its module says."""
    first = cls.__module__.partition(".")[0]
    return first not in ("research", "builtins", "typing", "abc", "torch", "diffusers", "transformers")


# -- rules


def _base(cls: type, role: Role) -> Iterator[Finding]:
    base = {"guidance": Guidance, "hook": Hook}.get(role)
    if base is not None and not issubclass(cls, base):
        where = "research.guidance" if role == "guidance" else "research.sampling"
        yield Finding(
            "error",
            "base class",
            place_of(cls),
            f"has the methods of a {role}, and is no subclass of {base.__name__}",
            f"Derive it: class {cls.__name__}({base.__name__}), from {where}.",
        )


def _names(cls: type, role: Role) -> Iterator[Finding]:
    """Methods and attributes that are called almost as the interface's, and that nobody calls."""
    interface = _interface(role)
    own = list(_own_classes(cls))
    # some methods are put into each subclass anew, see `research.sampling.interfaces.not_inherited`
    defined = {
        name for base in own for name, value in vars(base).items() if value is not getattr(INTERFACES[role], name, None)
    }
    source = "\n".join(_text(base) for base in own)
    for base in own:
        for name, value in vars(base).items():
            if name.startswith("_") or name in interface:
                continue
            near = _nearest(name, interface)
            if near is None or re.search(rf"\.{re.escape(name)}\b", source):  # it is used, so it is a name of its own
                continue
            is_method = callable(value)
            if is_method != callable(getattr(INTERFACES[role], near, None)):
                continue
            # a class that has nothing else of the interface does nothing at all
            idle = is_method and not (defined & interface & _methods(role)) and near not in ("check", "requires")
            yield Finding(
                "error" if idle else "warning",
                "method name" if is_method else "attribute name",
                place_of(base, name if is_method else None),
                f"'{name}' is no {'method' if is_method else 'attribute'} of a {role}, so that nobody calls it"
                if is_method
                else f"'{name}' is no attribute of a {role}, so that nobody reads it",
                f"Did you mean '{near}'? If it is a helper of your own, begin its name with an underscore.",
            )


def _interface(role: Role) -> set[str]:
    names = {name for base in INTERFACES[role].__mro__[:-1] for name in vars(base)}
    names |= {name for base in INTERFACES[role].__mro__[:-1] for name in getattr(base, "__annotations__", {})}
    if role == "metric":
        names |= {name for kind in (JobMetric, AdditiveMetric) for name in vars(kind)} | {"name"}
    return {name for name in names if not name.startswith("_")}


def _methods(role: Role) -> set[str]:
    return {name for name in _interface(role) if callable(getattr(INTERFACES[role], name, None))}


def _nearest(name: str, interface: set[str]) -> str | None:
    plain = {_SECTIONS.sub("", each.lower()): each for each in interface}
    found = difflib.get_close_matches(_SECTIONS.sub("", name.lower()), list(plain), n=1, cutoff=_NEAR)
    return plain[found[0]] if found else None


def _text(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return ""


# how the interface's methods are called: positional arguments besides self, and names
_CALLS: dict[Role, dict[str, tuple[int, tuple[str, ...]]]] = {
    "guidance": {
        "check": (2, ()),
        "start": (1, ()),
        "around_model": (2, ()),
        "differentiates": (1, ()),
        "branches": (1, ()),
        "combine": (2, ()),
        "vectorises": (0, ()),
        "with_scale": (1, ()),
        "memory": (0, ()),
        "remember": (1, ()),
    },
    "hook": {
        "check": (2, ()),
        "timeline": (2, ()),
        "around_model": (2, ()),
        "on_start": (1, ()),
        "pre_step": (1, ()),
        "pre_model": (2, ()),
        "post_model": (2, ()),
        "post_guidance": (1, ()),
        "post_step": (1, ()),
        "on_end": (1, ()),
        "pictures": (1, ()),
        "vectorises": (0, ()),
        "memory": (0, ()),
        "remember": (1, ()),
    },
    "metric": {"check": (0, ("n_images",)), "check_job": (1, ()), "compute": (2, ("device",))},
    "task": {
        "claims": (1, ()),
        "seeds": (1, ()),
        "check": (2, ()),
        "prepare": (2, ("parity",)),
        "solver": (1, ()),
        "timeline": (3, ()),
        "conditions": (1, ()),
        "start": (1, ()),
        "hooks": (1, ()),
        "finish": (2, ()),
        "pictures": (1, ()),
    },
    "model": {"denoiser": (1, ()), "decode": (2, ()), "latent_shape": (2, ()), "encode": (3, ())},
    "solver": {},
    "linear solver": {"plan": (1, ()), "update": (2, ()), "orders": (1, ())},
    "sampler": {"search": (1, ()), "steps_of": (1, ()), "check_loop": (3, ())},
}


def _arguments(cls: type, role: Role) -> Iterator[Finding]:
    for base in _own_classes(cls):
        for name, (count, named) in _CALLS[role].items():
            method = vars(base).get(name)
            if not inspect.isfunction(method):
                continue
            try:
                inspect.signature(method).bind(*[None] * (count + 1), **dict.fromkeys(named))
            except TypeError as error:
                wanted = str(inspect.signature(getattr(INTERFACES[role], name))) if role != "solver" else ""
                yield Finding(
                    "error",
                    "arguments",
                    place_of(base, name),
                    f"does not take what it is called with ({error})",
                    f"Its arguments are {_bare(wanted)}.",
                )


def _bare(signature: str) -> str:
    """A signature without annotations."""
    names = re.sub(r":\s*'[^']*'|\s*->.*$|:\s*[^,)]+", "", signature)
    return names if names.startswith("(") else f"({names})"


def _requirements(plug: object, cls: type, role: Role) -> Iterator[Finding]:
    if role not in ("guidance", "hook", "task") or not any("requires" in vars(base) for base in _own_classes(cls)):
        return
    try:
        found: Any = getattr(plug, "requires", frozenset())
    except Exception:  # a property of a class that was not built whole
        return
    if isinstance(found, property):
        return
    place = place_of(cls)
    if isinstance(found, str) or not all(isinstance(each, str) for each in found):
        cure = "Write frozenset({'uncond'}), with the names that models and schedulers offer."
        yield Finding("error", "requires", place, f"requires is {found!r}, which is no set of names", cure)
        return
    for name in sorted(each for each in set(found) - REQUIREMENTS if not each.startswith("predicts:")):
        near = difflib.get_close_matches(name, sorted(REQUIREMENTS), n=1, cutoff=0.5)
        meant = f"Did you mean '{near[0]}'? " if near else ""
        yield Finding(
            "warning",
            "requires",
            place,
            f"requires {name!r}, which no model or scheduler of the project offers",
            f"{meant}Offered are {', '.join(sorted(REQUIREMENTS))} and predicts:KIND.",
        )


def _returns(cls: type) -> Iterator[Finding]:
    """Hooks that return what they were to assign."""
    for base in _own_classes(cls):
        for point in ASSIGNING:
            method = vars(base).get(point)
            if not inspect.isfunction(method) or (tree := _tree(method)) is None:
                continue
            if any(_is_value(node) for node in _inside(tree, ast.Return)):
                yield returned(base, point, assigns=_assigns(tree))


def returned(owner: object, point: str, *, assigns: bool) -> Finding:
    """The finding about a hook's method that returns something where nothing is taken."""
    target = _ASSIGNED.get(point, "state.x")
    return Finding(
        "warning" if assigns else "error",
        "assignment",
        place_of(owner, point),
        "returns a value, which nobody takes" + ("" if assigns else ", and assigns nothing"),
        f"Assign it: {target} = ... ({point} changes what it is given, and returns None).",
    )


def _tree(method: Callable[..., Any]) -> ast.FunctionDef | None:
    try:
        found = ast.parse(textwrap.dedent(inspect.getsource(method))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    return found if isinstance(found, ast.FunctionDef) else None


def _inside(tree: ast.FunctionDef, *kinds: type[ast.AST]) -> Iterator[Any]:
    """Nodes of a function, less those of functions inside it."""
    left: list[ast.AST] = [*tree.body]
    while left:
        node = left.pop()
        if isinstance(node, kinds):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            left += ast.iter_child_nodes(node)


def _is_value(node: ast.Return) -> bool:
    """Whether something is returned, other than None and what the method above returns."""
    value = node.value
    if value is None or (isinstance(value, ast.Constant) and value.value is None):
        return False
    call = value.func if isinstance(value, ast.Call) else None
    above = call.value if isinstance(call, ast.Attribute) else None
    return not (isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.func.id == "super")


def _assigns(tree: ast.FunctionDef) -> bool:
    """Whether an attribute is set, of the state or of the hook itself, or a method is called, which may do so."""
    targets = [
        target
        for node in _inside(tree, ast.Assign, ast.AugAssign, ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    flat = [each for target in targets for each in ast.walk(target)]
    return any(isinstance(node.value, ast.Call) for node in _inside(tree, ast.Expr)) or any(
        isinstance(target, ast.Attribute) for target in flat
    )
