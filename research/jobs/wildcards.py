"""Prompts with wildcards: ``a {red,blue} __animal__`` is each of its forms, or some drawn at random.

Braces hold what to choose from, with ``,`` or ``|`` between; ``__animal__`` is a line of ``animal.txt`` in the folder of
wildcards. Both may stand inside of one another, and lines of files may hold either. A prompt has its forms in one order, so
that they can be counted, and the n-th be made, without making the others.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.checks import check_whole_number
from research.errors import ConfigError, nearest
from research.text_files import read_text

MOST = 100_000  # prompts of a job
_NAME = re.compile(r"__([A-Za-z0-9](?:[\w./-]*?[A-Za-z0-9])?)__")
_DEEPEST = 16
_KEYS = ("expand", "folder", "seed")


@dataclass(frozen=True)
class _Part:
    """What a place of a prompt may be: texts in which parts stand in their turn."""

    options: tuple[tuple[str | _Part, ...], ...]
    count: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", sum(map(_count, self.options)))


@dataclass(frozen=True)
class Wildcards:
    """The section ``wildcards``; see conf/config.yaml.

    Attributes:
        expand: "none" leaves prompts as they are, "all" gives each in all its forms, a number so many of each.
        folder: of the files of wildcards.
        seed: of the drawing.
    """

    expand: str | int = "none"
    folder: str = "wildcards"
    seed: int = 0

    @classmethod
    def of(cls, section: Any) -> Wildcards:
        """The section as it was written.

        Raises:
            ConfigError: an unknown key, or a value that cannot be used.
        """
        if section is None:
            return cls()
        if not isinstance(section, Mapping):
            raise ConfigError(
                f"wildcards: found {section!r}; accepted are keys inside it, such as wildcards.expand=all."
            )
        for name in section:
            if name not in _KEYS:
                raise ConfigError(f"wildcards.{name}: unknown key.{nearest(name, _KEYS)} Accepted: {', '.join(_KEYS)}.")
        expand, folder = section.get("expand", "none"), section.get("folder", "wildcards")
        if isinstance(expand, str) or expand is None:
            expand = "none" if expand is None else expand
            if expand not in ("none", "all"):
                raise ConfigError(
                    f"wildcards.expand: found {expand!r}; accepted is none, all, or a number of forms of each prompt."
                )
        else:
            expand = check_whole_number(
                "wildcards.expand", expand, least=1, integral_float=True, otherwise="none or all"
            )
        if not isinstance(folder, str) or not folder:
            raise ConfigError(f"wildcards.folder: found {folder!r}; accepted is a folder of text files.")
        return cls(expand, folder, check_whole_number("wildcards.seed", section.get("seed", 0), integral_float=True))

    def forms(self, prompts: Sequence[str]) -> list[list[str]]:
        """Of each prompt its forms, in their order, without repetitions.

        What is drawn for a prompt depends on it and the seed, and not on the prompts around it; of a prompt that stands there
        several times, each draws anew.

        Raises:
            ConfigError: a file is missing or refers to itself, braces do not close, or there are more than 100,000 forms.
        """
        if self.expand == "none":
            return [[prompt] for prompt in prompts]
        reader, found, made = _Reader(Path(self.folder)), [], 0
        seen: dict[str, int] = {}
        for prompt in prompts:
            whole = reader.read(prompt, prompt, ())
            total = _count(whole)
            wanted = total if self.expand == "all" else min(int(self.expand), total)
            if (made := made + wanted) > MOST:
                raise ConfigError(
                    f"wildcards.expand: {prompt!r} has {total:,} forms; accepted are at most {MOST:,} of all prompts together: "
                    "wildcards.expand=N draws N of each prompt."
                )
            places: Sequence[int] = range(total)
            if wanted < total:
                seen[prompt] = seen.get(prompt, -1) + 1
                places = _drawn(total, wanted, f"{self.seed}\0{seen[prompt]}\0{prompt}")
            found.append(list(dict.fromkeys(_form(whole, place) for place in places)))
        return found


class _Reader:
    """Reads prompts, and the files that they name once each."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files: dict[str, _Part] = {}

    def read(self, text: str, prompt: str, inside: tuple[str, ...]) -> tuple[str | _Part, ...]:
        """A text as what stands in it; ``inside`` are the files that led here."""
        parts: list[str | _Part] = []
        at = 0
        while at < len(text):
            named = _NAME.match(text, at)
            if named:
                parts.append(self._file(named[1], prompt, inside))
                at = named.end()
            elif text[at] == "{":
                end = _closing(text, at, prompt)
                options = _split(text[at + 1 : end])
                if len(options) > 1:
                    parts.append(_Part(tuple(self.read(option, prompt, inside) for option in options)))
                else:  # nothing to choose from: braces that are meant
                    parts += ["{", *self.read(text[at + 1 : end], prompt, inside), "}"]
                at = end + 1
            else:
                parts.append(text[at])
                at += 1
        return tuple(parts)

    def _file(self, name: str, prompt: str, inside: tuple[str, ...]) -> _Part:
        if name in inside or len(inside) >= _DEEPEST:
            raise ConfigError(
                f"wildcards.folder: __{name}__ of {prompt!r} leads back to itself ({' > '.join([*inside, name])})."
            )
        if name not in self._files:
            file = self._folder.expanduser() / f"{name}.txt"
            if ".." in Path(name).parts or not file.is_file():
                there = sorted(each.stem for each in self._folder.expanduser().glob("*.txt"))
                raise ConfigError(
                    f"wildcards.folder: found no {name}.txt in {self._folder}, which {prompt!r} asks for."
                    f"{nearest(name, there)} It has: {', '.join(there) or 'no text files'}."
                )
            lines = lines_of(read_text("wildcards.folder", file))
            if not lines:
                raise ConfigError(f"wildcards.folder: {file} is empty; accepted is a text a line.")
            self._files[name] = _Part(tuple(self.read(line, prompt, (*inside, name)) for line in lines))
        return self._files[name]


def lines_of(text: str) -> list[str]:
    """The lines of a text file that say something: not empty, and no comment (``# ...``)."""
    return [line.strip() for line in text.split("\n") if line.strip() and not line.lstrip().startswith("# ")]


def _closing(text: str, start: int, prompt: str) -> int:
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "{") - (text[at] == "}")
        if not depth:
            return at
        if depth > _DEEPEST:
            raise ConfigError(f"wildcards.expand: {prompt!r} has more than {_DEEPEST} braces inside one another.")
    raise ConfigError(
        f"wildcards.expand: {prompt!r} lacks a closing brace; wildcards.expand=none takes it as it stands."
    )


def _split(text: str) -> list[str]:
    """The options between two braces: at bars where there are any outside of inner braces, else at commas."""
    for mark in "|,":
        depth, found = 0, [""]
        for letter in text:
            depth += (letter == "{") - (letter == "}")
            if letter == mark and not depth:
                found.append("")
            else:
                found[-1] += letter
        if len(found) > 1:
            return [option.strip() for option in found]
    return [text]


def _count(parts: tuple[str | _Part, ...]) -> int:
    return math.prod(part.count for part in parts if isinstance(part, _Part))


def _form(parts: tuple[str | _Part, ...], place: int) -> str:
    """The form of a number; what stands last varies fastest."""
    texts = []
    for part in reversed(parts):
        if isinstance(part, str):
            texts.append(part)
            continue
        place, inner = divmod(place, part.count)
        for option in part.options:
            if inner < (count := _count(option)):
                texts.append(_form(option, inner))
                break
            inner -= count
    return "".join(reversed(texts))


def _drawn(total: int, wanted: int, said: str) -> list[int]:
    """So many different numbers below ``total``, in their order."""
    rng = random.Random(hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest())
    found: set[int] = set()
    while len(found) < wanted:
        found.add(rng.randrange(total))
    return sorted(found)
