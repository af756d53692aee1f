"""Points of a sweep from a file: a table (.csv) with a key a column, or a list of mappings (.yaml, .json)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from research.errors import ConfigError
from research.jobs import overrides as lines_of
from research.text_files import load_json, load_yaml, read_text

_SUFFIXES = (".csv", ".yaml", ".yml", ".json")
_BARE = re.compile(r"^[A-Za-z_./][\w./:\-]*$")
_WORDS = ("true", "false", "null", "nan", "inf")


def read_points(path: str) -> list[list[str]]:
    """The overrides of each point of a file, in the file's order. An empty cell of a table sets nothing.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it holds no points.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"sweep.points: found {path!r}; accepted is a file {', '.join(_SUFFIXES)}.")
    text = read_text("sweep.points", file)
    rows = _of_table(path, text) if file.suffix.lower() == ".csv" else _of_list(path, text, file.suffix.lower())
    if not rows:
        raise ConfigError(f"sweep.points: {path} holds no points.")
    return rows


def _of_table(path: str, text: str) -> list[list[str]]:
    table = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    if not table:
        return []
    keys, points = [key.strip() for key in table[0]], []
    if "" in keys or len(set(keys)) < len(keys):
        raise ConfigError(
            f"sweep.points: {path}: found the columns {', '.join(map(repr, keys))}; accepted is a key each, once."
        )
    for number, row in enumerate(table[1:], 2):
        if len(row) > len(keys):
            raise ConfigError(f"sweep.points: {path}, row {number}: found {len(row)} cells for {len(keys)} columns.")
        points.append(
            [f"{key}={of_cell(key, cell.strip())}" for key, cell in zip(keys, row, strict=False) if cell.strip()]
        )
    return points


def of_cell(key: str, cell: str) -> str:
    """A cell as Hydra reads a value; what it cannot read as one is text."""
    try:
        if not lines_of.parse(f"{key}={cell}").is_sweep_override():
            return cell
    except ConfigError:
        pass
    return _quoted(cell)


def _of_list(path: str, text: str, suffix: str) -> list[list[str]]:
    content = (load_json if suffix == ".json" else load_yaml)("sweep.points", path, text)
    if content is None:
        return []
    accepted = "accepted is a list of mappings, a point each"
    if not isinstance(content, list):
        raise ConfigError(f"sweep.points: {path}: found {type(content).__name__}; {accepted}.")
    points = []
    for number, entry in enumerate(content, 1):
        if isinstance(entry, dict) and entry:
            points.append([f"{key}={value}" for key, value in flat(entry)])
        elif isinstance(entry, list) and entry and all(isinstance(line, str) for line in entry):
            points.append([str(line) for line in entry])
        else:
            raise ConfigError(f"sweep.points: {path}, point {number}: found {entry!r}; {accepted}.")
    return points


def flat(entry: dict[Any, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in entry.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value:
            yield from flat(value, f"{name}.")
        else:
            yield name, written(value)


def written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, int | float):
        return str(value)
    text = str(value)
    return text if _BARE.match(text) and text.lower() not in _WORDS else _quoted(text)


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()
