"""Reading text that people wrote: UTF-8 in whatever dress, YAML and JSON of a size and depth that configs have.

Of YAML the events are looked at before anything is built: an alias is a few letters that stand for as much as one likes, and
what is nested a thousand deep ends the reader and not the file.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import yaml

from research.errors import ConfigError, UserError

_MOST_BYTES = 64 << 20
_MOST_LEVELS, _MOST_NODES = 64, 2_000_000  # of YAML, aliases written out
# longer ones first: UTF-32 in this order of bytes begins as UTF-16 does
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
# the C parser is not in all builds
_EVENTS: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(key: str, file: Path, kind: type[UserError] = ConfigError) -> str:
    """The text of a file in UTF-8, with or without a byte order mark, its lines ended by ``\\n``.

    Args:
        key: what named the file, for the message.
        file: where it is; ``~`` is the home folder.
        kind: of the error.

    Raises:
        UserError: there is no such file, it cannot be read, is larger than 64 MiB, or in another encoding.
    """
    place = file.expanduser()
    try:
        if place.is_dir() or not place.is_file():
            what = "a folder" if place.is_dir() else "no such file" if not place.exists() else "no regular file"
            raise kind(f"{key}: {file} cannot be read: it is {what}; accepted is a text file in UTF-8.")
        if (size := place.stat().st_size) > _MOST_BYTES:
            raise kind(f"{key}: {file} has {size:,} bytes; accepted are at most {_MOST_BYTES:,}.")
        content = place.read_bytes()
    except (OSError, ValueError) as error:  # ValueError of a path with a NUL in it
        raise kind(f"{key}: {file} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    for mark, name in _MARKS:
        if content.startswith(mark):
            raise kind(f"{key}: {file} is in {name}; accepted is UTF-8: iconv -f {name} -t UTF-8.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise kind(
            f"{key}: {file} is no UTF-8: byte 0x{content[error.start]:02x} in line {line}; accepted is UTF-8: "
            "iconv -f LATIN1 -t UTF-8, if it is in Latin-1."
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise kind(f"{key}: {file} holds a NUL in line {line}, so it is no text; accepted is a text file in UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def load_yaml(key: str, file: Path | str, text: str, kind: type[UserError] = ConfigError) -> Any:
    """What a YAML text holds.

    Raises:
        UserError: it is none, or nested deeper than 64 levels, or stands for more than two million values.
    """
    check_yaml(key, file, text, kind)
    try:
        return yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise kind(f"{key}: {file} cannot be read: {' '.join(str(error).split())}.") from error


def check_yaml(key: str, file: Path | str, text: str, kind: type[UserError] = ConfigError) -> None:
    """Refuse a YAML text that is nested too deep, or whose aliases stand for too much, before it is built.

    Raises:
        UserError: see `load_yaml`.
    """
    sizes: dict[str, int] = {}  # by anchor, of the values that it stands for
    open_nodes: list[tuple[str | None, int]] = []
    count = 0
    try:
        for event in yaml.parse(text, Loader=_EVENTS):
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, count))
                count += 1
                if len(open_nodes) > _MOST_LEVELS:
                    raise kind(f"{key}: {file} is nested deeper than {_MOST_LEVELS} levels; accepted are so many.")
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_nodes.pop()
                if anchor is not None:
                    sizes[anchor] = count - before
            elif isinstance(event, yaml.AliasEvent):
                if any(anchor == event.anchor for anchor, _ in open_nodes):
                    raise kind(f"{key}: {file} holds the alias *{event.anchor} inside of what it stands for.")
                count += sizes.get(str(event.anchor), 1)
            elif isinstance(event, yaml.ScalarEvent):
                count += 1
            if count > _MOST_NODES:
                raise kind(f"{key}: {file} stands for more than {_MOST_NODES:,} values; accepted are fewer.")
    except yaml.YAMLError as error:
        raise kind(f"{key}: {file} cannot be read: {' '.join(str(error).split())}.") from error


def load_json(key: str, file: Path | str, text: str, kind: type[UserError] = ConfigError) -> Any:
    """What a JSON text holds.

    Raises:
        UserError: it is none, or nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise kind(f"{key}: {file} is nested too deep to be read.") from None
    except ValueError as error:
        raise kind(f"{key}: {file} cannot be read: {' '.join(str(error).split())}.") from error
