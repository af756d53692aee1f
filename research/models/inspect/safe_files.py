"""Looking at files one cannot trust: what kind a file is by its content, and JSON that is read with care. Needs no torch.

Nothing here opens a thing that is no regular file (a pipe would block for ever), reads more than a stated number of
bytes, or takes a file's name for what it holds.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from research.errors import ModelError

JSON_LIMIT = 64 << 20  # bytes; the largest tokenizer.json in use has about 30 MB
_LONGEST = 200  # characters of a foreign text in a message
_DEEPEST = 100  # levels of a JSON

# what the first bytes of a file say
_MAGIC = (
    (b"GGUF", "gguf"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"version https://git-lfs", "git-lfs pointer"),
    (b"\x89HDF", "HDF5"),
    (b"\x89PNG", "PNG picture"),
    (b"\xff\xd8\xff", "JPEG picture"),
    (b"\x1f\x8b", "gzip archive"),
    (b"7z\xbc\xaf", "7z archive"),
    (b"%PDF", "PDF"),
    (b"\x93NUMPY", "NumPy array"),
    (b"\x7fELF", "program"),
)
# what a user should hear of each
KINDS = {
    "empty": "is empty (0 bytes)",
    "safetensors": "is a safetensors file",
    "zip": "is a zip archive, as torch.save writes them: a pickle",
    "pickle": "is a pickle",
    "tar": "is a tar archive",
    "gguf": "is a GGUF file",
    "git-lfs pointer": "is a git-lfs pointer, not the file itself: fetch it with 'git lfs pull'",
    "html": "is an HTML page, not a model: the download went wrong",
    "json": "is JSON",
    "text": "is text",
    "unknown": "is of no known kind",
}


def shown(value: object, limit: int = _LONGEST) -> str:
    """Foreign text, such as a name out of a file, fit for one line of a terminal: printable and not long."""
    text = str(value)
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def unreadable(path: Path) -> str | None:
    """Why a path is no file that can be read, or None if it is one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return f"is a symbolic link to {shown(os.readlink(path))}, which is not there"
        return "is missing"
    except OSError as error:
        return _reason(error)
    except ValueError:
        return "is no path"
    if stat.S_ISDIR(mode):
        return "is a folder, not a file"
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        return f"is {kind}, not a file"
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return _reason(error)


def sniff(file: Path) -> str:
    """What a readable file is by its content: one of `KINDS`, or another name from `_MAGIC`."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(1024)
        if size > 512:
            stream.seek(257)
            if stream.read(5) == b"ustar":
                return "tar"
    if not head:
        return "empty"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "html"
    if head[8:9] == b"{":
        return "safetensors"  # a whole one or not: reading its header will say
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5:  # the opcode PROTO and its number
        return "pickle"
    if text.startswith((b"{", b"[")):
        return "json"
    try:
        head[:-4].decode("utf-8")
    except UnicodeDecodeError:
        return "unknown"
    return "text" if b"\0" not in head else "unknown"


def described(file: Path) -> str:
    """`sniff` as a clause: "is a GGUF file"."""
    kind = sniff(file)
    return KINDS.get(kind, f"is a {kind}")


def read_json(file: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelError: it is missing, cannot be read, is too large, or is not a JSON object.
    """
    if why := unreadable(file):
        raise ModelError(f"model.path: {file} {why}.")
    if (size := file.stat().st_size) > limit:
        raise ModelError(f"model.path: {file} has {size} bytes; accepted are JSON files up to {limit}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else shown(error)
        if size < limit and (kind := sniff(file)) not in ("json", "text", "unknown"):
            what = f"it {KINDS.get(kind, 'is a ' + kind)}"
        raise ModelError(f"model.path: {file} cannot be read as JSON: {what}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"model.path: {file} is no JSON object: found a {type(content).__name__}.")
    if _depth(content) > _DEEPEST:
        raise ModelError(f"model.path: {file} cannot be read as JSON: nested too deeply.")
    return content


def _depth(content: Any) -> int:
    depth, level = 0, [content]
    while level and depth <= _DEEPEST:
        depth += 1
        level = [
            inner
            for node in level
            for inner in (node.values() if isinstance(node, dict) else node)
            if isinstance(inner, dict | list)
        ]
    return depth


def _reason(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied"
    return f"cannot be read: {shown(error.strerror or error)}"
