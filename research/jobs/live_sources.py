"""The source of classes and functions that a notebook, or a script that is run, defines itself: what ``__main__`` has.

Such a class is known by what it is made of and by no file: its own source (of the cell where it was defined last), that of the
notebook's functions and classes that it uses, and the values of the notebook's variables that it uses. A cell that has nothing
to do with it makes no difference, and neither does the place of its own.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import inspect
import linecache
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from research.arguments import arguments_of
from research.errors import ConfigError
from research.jobs.source_words import words_of

MAIN = "__main__"
OfModule = Callable[[str], "str | None"]
_live: dict[str, Any] = {}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), range)
_LONGEST = 200  # characters of a repr that is taken for the whole of a value


def register(thing: Any, key: str) -> str:
    """The dotted name of a class or function of ``__main__``, which is looked up from now on.

    Args:
        key: what the message names.

    Raises:
        ConfigError: it cannot be found again by a name, or has been defined anew since.
    """
    name = thing.__qualname__
    if "<" in name:
        what = "a lambda" if "<lambda>" in name else f"{thing.__name__}, which is defined inside a function"
        raise ConfigError(
            f"{key}: found {what}; accepted is what has a name at the top of a cell, a script or a module (def or class)."
        )
    if _in_main(name) is not thing:
        raise ConfigError(
            f"{key}: found an object of the class {name} as it was before the notebook defined it anew; accepted is one that is "
            "made again."
        )
    _live[f"{MAIN}.{name}"] = thing
    return f"{MAIN}.{name}"


def is_live(target: str) -> bool:
    """Whether a dotted name is one of ``__main__``."""
    return target.partition(".")[0] == MAIN


def find(target: str) -> Any:
    """The class or function of a name.

    Raises:
        ConfigError: nobody has registered it in this process.
    """
    if target not in _live:
        raise ConfigError(
            f"_target_: '{target}' was defined in a notebook or in a script, and is known only there: run research.sweep there "
            f"again, or put it into a file and name it my_file.{target.partition('.')[2]}."
        )
    return _live[target]


def digest(target: str, of_module: OfModule) -> str:
    """The hash of all that a class or function of ``__main__`` is made of.

    Args:
        of_module: the hash of a module of the user's own, by its name; None of a library's.

    Raises:
        ConfigError: its source is not known, or it uses a variable whose value cannot be told.
    """
    made_of = _Parts(of_module, target.partition(".")[2])
    made_of.visit(find(target))
    return made_of.digest()


def digest_of_value(value: Any, of_module: OfModule, key: str) -> str:
    """The hash of a value, of all that its class and what it holds are made of.

    Raises:
        ConfigError: see `digest`.
    """
    made_of = _Parts(of_module, key)
    made_of.parts[""] = made_of.told(value, key)
    return made_of.digest()


def forget() -> None:
    """Do without what was registered."""
    _live.clear()


class _Parts:
    """What something is made of, by names."""

    def __init__(self, of_module: OfModule, title: str):
        self.of_module, self.title = of_module, title
        self.parts: dict[str, str] = {}

    def digest(self) -> str:
        text = "".join(f"{name}\0{said}\n" for name, said in sorted(self.parts.items()))
        return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()

    def visit(self, thing: Any) -> str:
        """Take in a class or function, with all that it uses; returns its name."""
        module, name = getattr(thing, "__module__", None) or "", getattr(thing, "__qualname__", repr(thing))
        if module != MAIN:
            of_user = self.of_module(module) if module and module not in sys.builtin_module_names else None
            if of_user is not None:
                self.parts[f"module {module}"] = of_user
            return f"{module}.{name}"
        text = source_text(thing, self.title)
        label = name if "<" not in name else f"{name} {text}"
        if label in self.parts:
            return label
        tree = ast.parse(text)
        self.parts[label] = hashlib.sha256("\0".join(words_of(tree)).encode("utf-8", "backslashreplace")).hexdigest()
        values = getattr(thing, "__globals__", None) or vars(sys.modules[MAIN])
        for used in sorted(_globals(tree)):
            if used in values and values[used] is not thing:
                self.parts[f"{label}: {used}"] = self.told(values[used], used)
        for method in _put_in_later(thing):
            self.visit(method)
        if inspect.isfunction(thing):
            for cell, value in inspect.getclosurevars(thing).nonlocals.items():
                self.parts[f"{label}: {cell}"] = self.told(value, cell)
        return label

    def told(self, value: Any, name: str) -> str:
        """A value in words that are the same from run to run."""
        if type(value) in _PLAIN:
            return repr(value)
        if isinstance(value, types.ModuleType):
            if (of_user := self.of_module(value.__name__)) is not None:
                self.parts[f"module {value.__name__}"] = of_user
            return f"module {value.__name__}"
        if isinstance(value, type) or inspect.isroutine(value):
            bound = getattr(value, "__self__", None)
            with_owner = bound is not None and not isinstance(bound, types.ModuleType)
            return self.visit(value) + (f" of {self.told(bound, name)}" if with_owner else "")
        if isinstance(value, functools.partial):
            return f"partial {self.told([value.func, list(value.args), value.keywords], name)}"
        if isinstance(value, list | tuple):
            return f"{type(value).__name__}({', '.join(self.told(each, name) for each in value)})"
        if isinstance(value, set | frozenset):
            return f"{type(value).__name__}({', '.join(sorted(self.told(each, name) for each in value))})"
        if isinstance(value, Mapping):
            return f"{type(value).__name__}({', '.join(f'{key!r}: {self.told(each, name)}' for key, each in value.items())})"
        return self._object(value, name)

    def _object(self, value: Any, name: str) -> str:
        cls = type(value)
        if hasattr(value, "state_dict") and hasattr(value, "parameters"):  # a network: its code and its weights
            mode = {key: each for key, each in vars(value).items() if type(each) in _PLAIN and key != "training"}
            return f"{self.visit(cls)} {self.told(mode, name)} {self.told(dict(value.state_dict()), name)}"
        if (weights := getattr(value, "weights_sha256", None)) is not None:
            return f"{self.visit(cls)} {weights}"
        if (content := _content(value)) is not None:
            return content
        if cls.__module__ in ("_io", "_thread", "threading", "socket"):  # whose names say nothing of what is in them
            raise self._cannot(value, name)
        if _is_users(cls, self.of_module) or hasattr(value, "_constructed_with"):
            arguments = arguments_of(value)
            if arguments is None and not hasattr(value, "__dict__"):
                raise self._cannot(value, name)
            return f"{self.visit(cls)} {self.told(vars(value) if arguments is None else arguments, name)}"
        shown = repr(value)
        if len(shown) <= _LONGEST and " at 0x" not in shown and "..." not in shown:
            return f"{cls.__module__}.{cls.__qualname__} {shown}"
        try:
            return f"{cls.__module__}.{cls.__qualname__} {hashlib.sha256(pickle.dumps(value, 4)).hexdigest()}"
        except Exception as error:  # what libraries raise where they cannot be pickled is no closed list
            raise self._cannot(value, name) from error

    def _cannot(self, value: Any, name: str) -> ConfigError:
        return ConfigError(
            f"{self.title}: uses {name}, a {type(value).__name__}, of which it cannot be told whether it is the same in another "
            "run; accepted are numbers, text, tensors, networks, functions and classes: give it to the constructor, or make it "
            "inside."
        )


def _content(value: Any) -> str | None:
    """A tensor, an array or a picture by what is in it; None of anything else."""
    cls = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
    if hasattr(value, "detach") and hasattr(value, "untyped_storage"):
        import torch

        held = (
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        )
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(held).hexdigest()}"
    if hasattr(value, "tobytes") and (hasattr(value, "dtype") or hasattr(value, "getbands")):
        about = (value.dtype, list(value.shape)) if hasattr(value, "dtype") else (value.mode, value.size)
        if str(about[0]) == "object":
            return None
        return f"{cls} {about[0]} {about[1]} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return None


def _is_users(cls: type, of_module: OfModule) -> bool:
    return cls.__module__ == MAIN or (cls.__module__ != "builtins" and of_module(cls.__module__) is not None)


def _in_main(qualname: str) -> Any:
    found: Any = sys.modules.get(MAIN)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


# -- the source of one


def source_text(thing: Any, title: str) -> str:
    """The source of a class or function, its decorators included, as far left as it goes.

    Raises:
        ConfigError: it is nowhere: typed at a prompt, say.
    """
    if isinstance(thing, type):
        found = next((text for text in _texts_of_class(thing)), None)
    else:
        try:
            lines, first = inspect.getsourcelines(inspect.unwrap(thing))
            found = _definition(_text(thing.__code__.co_filename), thing.__name__, first)
            if found is None:
                found = inspect.cleandoc("\n" + "".join(lines))
                ast.parse(found)
        except (OSError, TypeError, AttributeError, SyntaxError):
            found = None
    if found is None:
        raise ConfigError(
            f"{title}: the source of {thing.__qualname__} is not known; accepted is what stands in a cell of a notebook, in a "
            "script or in a module."
        )
    return found


def _texts_of_class(cls: type) -> Iterator[str]:
    """Where the source of a class may be, the likeliest first: the files of its methods, then all of this process."""
    codes = [code for value in vars(cls).values() if (code := _code(value)) is not None]
    for code in codes:
        text = _text(code.co_filename)
        if (found := _definition(text, cls.__name__, code.co_firstlineno)) is not None:
            yield found
    main = getattr(sys.modules.get(MAIN), "__file__", None)
    for file in [*([main] if main else []), *reversed(list(linecache.cache))]:
        if (found := _definition(_text(file), cls.__name__, None)) is not None:
            yield found


def _text(file: str) -> str:
    linecache.checkcache(file)  # a script may have been edited since it was run before in this process
    return "".join(linecache.getlines(file))


def _code(value: Any) -> types.CodeType | None:
    for name in ("fget", "func", "__func__", "__wrapped__"):
        value = getattr(value, name, value)
    return getattr(value, "__code__", None)


def _definition(text: str, name: str, line: int | None) -> str | None:
    """The source of the last class or function of a name in a text, of those around a line; None if there is none."""
    try:
        tree = compile(text, "<source>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    found = None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if line is None or first <= line <= (node.end_lineno or first):
                found = node
    return None if found is None else ast.unparse(found)


# -- what it uses


def _globals(tree: ast.AST) -> set[str]:
    """The names that source looks up outside of itself, but for those of Python."""
    assert isinstance(tree, ast.Module)
    found: set[str] = set()
    left = [compile(tree, "<source>", "exec", dont_inherit=True)]
    while left:
        code = left.pop()
        left += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        inside = {each.argval for each in _instructions(code) if each.opname == "STORE_NAME"}
        for each in _instructions(code):
            if each.opname == "LOAD_GLOBAL" or (each.opname == "LOAD_NAME" and each.argval not in inside):
                found.add(str(each.argval))
    return {name for name in found if not hasattr(builtins, name)}


def _instructions(code: types.CodeType) -> Iterator[Any]:
    import dis

    yield from dis.get_instructions(code)


def _put_in_later(thing: Any) -> Iterator[Any]:
    """Functions that were set in a class after it was defined: ``Mine.combine = other``."""
    for value in vars(thing).values() if isinstance(thing, type) else ():
        if not inspect.isfunction(value) or value.__module__ != MAIN or "__create_fn__" in value.__qualname__:
            continue
        if not value.__qualname__.startswith(f"{thing.__qualname__}."):
            yield value
