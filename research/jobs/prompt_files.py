"""Prompts from a file: a line each (.txt), or rows with negative prompts, seeds and settings (.csv, .jsonl and their kin)."""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.checks import check_whole_number
from research.errors import ConfigError
from research.jobs.other_names import OTHER_NAMES
from research.jobs.point_files import flat, of_cell, written
from research.jobs.schema import GROUPS, KEYS
from research.jobs.wildcards import lines_of
from research.text_files import load_json, load_yaml, read_text

_log = logging.getLogger(__name__)
_KEY = "prompts_file"
_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".json", ".yaml", ".yml")
_PROMPT = ("prompt", "prompts", "caption", "text")
_NEGATIVE = ("negative_prompt", "negative", "neg_prompt", "task.negative_prompt")
_TYPING_ERROR = 0.85  # how alike a column and a key are of which one was meant as the other
# what is the same for all images of a job for other reasons than its settings
_OF_NO_ROW = (
    *("prompts_file", "wildcards", "prompt_set", "experiment", "seeds", "output_dir", "sweep_name"),
    *("sweep", "report", "budget"),
)


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and what its row says besides.

    Attributes:
        prompt: as it stands there.
        negative: its negative prompt; None where the row has none.
        seed: of its first image.
        settings: overrides for its images, ``key=value``.
    """

    prompt: str
    negative: str | None = None
    seed: int | None = None
    settings: tuple[str, ...] = ()


def read_prompts(path: str) -> list[PromptRow]:
    """The rows of a file, in its order.

    Columns named as keys of the config (``guidance.scale``), or as diffusers' arguments (``num_inference_steps``), are settings;
    others are notes, which the log names.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it has no prompts.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ConfigError(f"{_KEY}: found {path!r}; accepted is a file {', '.join(_SUFFIXES)}.")
    text = read_text(_KEY, file)
    if suffix == ".txt":
        rows = [PromptRow(line) for line in _plain_lines(path, text)]
    elif suffix in (".csv", ".tsv"):
        rows = list(_of_table(path, text, "\t" if suffix == ".tsv" else None))
    else:
        rows = list(_of_list(path, text, suffix))
    if not rows:
        raise ConfigError(f"{_KEY}: {path} holds no prompts.")
    return rows


def _plain_lines(path: str, text: str) -> list[str]:
    lines = lines_of(text)
    if flags := [line for line in lines if line.startswith("--prompt")]:
        raise ConfigError(
            f"{_KEY}: {path} holds flags of another program ({flags[0][:60]!r}); accepted is a prompt a line, and settings as "
            "columns of a .csv or keys of a .jsonl."
        )
    return lines


def _of_table(path: str, text: str, mark: str | None) -> Iterator[PromptRow]:
    head = text.split("\n", 1)[0].lower()
    if mark is None:
        mark = next((m for m in ",;\t" if any(_is_prompt(cell) for cell in head.split(m)) and m in head), ",")
    try:
        table = [row for row in csv.reader(io.StringIO(text), delimiter=mark) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ConfigError(f"{_KEY}: {path} cannot be read: {error}.") from error
    if not table:
        return
    columns = [name.strip() for name in table[0]]
    if "" in columns or len(set(columns)) < len(columns):
        raise ConfigError(
            f"{_KEY}: {path}: found the columns {', '.join(map(repr, columns))}; accepted is a name each, once."
        )
    roles = _roles(path, columns)
    for number, row in enumerate(table[1:], 2):
        if len(row) > len(columns):
            raise ConfigError(
                f"{_KEY}: {path}, row {number}: found {len(row)} cells for {len(columns)} columns; a prompt with {mark!r} in it "
                'stands in double quotes: "a fox, red".'
            )
        cells = {name: cell.strip() for name, cell in zip(columns, row, strict=False) if cell.strip()}
        yield _row(path, f"row {number}", cells, roles, of_cell)


def _of_list(path: str, text: str, suffix: str) -> Iterator[PromptRow]:
    if suffix == ".jsonl":
        content: Any = [
            load_json(_KEY, f"{path}, line {number}", line)
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip()
        ]
    else:
        content = (load_json if suffix == ".json" else load_yaml)(_KEY, path, text)
    if isinstance(content, Mapping) and len(content) == 1:  # a list under a name, as a prompt_set has it
        content = next(iter(content.values()))
    if not isinstance(content, list):
        raise ConfigError(
            f"{_KEY}: {path}: found {type(content).__name__}; accepted is a list of prompts, or of mappings."
        )
    entries = [{"prompt": entry} if isinstance(entry, str) else entry for entry in content]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping) or not all(isinstance(name, str) for name in entry):
            raise ConfigError(
                f"{_KEY}: {path}, entry {number}: found {entry!r}; accepted is a text or a mapping with a prompt."
            )
    roles = _roles(path, list(dict.fromkeys(name for entry in entries for name in entry)))
    for number, entry in enumerate(entries, 1):
        cells = {name: value for name, value in entry.items() if value is not None}
        yield _row(path, f"entry {number}", cells, roles, lambda _, value: written(value))


def _roles(path: str, names: list[str]) -> dict[str, str]:
    """What each column is: "prompt", "negative", "seed", the key of a setting, or an empty string for a note."""
    found = {name: _role(path, name) for name in names}
    for role in ("prompt", "negative", "seed"):
        named = [name for name, what in found.items() if what == role]
        if len(named) > 1:
            raise ConfigError(f"{_KEY}: {path}: found the columns {' and '.join(named)}; accepted is one of them.")
    if names and "prompt" not in found.values():
        raise ConfigError(
            f"{_KEY}: {path}: found the columns {', '.join(map(repr, names))} and no prompt; accepted are names in the first "
            "row, one of them prompt."
        )
    if notes := [name for name, what in found.items() if not what]:
        _log.info(
            "%s: %s: %s %s no setting, and left out", _KEY, path, ", ".join(notes), "are" if len(notes) > 1 else "is"
        )
    return found


def _is_prompt(name: str) -> bool:
    return name.strip().strip('"').lower() in _PROMPT


def _role(path: str, name: str) -> str:
    lower = name.lower()
    if lower in _PROMPT or lower in _NEGATIVE or lower == "seed":
        return "prompt" if lower in _PROMPT else "seed" if lower == "seed" else "negative"
    key = OTHER_NAMES.get(lower, name)
    section = key.split(".")[0]
    if key in _OF_NO_ROW or section in _OF_NO_ROW or " " in key:
        raise ConfigError(f"{_KEY}: {path}: found the column {name}, which is of no single prompt; accepted are prompt, "
                          "negative_prompt, seed and settings such as guidance.scale.")  # fmt: skip
    if section in KEYS or key in GROUPS:
        return key
    known = [*_PROMPT, *_NEGATIVE, "seed", *KEYS, *OTHER_NAMES]
    if close := difflib.get_close_matches(lower, known, n=1, cutoff=_TYPING_ERROR):
        raise ConfigError(f"{_KEY}: {path}: found the column {name}. Did you mean '{close[0]}'?")
    return ""


def _row(path: str, where: str, cells: Mapping[str, Any], roles: Mapping[str, str], say: Any) -> PromptRow:
    prompt: str | None = None
    negative: str | None = None
    seed: int | None = None
    settings: list[str] = []
    for name, value in cells.items():
        role = roles[name]
        if role in ("prompt", "negative"):
            if not isinstance(value, str):
                raise ConfigError(f"{_KEY}: {path}, {where}: {name} is {value!r}; accepted is text.")
            prompt, negative = (value, negative) if role == "prompt" else (prompt, value)
        elif role == "seed":
            seed = _seed(f"{_KEY}: {path}, {where}: {name}", value)
        elif role and isinstance(value, Mapping):
            settings += [f"{key}={said}" for key, said in flat(dict(value), f"{role}.")]
        elif role:
            settings.append(f"{role}={say(role, value)}")
    if prompt is None:
        raise ConfigError(f"{_KEY}: {path}, {where}: found no prompt; accepted is one in each row.")
    return PromptRow(prompt, negative, seed, tuple(settings))


def _seed(key: str, value: Any) -> int:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # what is no number is refused as it stands
            value = float(value) if "." in value or "e" in value.lower() else int(value)
    return check_whole_number(key, value, integral_float=True)
