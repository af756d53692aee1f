"""Takes local paths and secrets out of what leaves the machine: of settings, texts and pictures."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# where a run was written or how it was launched is nobody else's business, and decides nothing
_LEFT_OUT = {"output_dir", "tracker", "hydra", "directory", "cache_dir", "worker", "host", "hostname", "user"}
_SECRET = re.compile(
    r"(^|_)(api_?key|access_?key|private_?key|(auth|hf|hub|access|api|bearer)?_?token|secret|password|passwd|credentials?)($|_)",
    re.IGNORECASE,
)
# an absolute path: from the root, the home folder or a drive, not the slashes inside "owner/name" or a URL
_PATH = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"=,;:\]\)]+[/\\])*([^\s/\\'\"=,;:\]\)]+)[/\\]?")
# a relative one: climbing, or ending in a file; "owner/name" of a hub is none
_RELATIVE = re.compile(
    r"(?<![\w:/.])(?:(?:\.{1,2}[/\\])+(?:[^\s/\\'\"=,;:\]\)]+[/\\])*"
    r"|(?:[^\s/\\'\"=,;:\[\]\(\)]+[/\\])+(?=[^\s/\\'\"=,;:\]\)]+\.(?:png|jpe?g|webp|gif|npy|npz|pt|pth|ckpt|bin|safetensors"
    r"|ya?ml|json|csv|txt|py)\b))"
)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"]+", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
# keys as the services hand them out: Hugging Face, OpenAI and its kin, GitHub, AWS, W&B
_KEYS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|wandb_v1_[A-Za-z0-9_]{16,})"
)
_HIDDEN, _SHORT = "[hidden]", 8


def scrub(value: Any) -> Any:
    """A config without secrets and with local paths cut to their last part; prompts and numbers are untouched."""
    if isinstance(value, Mapping):
        return {
            str(key): item if key in ("prompt", "prompts") else scrub(item)
            for key, item in value.items()
            if key not in _LEFT_OUT and not is_secret(str(key))
        }
    if isinstance(value, (list, tuple)):
        return [scrub(item) for item in value]
    return scrub_text(value) if isinstance(value, str) else value


def is_secret(key: str) -> bool:
    """Whether a setting of that name holds a key or a password."""
    return _SECRET.search(key) is not None


def scrub_text(text: str) -> str:
    """A text with its local paths cut to their last part and without keys, the values of secret environment variables too."""
    for name, value in os.environ.items():
        if len(value) >= _SHORT and value in text and is_secret(name):
            text = text.replace(value, _HIDDEN)
    text = _KEYS.sub(_HIDDEN, _LOGIN.sub("", text))
    parts, at = [], 0
    for url in _URL.finditer(text):  # a web address stays; one of a file is a path
        if not url[0].lower().startswith("file:"):
            parts += [_cut(text[at : url.start()]), url[0]]
            at = url.end()
    return "".join([*parts, _cut(text[at:].replace("file://", ""))])


def _cut(text: str) -> str:
    return _RELATIVE.sub("", _PATH.sub(lambda found: found.group(1), text))


def pixels(file: Path) -> Any:
    """A PIL picture of a file's pixels alone: the recipe that an image file carries may name local paths.

    Raises:
        ConfigError: the file is gone, no picture, or too large.
    """
    from research.picture_files import errors_named, loaded

    with errors_named("W&B", file.name), file.open("rb") as stream:
        opened = loaded(stream)
        plain = opened.convert(opened.mode if opened.mode in ("RGB", "RGBA", "L") else "RGB")
    plain.info = {}
    return plain
