"""The hub's cache on this disk as huggingface_hub leaves it: blobs, snapshots, refs, and the listing of the repository."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def cache(
    hub: Path, name: str, source: Path, absent: Callable[[str], bool] = lambda file: False, ref: str = "main"
) -> str:
    """Put a repository with the files of a folder into a cache, less those that were not fetched; returns its commit."""
    from huggingface_hub._snapshot_download import TreeCacheEntry, write_tree_cache

    root = hub / ("models--" + name.replace("/", "--"))
    files = {file.relative_to(source).as_posix(): file for file in sorted(source.rglob("*")) if file.is_file()}
    commit = hashlib.sha1(repr([name, ref, sorted(files)]).encode()).hexdigest()
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    listing = {}
    for relative, file in files.items():
        data = file.read_bytes()
        blob = hashlib.sha256(data).hexdigest()
        listing[relative] = TreeCacheEntry(size=len(data), blob_id=blob, lfs_sha256=None, lfs_size=None, xet_hash=None)
        if absent(relative):
            continue
        (root / "blobs" / blob).write_bytes(data)
        link = root / "snapshots" / commit / relative
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(root / "blobs" / blob, link.parent))
    write_tree_cache(str(root), commit, listing)
    return commit
