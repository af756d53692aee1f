"""Errors meant for the person at the keyboard: one line that names the key or file, what was found and what is accepted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST, _KEPT, _LONGEST_WORD = 2_000, 900, 200  # characters


class UserError(Exception):
    """Something the user can mend. The message is one complete line; the command line prints it without a stack. Of one that is
    very long, as it says a value that is, the middle is left out."""

    def __str__(self) -> str:
        return shortened(super().__str__())


class ConfigError(UserError):
    """A setting is unknown, out of range, or does not go together with another."""


class ModelError(UserError):
    """A model cannot be found, read or used as asked."""


class SamplingError(UserError):
    """Sampling went wrong at a known stage (for example, latents became NaN)."""


def shortened(text: str) -> str:
    """A text without its middle, where it is longer than a person reads: what it begins with, and what it ends with."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_KEPT]} [{len(text) - 2 * _KEPT:,} characters] {text[-_KEPT:]}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """A suffix like `` Did you mean 'ddim'?`` for the choice nearest to `word`, or an empty string. It is never `word` itself."""
    word = str(word)[:_LONGEST_WORD]  # comparing takes the square of the length
    found = difflib.get_close_matches(word, [choice for choice in choices if choice != word], n=5, cutoff=0.5)
    # letters in the wrong order are the likelier slip than other letters
    found.sort(key=lambda choice: sorted(choice) != sorted(str(word)))
    return f" Did you mean '{found[0]}'?" if found else ""


def one_line(error: BaseException) -> str:
    """An error as a line: a `UserError` says it itself, others with their class; notes say where it happened."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return "; ".join([text, *getattr(error, "__notes__", [])])
