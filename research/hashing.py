"""Content hashes of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sha256_files(paths: Iterable[Path], root: Path | None = None) -> str:
    """SHA-256 over the names and contents of files, in the order of their names; the folder they lie in does not count.

    Args:
        paths: the files, read in pieces.
        root: names are relative to it; by default the bare file names count.
    """
    digest = hashlib.sha256()
    named = sorted((p.relative_to(root).as_posix() if root else p.name, p) for p in map(Path, paths))
    for name, path in named:
        digest.update(name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def sha256_content(path: Path) -> str:
    """SHA-256 of the content of one file; its name does not count."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
