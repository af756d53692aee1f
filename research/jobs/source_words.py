"""Source as it is run, in words: the same with all versions of Python, however it is broken into lines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

_DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def words_of(tree: ast.AST) -> Iterator[str]:
    """A tree in words: kinds of nodes, names of fields and values. Fields that are empty say nothing, as some versions of Python
    have more of them."""
    left: list[Any] = [tree]
    while left:
        item = left.pop()
        if isinstance(item, ast.AST):
            yield type(item).__name__
            left.append(")")
            for name, value in reversed(list(ast.iter_fields(item))):
                if name == "body" and isinstance(item, _DEFINITIONS):
                    value = [each for each in value if not _is_text(each)]
                silent = value is None or value == [] or name in ("ctx", "kind", "type_comment", "type_ignores")
                # a None that is written in the code is a value, and stands in a node of its own
                if silent and not (isinstance(item, ast.Constant) and name == "value"):
                    continue
                left += [value, f"{name}:"] if isinstance(value, ast.AST | list) else [f"{name}={value!r}"]
        elif isinstance(item, list):
            left += ["]", *reversed(item), "["]
        else:
            yield str(item)


def _is_text(node: ast.stmt) -> bool:
    """A docstring, of a module, a class, a function or an attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
